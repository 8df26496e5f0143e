//! The verdict on a scenario. It compares the answers that callers got, the receipts, and the pushes that arrived at the
//! simulators.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use async_nats::jetstream::{
    self,
    consumer::{self, PullConsumer},
};
use shared::{
    channel::Channel,
    id::JobId,
    nats::{audit::Break, connect, leader, topology},
    receipt::State,
};
use tokio::time::{Instant, sleep};

use super::{
    figures::Findings,
    load::{Callers, Recipient},
    scenario::{Expect, Scenario},
};
use crate::{
    audit::{Audit, Deliveries},
    peal::Peal,
};

/// The server redelivers a message after half a minute without an acknowledgement; a push that is doubled by that shows
/// only afterwards.
const QUIET_WITHIN: Duration = Duration::from_secs(40);

/// What the injector did that explains deviations.
#[derive(Debug, Clone, Copy)]
pub(super) struct Made {
    /// How many unreadable messages were sent.
    pub(super) unreadable: usize,
    /// How often a worker was killed.
    pub(super) worker_kills: usize,
}

/// What was counted, and which expectations are not met.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Notifications that were sent.
    pub(super) notifications: usize,
    pub(super) refused: usize,
    pub(super) lost: usize,
    pub(super) doubled: usize,
    pub(super) unexplained: usize,
    pub(super) drained_in: Duration,
    /// How many pushes may be doubled.
    pub(super) doubled_at_most: usize,
    /// How long an audit took; it is the one that `peal verify` makes.
    pub(super) verified_in: Duration,
    pub(super) figures: Vec<String>,
    pub(super) states: BTreeMap<State, usize>,
    /// Every unmet expectation, as a sentence.
    pub(super) complaints: Vec<String>,
    /// Some of the jobs that are lost, doubled or not final.
    pub(super) suspects: Vec<JobId>,
    /// The state of the lanes' consumers.
    pub(super) lanes: Vec<String>,
}

/// A verdict so far.
struct Count {
    verdict: Verdict,
    /// Deliveries without a final receipt.
    pending: usize,
}

/// Waits until everything accepted is settled, or until twice the expected time has passed; then judges.
///
/// # Errors
/// When a region does not answer.
pub(super) async fn reach(peal: &Peal, callers: &Callers, scenario: &Scenario, made: Made) -> anyhow::Result<Verdict> {
    let begun = Instant::now();
    let patience = Duration::from_secs_f64(2.0 * scenario.expect.drain_s);
    let drained_in = loop {
        let audit = Audit::read(peal).await?;
        // Counting is expensive, so it waits until the equation says that nothing is in flight.
        let settled = audit.equation().in_flight == 0
            && is_explained(&audit, &scenario.expect)
            && count(peal, callers, &audit, made.unreadable, &scenario.expect)
                .await?
                .pending
                <= scenario.expect.lost;
        let drained_in = begun.elapsed();
        if settled || drained_in >= patience {
            break drained_in;
        }
        sleep(Duration::from_millis(300)).await;
    };
    let (quiet, lanes) = wait_quiet(peal).await?;
    let verifying = Instant::now();
    let audit = Audit::read(peal).await?;
    let verified_in = verifying.elapsed();
    let mut verdict = count(peal, callers, &audit, made.unreadable, &scenario.expect)
        .await?
        .verdict;
    verdict.drained_in = drained_in;
    verdict.verified_in = verified_in;
    verdict.doubled_at_most = scenario.expect.doubled + made.worker_kills * scenario.expect.doubled_a_kill;
    verdict.lanes = lanes;
    if !scenario.expect.trims && !is_explained(&audit, &scenario.expect) {
        verdict.judge_equation(&audit);
    }
    if !quiet {
        verdict
            .complaints
            .push("consumers still wait for acknowledgements".to_owned());
    }
    verdict.compare(&scenario.expect);
    Ok(verdict)
}

/// Waits until no lane has messages left, for at most [`QUIET_WITHIN`]. Returns whether all were empty, and the state of
/// each.
async fn wait_quiet(peal: &Peal) -> anyhow::Result<(bool, Vec<String>)> {
    let deadline = Instant::now() + QUIET_WITHIN;
    let (mut quiet, mut lanes) = (true, Vec::new());
    for region in &peal.regions {
        let js = connect::jetstream(peal.connect(&region.name).await?);
        let name = region.name.parse()?;
        // Former programs know neither overflows nor channels besides push.
        let consumers = match peal.former() {
            Some(_) => topology::former_consumers(&name),
            None => topology::workers_consumers(&name),
        };
        for (stream, config) in consumers {
            let name = config.durable_name.unwrap_or_default();
            loop {
                let info = consumer_state(&js, &name, stream).await?;
                let left = info.num_pending > 0 || info.num_ack_pending > 0;
                if left && Instant::now() < deadline {
                    sleep(Duration::from_millis(200)).await;
                    continue;
                }
                quiet &= !left;
                lanes.push(format!(
                    "{name} of {}: delivered to #{} ({} messages), acknowledged to #{} ({}), {} wait, {} unacknowledged",
                    region.name,
                    info.delivered.stream_sequence,
                    info.delivered.consumer_sequence,
                    info.ack_floor.stream_sequence,
                    info.ack_floor.consumer_sequence,
                    info.num_pending,
                    info.num_ack_pending
                ));
                break;
            }
        }
    }
    // The last push may still be on its way to a provider.
    sleep(Duration::from_millis(300)).await;
    Ok((quiet, lanes))
}

