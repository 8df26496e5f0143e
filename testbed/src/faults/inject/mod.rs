//! Does to a running mesh what a scenario says.

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use rand::{Rng, rngs::StdRng, seq::SliceRandom};
use serde_json::json;
use shared::{
    channel::{Channel, Class, Provider},
    nats::{connect, topology},
};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    process::Command,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    damage::{self, File, How},
    disk::Disk,
    figures::{Phases, Spell},
    isolation::Isolation,
    load::{self, Callers, Recipient, is_stormy},
    nonsense,
    scenario::{Fault, Inject, Range, Rules, Scenario, Simulator, Whom},
};
use crate::{
    links::{Between, Direction, Trouble},
    peal::{Peal, Program},
    providers::{ApnsKey, Rule, Script, now_ms},
};

/// A process that is asked to end has this long.
const GRACE: Duration = Duration::from_secs(25);

/// A crash point is passed within this time, or the scenario is wrong.
const PASSED_WITHIN: Duration = Duration::from_secs(40);

/// A gateway says that nothing is stored within this time, or it never will.
const NOTICED_WITHIN: Duration = Duration::from_mins(1);

/// A supervisor starts a server again that does not store for so long.
const RECOVERED_WITHIN: Duration = Duration::from_secs(5);

/// Megabytes of a disk that is to be filled.
const DISK: u64 = 96;

/// The mesh, and what was done to it. Disks are given back before the folders under them are removed.
#[derive(Debug)]
pub(super) struct Injector {
    disks: Vec<Disk>,
    pub(super) peal: Peal,
    callers: Arc<Callers>,
    random: StdRng,
    seed: u64,
    program: PathBuf,
    lasting: Vec<Rules>,
    /// How often a worker was killed.
    pub(super) kills: usize,
    pub(super) phases: Phases,
    /// Messages sent that nobody can read.
    pub(super) buried: usize,
}

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Gateway(usize),
    Worker(usize, usize),
    /// One of a region's nats-servers.
    Nats(usize, usize),
    Hub,
}

impl Injector {
    pub(super) fn new(peal: Peal, callers: Arc<Callers>, random: StdRng, seed: u64) -> Self {
        Self {
            disks: Vec::new(),
            program: peal.program(),
            peal,
            callers,
            random,
            seed,
            lasting: Vec::new(),
            kills: 0,
            phases: Phases::default(),
            buried: 0,
        }
    }

    /// Injects everything, each at its share of `notifications`; says what is wrong by itself.
    ///
    /// # Errors
    /// When a fault could not be made or healed.
    pub(super) async fn run(&mut self, scenario: &Scenario, notifications: usize) -> anyhow::Result<Vec<String>> {
        self.lasting.clone_from(&scenario.scripts);
        self.follow_lasting()?;
        let (buried, mut failures) = nonsense::send(&self.peal, &self.callers, scenario).await?;
        self.buried = buried;
        let mut schedule = Vec::new();
        for fault in scenario.faults.iter().filter(|fault| fault.every_s.is_none()) {
            for _ in 0..fault.times {
                schedule.push((self.within(fault.at), fault));
            }
        }
        schedule.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (at, fault) in schedule {
            while self.callers.progress(notifications) < at {
                sleep(Duration::from_millis(5)).await;
            }
            let injected = self.inject(fault).await;
            failures.extend(injected.with_context(|| format!("{:?}", fault.inject))?);
        }
        for fault in &scenario.faults {
            let Some(period) = fault.every_s else { continue };
            let mut next = Instant::now();
            loop {
                next += Duration::from_secs_f64(period);
                sleep_until(next).await;
                if self.callers.progress(notifications) >= 1.0 {
                    break;
                }
                let injected = self.inject(fault).await;
                failures.extend(injected.with_context(|| format!("{:?}", fault.inject))?);
            }
        }
        self.phases.healed = now_ms();
        Ok(failures)
    }

    /// Undoes what a fault that failed may have left, and waits until every part works again.
    ///
    /// # Errors
    /// When a part does not come back.
    pub(super) async fn heal(&mut self) -> anyhow::Result<()> {
        self.follow_lasting()?;
        for link in &self.peal.links {
            link.set(&Trouble::None)?;
        }
        for target in self.everyone() {
            if self.has_ended(target)? {
                self.start(target).await?;
            }
        }
        self.peal.nats.linked().await
    }

