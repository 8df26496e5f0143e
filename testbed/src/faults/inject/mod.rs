//! Makes the faults of a scenario in a running mesh.

mod back_to_back;
mod callers;
mod files;
mod network;
mod processes;
mod simulators;
mod streams;
mod stuck;
mod victims;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use rand::{Rng, rngs::StdRng};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use self::victims::Victim;
pub(super) use self::{files::may_trace, processes::faketime};
use super::{
    disk::Disk,
    figures::Phases,
    load::Callers,
    nonsense,
    scenario::{Fault, Inject, Range, Rules, Scenario},
    verdict::Made,
};
use crate::{links::Trouble, peal::Peal, providers::now_ms};

/// The mesh, and what was done to it. The disks come first, so that they are unmounted before the folders under them
/// are removed.
#[derive(Debug)]
pub(super) struct Injector {
    disks: Vec<Disk>,
    pub(super) peal: Peal,
    callers: Arc<Callers>,
    random: StdRng,
    seed: u64,
    program: PathBuf,
    /// The rules that simulators follow during the whole scenario.
    lasting: Vec<Rules>,
    /// How many broadcasts were sent.
    broadcasts: usize,
    /// How often a worker was killed.
    kills: usize,
    pub(super) phases: Phases,
    /// How many of the messages that were sent are unreadable, and must end as dead letters.
    unreadable: usize,
    /// What goes on while the next faults are made.
    background: JoinSet<anyhow::Result<()>>,
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
            broadcasts: 0,
            kills: 0,
            phases: Phases::default(),
            unreadable: 0,
            background: JoinSet::new(),
        }
    }

    /// What the verdict has to know about the faults.
    pub(super) fn made(&self) -> Made {
        Made {
            unreadable: self.unreadable,
            worker_kills: self.kills,
        }
    }

    /// Makes every fault when its share of `notifications` has been sent. Returns the failures that the faults themselves
    /// found.
    ///
    /// # Errors
    /// When a fault could not be made or healed.
    pub(super) async fn run(&mut self, scenario: &Scenario, notifications: usize) -> anyhow::Result<Vec<String>> {
        self.lasting.clone_from(&scenario.scripts);
        self.follow_lasting()?;
        let (unreadable, mut failures) = nonsense::send(&self.peal, &self.callers, scenario).await?;
        self.unreadable = unreadable;
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
        self.end_background().await?;
        self.phases.healed = now_ms();
        Ok(failures)
    }

    /// Ends whatever a failed fault may have left behind, and waits until every part works again.
    ///
    /// # Errors
    /// When a part does not come back.
    pub(super) async fn heal(&mut self) -> anyhow::Result<()> {
        self.follow_lasting()?;
        for link in &self.peal.links {
            link.set(&Trouble::None)?;
        }
        for victim in self.everyone() {
            if self.has_ended(victim)? {
                self.start(victim).await?;
            }
        }
        self.peal.nats.linked().await
    }

    async fn inject(&mut self, fault: &Fault) -> anyhow::Result<Vec<String>> {
        let hold = Duration::from_secs_f64(self.within(fault.for_s));
        let region = fault.region.as_deref();
        if self.phases.first_fault == 0 {
            self.phases.first_fault = now_ms();
        }
        match &fault.inject {
            Inject::Kill(kind) => self.kill_and_start(*kind, hold, region).await?,
            Inject::Pause(kind) => self.pause(*kind, hold, region).await?,
            Inject::Restart(kind) => self.restart(*kind, region).await?,
            Inject::Replace { whom, with, kill } => self.replace(whom, *with, *kill).await?,
            Inject::Majority => self.kill_majority(hold, region).await?,
            Inject::Squeeze(kind) => self.squeeze(*kind, region, hold).await?,
            Inject::Crash { points, passing } => {
                for point in points {
                    self.crash(point, *passing, hold, region).await?;
                }
            }
            Inject::Links { between, trouble } => self.trouble(*between, trouble, hold, region).await?,
            Inject::Isolate { backlog } => return self.isolate(*backlog, hold, region).await,
            Inject::NoWorkers => self.kill_workers(hold, region).await?,
            Inject::Swizzle => self.swizzle(hold).await?,
            Inject::Script(scripts) => self.follow_for(scripts, hold).await?,
            Inject::Simulator(action) => self.simulator(*action, hold).await?,
            Inject::Damage { file, how } => self.damage(*file, *how, region).await?,
            Inject::SetBack => self.set_back(hold, region).await?,
            Inject::Copied => self.copy_files(region).await?,
            Inject::DiskFull(kind) => self.fill_disk(*kind, hold, region).await?,
            Inject::PowerLoss(kind) => self.lose_power(*kind, hold, region).await?,
            Inject::FlushErrors(kind) => self.fail_flushes(*kind, hold, region).await?,
            Inject::Clock { whom, by_s } => self.set_clock(*whom, *by_s, hold, region).await?,
            Inject::ConsumerDeleted => self.delete_consumer(hold, region).await?,
            Inject::StreamsDeleted(streams) => return self.delete_streams(streams, hold, region).await,
            Inject::LeadersChange(streams) => self.change_leaders(streams, hold, region).await?,
            Inject::BackToBack(count) => self.begin_back_to_back(*count, region)?,
            Inject::Replay => self.replay().await?,
            Inject::IdleSockets(count) => self.idle_sockets(*count, hold).await?,
            Inject::Storm { count, answer } => self.storm(*count, answer, hold).await?,
            Inject::Withdrawal => self.withdraw().await?,
            Inject::Stampede(count) => return self.stampede(*count).await,
            Inject::Broadcast(members) => self.broadcast(*members).await?,
            Inject::Move(count) => self.move_recipients(*count).await?,
            Inject::Stuck(devices) => return self.get_stuck(*devices).await,
        }
        Ok(Vec::new())
    }

    /// A random number in the range.
    fn within(&mut self, (least, most): Range) -> f64 {
        self.random.random_range(least..=most)
    }
}