/// The state of a consumer. After a server was killed or a stream deleted, there may be none for a few seconds.
async fn consumer_state(js: &jetstream::Context, name: &str, stream: &str) -> anyhow::Result<consumer::Info> {
    let ask = async || {
        let found: Result<PullConsumer, _> = js.get_consumer_from_stream(name, stream).await;
        found.map(|consumer| consumer.cached_info().clone())
    };
    Ok(leader::patiently("a lane", |_| true, ask).await?)
}

/// Whether the equation holds, or only what was in deleted streams is missing, and no more than expected.
fn is_explained(audit: &Audit, expect: &Expect) -> bool {
    let broken = &audit.report.broken;
    broken.iter().all(|broken| broken.how == Break::StreamDeleted) && audit.equation().lost <= expect.lost
}

async fn count(
    peal: &Peal,
    callers: &Callers,
    audit: &Audit,
    unreadable: usize,
    expect: &Expect,
) -> anyhow::Result<Count> {
    let deliveries = Audit::deliveries(peal).await?;
    let arrivals = Arrivals::read(peal, &callers.jobs_by_delivery()?);
    let mut count = Count {
        verdict: Verdict::default(),
        pending: 0,
    };
    let verdict = &mut count.verdict;
    let mut known: HashSet<String> = callers.also_expected();
    let mut counted: HashSet<JobId> = HashSet::new();
    let besides = callers.expected_deliveries().into_iter();
    let mut expected: Vec<(JobId, String, Recipient, Channel)> = besides
        .map(|(job, recipient)| (job, recipient.id.clone(), recipient, Channel::Push))
        .collect();
    for sent in callers.sent() {
        verdict.notifications += 1;
        verdict.refused += usize::from(sent.accepted.is_none());
        for step in callers.steps(&sent) {
            let job = callers.job(&step)?;
            known.insert(job.to_string());
            if step.accepted.is_some() && counted.insert(job) {
                let recipient = callers.recipients[step.recipient].clone();
                expected.push((job, step.event, recipient, step.channel));
            }
        }
    }
    for (job, what, recipient, channel) in expected {
        let whole = final_state(&deliveries, &(job, None));
        for device in recipient.on(channel) {
            let state = whole.or_else(|| final_state(&deliveries, &(job, Some(device.address))));
            let arrived = arrivals.count(job, &device.token);
            if state.is_none() && arrived > 0 && expect.receipts_lost {
                continue;
            }
            let what = format!("{what} to {}", device.token);
            count.pending += usize::from(state.is_none());
            verdict.judge_delivery(job, &what, state, arrived);
        }
    }
    let invented = arrivals.of_other_jobs(&known);
    let equation = audit.equation();
    let all_dead = equation.by_state.get(&State::Dead).copied().unwrap_or(0);
    let dead = all_dead - verdict.states.get(&State::Dead).copied().unwrap_or(0);
    let renamed = arrivals.renamed;
    if renamed > 0 {
        verdict
            .complaints
            .push(format!("{renamed} pushes were repeated under another id"));
    }
    if invented > 0 {
        verdict
            .complaints
            .push(format!("{invented} pushes arrived that no caller sent"));
    }
    if dead != unreadable {
        verdict.complaints.push(format!(
            "{dead} dead letters of unreadable messages, {unreadable} were sent"
        ));
    }
    let wrong = if expect.trims { 0 } else { equation.wrong };
    verdict.unexplained += invented + renamed + wrong + dead.abs_diff(unreadable);
    Ok(count)
}

/// The pushes that arrived at the simulators.
struct Arrivals {
    /// How often each job arrived at each token.
    by_job_and_token: HashMap<(String, String), usize>,
    /// Pushes that were repeated under another id although the provider keeps ids.
    renamed: usize,
}

impl Arrivals {
    /// `jobs` names the jobs of messages that name their delivery instead.
    fn read(peal: &Peal, jobs: &HashMap<String, String>) -> Self {
        let mut arrivals = Self {
            by_job_and_token: HashMap::new(),
            renamed: 0,
        };
        let mut ids = HashMap::new();
        for (simulator, push) in peal.simulators.delivered() {
            let job = simulator.job_of(&push);
            let job = job.or_else(|| jobs.get(simulator.delivery_of(&push)?).cloned());
            let key = (job.unwrap_or_default(), push.token);
            *arrivals.by_job_and_token.entry(key.clone()).or_default() += 1;
            if simulator.keeps_ids() {
                let first = ids.entry(key).or_insert_with(|| push.id.clone());
                arrivals.renamed += usize::from(*first != push.id);
            }
        }
        arrivals
    }