    async fn inject(&mut self, fault: &Fault) -> anyhow::Result<Vec<String>> {
        let hold = Duration::from_secs_f64(self.within(fault.for_s));
        let region = fault.region.as_deref();
        if self.phases.struck == 0 {
            self.phases.struck = now_ms();
        }
        match &fault.inject {
            Inject::Kill(whom) => {
                for target in self.pick(*whom, region) {
                    self.kill(target).await?;
                    sleep(hold).await;
                    self.start(target).await?;
                }
            }
            Inject::Pause(whom) => {
                for target in self.pick(*whom, region) {
                    self.signal(target, "STOP").await?;
                    sleep(hold).await;
                    self.signal(target, "CONT").await?;
                }
            }
            Inject::Restart(whom) => {
                for target in self.pick(*whom, region) {
                    self.stop(target).await?;
                    self.start(target).await?;
                }
            }
            Inject::Majority => {
                let one = self.pick(Whom::Nats, region);
                let mut others = self.everyone();
                let sibling = |other: &Target, one: &Target| match (other, one) {
                    (Target::Nats(region, other), Target::Nats(of, one)) => region == of && other != one,
                    _ => false,
                };
                others.retain(|other| one.iter().any(|one| sibling(other, one)));
                ensure!(others.len() == 2, "a region has three nats-servers");
                for target in &others {
                    self.kill(*target).await?;
                }
                sleep(hold).await;
                for target in &others {
                    self.start(*target).await?;
                }
            }
            Inject::Squeeze(whom) => self.squeeze(*whom, region, hold).await?,
            Inject::Crash { points, passing } => {
                for point in points {
                    self.crash(point, *passing, hold, region).await?;
                }
            }
            Inject::Links { between, trouble } => self.trouble(*between, trouble, hold, region).await?,
            Inject::Isolate { backlog } => return self.isolate(*backlog, hold, region).await,
            Inject::NoWorkers => self.kill_workers(hold, region).await?,
            Inject::Swizzle => self.swizzle(hold).await?,
            Inject::Script(rules) => {
                self.follow(rules)?;
                sleep(hold).await;
                self.follow_lasting()?;
            }
            Inject::Simulator(what) => self.simulator(*what, hold).await?,
            Inject::Damage { file, how } => self.damage(*file, *how, region).await?,
            Inject::DiskFull(whom) => self.fill_disk(*whom, hold, region).await?,
            Inject::PowerLoss(whom) => self.lose_power(*whom, hold, region).await?,
            Inject::FlushErrors(whom) => self.fail_flushes(*whom, hold, region).await?,
            Inject::Clock { whom, by_s } => self.set_clock(*whom, *by_s, hold, region).await?,
            Inject::ConsumerDeleted => self.delete_consumer(hold, region).await?,
            Inject::Replay => {
                let refused = self.callers.replay(&self.peal.regions[0].name).await;
                ensure!(refused == 0, "{refused} notifications were not taken a second time");
            }
            Inject::IdleSockets(count) => self.idle_sockets(*count, hold).await?,
            Inject::Storm { count, answer } => {
                let rule = Rule {
                    prefix: Some("f".to_owned()),
                    answer: answer.clone(),
                    ..Rule::default()
                };
                self.set_script(Provider::Apns, vec![rule])?;
                let chosen = self.callers.those(|number, _| is_stormy(number));
                let from = &self.peal.regions[0].name;
                self.callers.hurry("storm", from, &chosen, *count).await;
                self.nothing_waits().await?;
                self.phases.whole = now_ms();
                sleep(hold).await;
                self.follow_lasting()?;
            }
            Inject::Withdrawal => self.withdraw().await?,
            Inject::Stampede(count) => return self.stampede(*count).await,
        }
        Ok(Vec::new())
    }

    fn within(&mut self, (least, most): Range) -> f64 {
        self.random.random_range(least..=most)
    }