    fn count(&self, job: JobId, token: &str) -> usize {
        let key = (job.to_string(), token.to_owned());
        self.by_job_and_token.get(&key).copied().unwrap_or(0)
    }

    /// How many pairs of job and token belong to none of the known jobs.
    fn of_other_jobs(&self, known: &HashSet<String>) -> usize {
        let keys = self.by_job_and_token.keys();
        keys.filter(|(job, _)| !known.contains(job)).count()
    }
}

fn final_state(deliveries: &Deliveries, key: &(JobId, Option<shared::id::AddressId>)) -> Option<State> {
    let states = deliveries.get(key)?;
    states.iter().rev().copied().find(|state| state.is_final())
}

impl Verdict {
    /// Whether every expectation is met.
    pub(super) fn holds(&self) -> bool {
        self.complaints.is_empty()
    }

    /// Records the findings, and judges those that the scenario has expectations for.
    pub(super) fn measure(&mut self, findings: Findings, expect: &Expect) {
        self.figures = findings.lines;
        for (name, (least, most)) in &expect.figures {
            match findings.values.get(&**name) {
                Some(value) if (*least..=*most).contains(value) => {}
                Some(value) => self
                    .complaints
                    .push(format!("{name} is {value:.3}, expected {least} to {most}")),
                None => self
                    .complaints
                    .push(format!("expect.figures.{name} is not measured here")),
            }
        }
    }

    /// Remembers the first few jobs, which are enough to look for a cause.
    fn suspect(&mut self, job: JobId) {
        if self.suspects.len() < 3 {
            self.suspects.push(job);
        }
    }

    /// Complains if the ledger equation does not hold.
    fn judge_equation(&mut self, audit: &Audit) {
        let equation = audit.equation();
        if equation.holds() {
            return;
        }
        self.complaints
            .push(format!("the ledger equation does not hold: {equation}"));
        for broken in &audit.report.broken {
            self.complaints
                .push(format!("{} {}", broken.count, broken.how.meaning()));
            let named = broken.named.iter().take(3);
            self.suspects
                .splice(0..0, named.filter_map(|culprit| culprit.id.to_string().parse().ok()));
        }
    }

    /// Compares the final state of a delivery with how often it arrived.
    fn judge_delivery(&mut self, job: JobId, what: &str, state: Option<State>, arrived: usize) {
        if arrived > 1 {
            self.doubled += arrived - 1;
            self.suspect(job);
        }
        let Some(state) = state else {
            self.suspect(job);
            self.lose(&format!("{what}: no final receipt, {arrived} arrived"));
            return;
        };
        *self.states.entry(state).or_default() += 1;
        if state == State::Delivered && arrived == 0 {
            self.lose(&format!("{what}: delivered by its receipt, but it did not arrive"));
        }
        if state != State::Delivered && arrived > 0 {
            self.arrived_anyway(&format!("{what}: {state}, and arrived"));
        }
    }

    fn lose(&mut self, what: &str) {
        self.lost += 1;
        self.mention(what);
    }

    fn arrived_anyway(&mut self, what: &str) {
        self.unexplained += 1;
        self.mention(what);
    }

    fn mention(&mut self, what: &str) {
        if self.complaints.len() < 5 {
            self.complaints.push(what.to_owned());
        }
    }

    fn compare(&mut self, expect: &Expect) {
        if self.lost <= expect.lost {
            self.complaints
                .retain(|complaint| !complaint.contains("no final receipt"));
        }
        if expect.arrives_anyway {
            self.complaints.retain(|complaint| !complaint.ends_with("and arrived"));
        }
        for (what, found, most) in [
            ("lost", self.lost, expect.lost),
            ("doubled", self.doubled, self.doubled_at_most),
            ("refused", self.refused, expect.refused),
        ] {
            if found > most {
                self.complaints.push(format!("{found} {what}, expected at most {most}"));
            }
        }
        if self.drained_in.as_secs_f64() > expect.drain_s {
            self.complaints.push(format!(
                "drained in {:.1?}, expected at most {} s",
                self.drained_in, expect.drain_s
            ));
        }
        let all: usize = self.states.values().sum();
        let usual = BTreeMap::from([(State::Delivered, (1.0, 1.0))]);
        let expected = if expect.states.is_empty() {
            &usual
        } else {
            &expect.states
        };
        for state in State::ALL {
            let (least, most) = expected.get(state).copied().unwrap_or((0.0, 0.0));
            #[expect(clippy::cast_precision_loss, reason = "no load has 2^52 notifications")]
            let share = self.states.get(state).copied().unwrap_or(0) as f64 / all.max(1) as f64;
            if !(least..=most).contains(&share) {
                self.complaints.push(format!(
                    "{:.1} % {state}, expected {} to {} %",
                    100.0 * share,
                    100.0 * least,
                    100.0 * most
                ));
            }
        }
    }
}