    fn everyone(&self) -> Vec<Target> {
        let each = self.peal.regions.iter().enumerate();
        let regions = each.flat_map(|(region, parts)| {
            let workers = (0..parts.workers.len()).map(move |worker| Target::Worker(region, worker));
            let servers = self.peal.nats.servers(&parts.name).len();
            let servers = (0..servers).map(move |server| Target::Nats(region, server));
            servers.chain(workers).chain([Target::Gateway(region)])
        });
        [Target::Hub].into_iter().chain(regions).collect()
    }

    /// Everyone for [`Whom::All`] and [`Whom::Programs`], else one of those who are meant.
    fn pick(&mut self, whom: Whom, region: Option<&str>) -> Vec<Target> {
        let meant = |target: &Target| match (whom, target) {
            (Whom::All, _)
            | (Whom::Hub, Target::Hub)
            | (Whom::Programs, Target::Gateway(_) | Target::Worker(..))
            | (Whom::Any, Target::Gateway(_) | Target::Worker(..) | Target::Nats(..)) => true,
            (Whom::Gateway, Target::Gateway(at))
            | (Whom::Worker, Target::Worker(at, _))
            | (Whom::Nats, Target::Nats(at, _)) => region.is_none_or(|region| self.peal.regions[*at].name == region),
            _ => false,
        };
        let mut targets = self.everyone();
        targets.retain(meant);
        if !matches!(whom, Whom::All | Whom::Programs) && !targets.is_empty() {
            let one = self.random.random_range(0..targets.len());
            targets = vec![targets[one]];
        }
        targets
    }

    fn program(&mut self, target: Target) -> Option<&mut Program> {
        match target {
            Target::Gateway(region) => Some(&mut self.peal.regions[region].gateway),
            Target::Worker(region, worker) => Some(&mut self.peal.regions[region].workers[worker]),
            Target::Nats(..) | Target::Hub => None,
        }
    }

    fn server(&self, target: Target) -> &crate::nats::Server {
        match target {
            Target::Nats(region, server) => self.peal.nats.servers(&self.peal.regions[region].name)[server],
            _ => self.peal.nats.hub(),
        }
    }

    async fn kill(&mut self, target: Target) -> anyhow::Result<()> {
        self.kills += usize::from(matches!(target, Target::Worker(..)));
        match self.program(target) {
            Some(program) => program.process.kill().await,
            None => self.server(target).kill(),
        }
    }

    async fn stop(&mut self, target: Target) -> anyhow::Result<()> {
        match self.program(target) {
            Some(program) => program.process.terminate(GRACE).await,
            None => self.server(target).stop().await,
        }
    }

    /// Starts it after it has ended, and waits until it works.
    async fn start(&mut self, target: Target) -> anyhow::Result<()> {
        let (path, http) = (self.program.clone(), self.peal.http.clone());
        match self.program(target) {
            Some(program) => {
                program.restart(&path)?;
                program.wait_ready(&http).await
            }
            None => self.server(target).restart().await,
        }
    }

    async fn signal(&mut self, target: Target, name: &str) -> anyhow::Result<()> {
        match self.program(target) {
            Some(program) => program.process.signal(name).await,
            None if name == "STOP" => self.server(target).pause(),
            None => self.server(target).resume(),
        }
    }

    fn has_ended(&mut self, target: Target) -> anyhow::Result<bool> {
        match self.program(target) {
            Some(program) => program.process.has_ended(),
            None => Ok(self.server(target).pid().is_none()),
        }
    }

    /// Lets it run a fifth of the time.
    async fn squeeze(&mut self, whom: Whom, region: Option<&str>, hold: Duration) -> anyhow::Result<()> {
        for target in self.pick(whom, region) {
            let end = Instant::now() + hold;
            while Instant::now() < end {
                self.signal(target, "STOP").await?;
                sleep(Duration::from_millis(80)).await;
                self.signal(target, "CONT").await?;
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    async fn crash(
        &mut self,
        point: &str,
        passing: (u64, u64),
        hold: Duration,
        region: Option<&str>,
    ) -> anyhow::Result<()> {
        let whom = if point.starts_with("gateway.") {
            Whom::Gateway
        } else {
            Whom::Worker
        };
        let at = format!("{point}={}", self.random.random_range(passing.0..=passing.1));
        for target in self.pick(whom, region) {
            self.stop(target).await?;
            let path = self.program.clone();
            let program = self.program(target).context("a program")?;
            program.restart_with(&path, &["--crash-at", &at], &[])?;
            let deadline = Instant::now() + PASSED_WITHIN;
            while !program.process.has_ended()? {
                ensure!(Instant::now() < deadline, "{at} was never passed");
                sleep(Duration::from_millis(10)).await;
            }
            sleep(hold).await;
            self.start(target).await?;
        }
        Ok(())
    }

    /// Trouble on all links of a kind in `region`, or on one of all if none is given.
    async fn trouble(
        &mut self,
        between: Between,
        trouble: &Trouble,
        hold: Duration,
        region: Option<&str>,
    ) -> anyhow::Result<()> {
        let mut meant: Vec<usize> = (0..self.peal.links.len())
            .filter(|at| {
                let link = &self.peal.links[*at];
                link.between == between && region.is_none_or(|region| link.region == region)
            })
            .collect();
        if region.is_none() && !meant.is_empty() {
            meant = vec![meant[self.random.random_range(0..meant.len())]];
        }
        let Some(first) = meant.first() else { return Ok(()) };
        let region = self.peal.links[*first].region.clone();
        for at in &meant {
            self.peal.links[*at].set(trouble)?;
        }
        let from = now_ms();
        sleep(hold).await;
        let to = now_ms();
        for at in &meant {
            self.peal.links[*at].set(&Trouble::None)?;
        }
        self.phases.spells.push(Spell { region, from, to });
        Ok(())
    }

    /// The region that is meant, or any.
    fn pick_region(&mut self, region: Option<&str>) -> String {
        let any = self.random.random_range(0..self.peal.regions.len());
        region.unwrap_or(&self.peal.regions[any].name).to_owned()
    }

    /// Lets no packet pass between a region and the rest of the mesh; says what did not work there meanwhile, or after.
    async fn isolate(&mut self, backlog: usize, hold: Duration, region: Option<&str>) -> anyhow::Result<Vec<String>> {
        let region = self.pick_region(region);
        let set = |peal: &Peal, trouble: &Trouble| {
            let mut links = peal.links.iter();
            links.try_for_each(|link| match link.between {
                Between::Regions if link.touches(&region) => link.set(trouble),
                _ => Ok(()),
            })
        };
        set(&self.peal, &Trouble::Hold(Direction::Both))?;
        let (from, end) = (now_ms(), Instant::now() + hold);
        let isolation = Isolation::new(&self.peal, &self.callers, &region, self.phases.spells.len())?;
        let mut failures = isolation.meanwhile(end).await?;
        let chosen = self.callers.those(|_, recipient| recipient.home != region);
        let name = format!("backlog{}", self.phases.spells.len());
        self.callers.hurry(&name, &region, &chosen, backlog).await;
        sleep_until(end).await;
        let to = now_ms();
        set(&self.peal, &Trouble::None)?;
        failures.extend(isolation.afterwards().await?);
        self.phases.spells.push(Spell { region, from, to });
        Ok(failures)
    }

    /// Kills all workers of a region, and starts them again.
    async fn kill_workers(&mut self, hold: Duration, region: Option<&str>) -> anyhow::Result<()> {
        let region = self.pick_region(region);
        let mut workers = self.everyone();
        workers.retain(|target| matches!(target, Target::Worker(at, _) if self.peal.regions[*at].name == region));
        let from = now_ms();
        for worker in &workers {
            self.kill(*worker).await?;
        }
        sleep(hold).await;
        for worker in workers {
            self.start(worker).await?;
        }
        self.phases.spells.push(Spell {
            region,
            from,
            to: now_ms(),
        });
        Ok(())
    }

    async fn swizzle(&mut self, hold: Duration) -> anyhow::Result<()> {
        let mut order: Vec<usize> = (0..self.peal.links.len()).collect();
        let pause = hold / u32::try_from(2 * order.len().max(1)).unwrap_or(1);
        for trouble in [Trouble::Cut, Trouble::None] {
            order.shuffle(&mut self.random);
            for at in &order {
                self.peal.links[*at].set(&trouble)?;
                sleep(pause).await;
            }
        }
        Ok(())
    }

    fn follow(&self, rules: &Rules) -> anyhow::Result<()> {
        self.set_script(rules.provider, rules.rules.clone())
    }

    fn set_script(&self, provider: Provider, rules: Vec<Rule>) -> anyhow::Result<()> {
        let script = Script { seed: self.seed, rules };
        self.peal.simulators.get(provider).script().set(script)
    }

    /// Only the rules that are in force all the time.
    fn follow_lasting(&self) -> anyhow::Result<()> {
        for provider in Provider::ALL {
            let of = self.lasting.iter().filter(|rules| rules.provider == *provider);
            self.set_script(*provider, of.flat_map(|rules| rules.rules.clone()).collect())?;
        }
        Ok(())
    }

    async fn simulator(&mut self, what: Simulator, hold: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + hold;
        let again = Duration::from_millis(200);
        match what {
            Simulator::GoAway => {
                while Instant::now() < end {
                    self.peal.simulators.all().for_each(|simulator| simulator.go_away());
                    sleep(again).await;
                }
            }
            Simulator::Close => {
                while Instant::now() < end {
                    self.peal.simulators.all().for_each(|simulator| simulator.cut());
                    sleep(again).await;
                }
            }
            Simulator::RevokeTokens => self.peal.simulators.fcm.revoke_access_tokens(),
            Simulator::TokensDown => {
                self.peal.simulators.fcm.refuse_tokens(true);
                self.peal.simulators.fcm.revoke_access_tokens();
                sleep(hold).await;
                self.peal.simulators.fcm.refuse_tokens(false);
            }
            Simulator::Restart => {
                self.peal.simulators.apns.stop().await;
                sleep(hold).await;
                self.peal.simulators.apns.start_again().await?;
            }
            Simulator::RevokeKey => {
                let key: ApnsKey = self.peal.simulators.apns.key().clone();
                self.peal.simulators.apns.revoke_key(&key.team_id, &key.key_id);
                sleep(hold).await;
                self.peal.simulators.apns.register_key(&key.into())?;
            }
        }
        Ok(())
    }

    async fn damage(&mut self, file: File, how: How, region: Option<&str>) -> anyhow::Result<()> {
        for target in self.pick(Whom::Worker, region) {
            self.stop(target).await?;
            let data = self.program(target).context("a worker")?.data();
            damage::damage(&data, file, how, &mut self.random)?;
            self.start(target).await?;
        }
        Ok(())
    }

    /// Fills the disk for a while. Whoever ended over it is started again, as a supervisor would.
    async fn fill_disk(&mut self, whom: Whom, hold: Duration, region: Option<&str>) -> anyhow::Result<()> {
        for target in self.pick(whom, region) {
            self.stop(target).await?;
            let disk = Disk::over(&self.files(target), DISK).await?;
            self.start(target).await?;
            disk.fill()?;
            let region = match target {
                Target::Nats(region, _) => Some(region),
                _ => None,
            };
            if let Some(region) = region {
                let noticed = self.is_ready(region, false, NOTICED_WITHIN).await;
                ensure!(noticed, "a gateway does not notice that nothing is stored");
            }
            sleep(hold).await;
            disk.free()?;
            self.disks.push(disk);
            // A server that met a full disk may refuse writes until it is started again, as its gateway says.
            if let Some(region) = region
                && !self.is_ready(region, true, RECOVERED_WITHIN).await
            {
                self.stop(target).await?;
            }
            if self.has_ended(target)? {
                self.start(target).await?;
            }
        }
        Ok(())
    }

    /// Whether a region's gateway comes to say that it is ready, or that it is not.
    async fn is_ready(&self, region: usize, ready: bool, within: Duration) -> bool {
        let url = format!("{}/readyz", self.peal.regions[region].gateway.url);
        let says = async || {
            let answer = self.peal.http.get(&url).send().await;
            answer.is_ok_and(|answer| answer.status().is_success() == ready)
        };
        let saying = async {
            while !says().await {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(within, saying).await.is_ok()
    }

    /// Where it keeps its files.
    fn files(&mut self, target: Target) -> PathBuf {
        match self.program(target) {
            Some(worker) => worker.data(),
            None => self.server(target).store(),
        }
    }

    /// It works on a disk of its own for a while; then what has reached that disk is all there is.
    async fn lose_power(&mut self, whom: Whom, hold: Duration, region: Option<&str>) -> anyhow::Result<()> {
        for target in self.pick(whom, region) {
            self.stop(target).await?;
            let disk = Disk::of_blocks(&self.files(target), DISK).await?;
            self.start(target).await?;
            sleep(hold).await;
            self.signal(target, "STOP").await?;
            disk.remember().await?;
            self.kill(target).await?;
            disk.go_back().await?;
            self.disks.push(disk);
            self.start(target).await?;
        }
        Ok(())
    }

    /// Whoever ended over it is started again, as a supervisor would.
    async fn fail_flushes(&mut self, whom: Whom, hold: Duration, region: Option<&str>) -> anyhow::Result<()> {
        for target in self.pick(whom, region) {
            let pid = match self.program(target) {
                Some(program) => program.process.id(),
                None => self.server(target).pid(),
            };
            let pid = pid.context("a running process")?.to_string();
            let mut tracer = Command::new("strace")
                .args([
                    "--quiet=all",
                    "--follow-forks",
                    "--attach",
                    &pid,
                    "--output",
                    "/dev/null",
                ])
                .args(["--inject=fsync,fdatasync:error=EIO", "--trace=fsync,fdatasync"])
                .kill_on_drop(true)
                .spawn()?;
            sleep(hold).await;
            let id = tracer.id().context("strace ended by itself")?;
            // Told to end, it lets go of the process.
            Command::new("kill").args(["-TERM", &id.to_string()]).status().await?;
            tracer.wait().await?;
            if self.has_ended(target)? {
                self.start(target).await?;
            }
        }
        Ok(())
    }

    async fn set_clock(&mut self, whom: Whom, by_s: i64, hold: Duration, region: Option<&str>) -> anyhow::Result<()> {
        let library = faketime().context("libfaketime is not installed")?;
        let by = format!("{by_s:+}s");
        // Only the time of day; what measures durations is right on a machine whose clock is wrong, too.
        let environment = [
            ("LD_PRELOAD", &*library),
            ("FAKETIME", &*by),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        for target in self.pick(whom, region) {
            let (path, http) = (self.program.clone(), self.peal.http.clone());
            self.stop(target).await?;
            let program = self.program(target).context("a program")?;
            program.restart_with(&path, &[], &environment)?;
            program.wait_ready(&http).await?;
            sleep(hold).await;
            self.stop(target).await?;
            self.start(target).await?;
        }
        Ok(())
    }

    async fn delete_consumer(&mut self, hold: Duration, region: Option<&str>) -> anyhow::Result<()> {
        for target in self.pick(Whom::Worker, region) {
            let Target::Worker(at, _) = target else {
                bail!("a worker")
            };
            let js = connect::jetstream(self.peal.connect(&self.peal.regions[at].name).await?);
            let lane = topology::lane_consumer(Channel::Push, Class::Normal);
            js.get_stream(topology::NOTIFY).await?.delete_consumer(&lane).await?;
            sleep(hold).await;
            self.stop(target).await?;
            self.start(target).await?;
        }
        Ok(())
    }

    /// Until every fresh notification has been pulled, so that what waits is parked.
    async fn nothing_waits(&self) -> anyhow::Result<()> {
        for region in &self.peal.regions {
            let js = connect::jetstream(self.peal.connect(&region.name).await?);
            let notify = js.get_stream(topology::NOTIFY).await?;
            let lane = topology::lane_consumer(Channel::Push, Class::Normal);
            while notify.consumer_info(&lane).await?.num_pending > 0 {
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Half of the connections say nothing, the other half begin a request and go on with it very slowly; others come
    /// and go.
    async fn idle_sockets(&mut self, count: usize, hold: Duration) -> anyhow::Result<()> {
        let url = &self.peal.regions[0].gateway.url;
        let address = url.trim_start_matches("http://").to_owned();
        let mut sockets = Vec::with_capacity(count);
        for _ in 0..count {
            sockets.push(TcpStream::connect(&address).await?);
        }
        for socket in sockets.iter_mut().step_by(2) {
            socket
                .write_all(b"POST /v1/notifications HTTP/1.1\r\nhost: x\r\nx-slow: ")
                .await?;
        }
        let end = Instant::now() + hold;
        while Instant::now() < end {
            for socket in sockets.iter_mut().step_by(2) {
                // The gateway may have had enough of it.
                let (Ok(()) | Err(_)) = socket.write_all(b"x").await;
            }
            for _ in 0..20 {
                drop(TcpStream::connect(&address).await?);
            }
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// While no worker runs: some remove their devices, others do not want to be notified any more, then all are
    /// notified. Whatever arrives is a push that nobody asked for.
    async fn withdraw(&mut self) -> anyhow::Result<()> {
        let region = self.peal.regions[0].name.clone();
        let gone: Vec<Recipient> = (0..16)
            .map(|number| Recipient::new("w", number, &region, &[Provider::Apns], 1))
            .collect::<anyhow::Result<_>>()?;
        load::register(&self.peal, &gone).await?;
        let workers: Vec<Target> = self
            .everyone()
            .into_iter()
            .filter(|target| matches!(target, Target::Worker(0, _)))
            .collect();
        for worker in &workers {
            self.stop(*worker).await?;
        }
        for (number, recipient) in gone.iter().enumerate() {
            let path = format!("/v1/recipients/{}", recipient.id);
            if number % 2 == 0 {
                self.peal
                    .expect("DELETE", &region, &format!("{path}/addresses"), None)
                    .await?;
            } else {
                let opted_out = json!({ "channels": { "push": false } });
                self.peal
                    .expect("PUT", &region, &format!("{path}/preferences"), Some(&opted_out))
                    .await?;
            }
            self.notify(&recipient.id, "withdrawn").await?;
        }
        for worker in workers {
            self.start(worker).await?;
        }
        Ok(())
    }

    async fn notify(&self, recipient: &str, event: &str) -> anyhow::Result<()> {
        let region = &self.peal.regions[0].name;
        load::notify(&self.peal, region, recipient, &format!("{event}-{recipient}")).await?;
        Ok(())
    }

    /// Many devices are registered at once, then all of them by somebody else; both are notified. A device must hear
    /// of the second only.
    async fn stampede(&mut self, count: usize) -> anyhow::Result<Vec<String>> {
        let region = self.peal.regions[0].name.clone();
        let people = |name: &'static str| {
            let region = region.clone();
            move |number| {
                let mut person = Recipient::new("s", number, &region, &[Provider::Apns], 1)?;
                person.id = format!("{name}{number}");
                anyhow::Ok(person)
            }
        };
        let first: Vec<Recipient> = (0..count).map(people("first")).collect::<Result<_, _>>()?;
        let second: Vec<Recipient> = (0..count).map(people("second")).collect::<Result<_, _>>()?;
        load::register(&self.peal, &first).await?;
        load::register(&self.peal, &second).await?;
        for (first, second) in first.iter().zip(&second) {
            self.callers
                .ask_also(load::job(&second.id, &format!("moved-{}", second.id))?);
            self.notify(&first.id, "moved").await?;
            self.notify(&second.id, "moved").await?;
        }
        let tokens: HashSet<&str> = second.iter().map(|person| &*person.devices[0].token).collect();
        let arrived = || {
            let pushes = self.peal.simulators.delivered();
            pushes.filter(|(_, push)| tokens.contains(&*push.token)).count()
        };
        let all = async {
            while arrived() < count {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let in_time = timeout(Duration::from_secs(20), all).await.is_ok();
        Ok(if in_time {
            Vec::new()
        } else {
            vec![format!("{} of {count} devices heard of their new owner", arrived())]
        })
    }
}

/// The library that makes clocks wrong, if it is installed.
pub(super) fn faketime() -> Option<String> {
    let folders = ["/usr/lib64", "/usr/local/lib"].map(PathBuf::from).into_iter();
    let below = std::fs::read_dir("/usr/lib")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths = folders
        .chain(below)
        .map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    paths.find(|path| path.exists())?.to_str().map(str::to_owned)
}

/// Whether strace is there and works.
pub(super) fn may_trace() -> bool {
    let tried = std::process::Command::new("strace")
        .args(["--output", "/dev/null", "true"])
        .output();
    tried.is_ok_and(|output| output.status.success())
}
