//! What came of a scenario: what the callers were told, what the receipts say and what the simulators saw, held against
//! each other.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use async_nats::jetstream::consumer::PullConsumer;
use shared::{
    id::JobId,
    nats::{connect, topology},
    receipt::State,
};
use tokio::time::{Instant, sleep};

use super::{
    figures::Told,
    load::Callers,
    scenario::{Expect, Scenario},
};
use crate::{
    audit::{Audit, Deliveries},
    peal::Peal,
};

/// A redelivery that doubles is only seen after it came, and the server waits half a minute for an acknowledgement.
const QUIET_WITHIN: Duration = Duration::from_secs(40);

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Handed in.
    pub(super) notifications: usize,
    pub(super) refused: usize,
    pub(super) lost: usize,
    pub(super) doubled: usize,
    pub(super) unexplained: usize,
    pub(super) drained_in: Duration,
    /// How many may be doubled.
    pub(super) doubled_at_most: usize,
    /// How long the audit took that `peal verify` makes.
    pub(super) verified_in: Duration,
    pub(super) figures: Vec<String>,
    pub(super) states: BTreeMap<State, usize>,
    /// What is wrong, in words.
    pub(super) complaints: Vec<String>,
    /// Some of the jobs with which something is wrong.
    pub(super) suspects: Vec<JobId>,
    /// Where the lanes' consumers stand.
    pub(super) lanes: Vec<String>,
}

/// Deliveries of which nothing final is known.
struct Count {
    verdict: Verdict,
    pending: usize,
}

/// Waits until everything accepted is settled, or twice the time for that has passed; then judges.
///
/// # Errors
/// When a region does not answer.
pub(super) async fn reach(
    peal: &Peal,
    callers: &Callers,
    scenario: &Scenario,
    (buried, kills): (usize, usize),
) -> anyhow::Result<Verdict> {
    let begun = Instant::now();
    let patience = Duration::from_secs_f64(2.0 * scenario.expect.drain_s);
    let drained_in = loop {
        let audit = Audit::read(peal).await?;
        // Everything is only counted when the streams say that nothing is missing.
        let settled = audit.equation().is_settled()
            && count(peal, callers, &audit, (buried, scenario.expect.trims))
                .await?
                .pending
                == 0;
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
    let mut verdict = count(peal, callers, &audit, (buried, scenario.expect.trims))
        .await?
        .verdict;
    verdict.drained_in = drained_in;
    verdict.verified_in = verified_in;
    verdict.doubled_at_most = scenario.expect.doubled + kills * scenario.expect.doubled_a_kill;
    verdict.lanes = lanes;
    let equation = audit.equation();
    if !equation.holds() && !scenario.expect.trims {
        verdict
            .complaints
            .push(format!("the ledger equation does not hold: {equation}"));
        for broken in &audit.report.broken {
            verdict
                .complaints
                .push(format!("{} {}", broken.count, broken.how.meaning()));
            let named = broken.named.iter().take(3);
            verdict
                .suspects
                .splice(0..0, named.filter_map(|culprit| culprit.id.to_string().parse().ok()));
        }
    }
    if !quiet {
        verdict
            .complaints
            .push("consumers still wait for acknowledgements".to_owned());
    }
    verdict.compare(&scenario.expect);
    Ok(verdict)
}

/// Waits until no lane has anything left, or that took too long; and where each then stands.
async fn wait_quiet(peal: &Peal) -> anyhow::Result<(bool, Vec<String>)> {
    let deadline = Instant::now() + QUIET_WITHIN;
    let (mut quiet, mut lanes) = (true, Vec::new());
    for region in &peal.regions {
        let js = connect::jetstream(peal.connect(&region.name).await?);
        for (stream, config) in topology::workers_consumers(&region.name.parse()?) {
            let name = config.durable_name.unwrap_or_default();
            let mut consumer: PullConsumer = js.get_consumer_from_stream(&name, stream).await?;
            loop {
                let info = consumer.info().await?;
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
    // The last of them may still be on its way to a provider.
    sleep(Duration::from_millis(300)).await;
    Ok((quiet, lanes))
}

async fn count(peal: &Peal, callers: &Callers, audit: &Audit, (buried, trims): (usize, bool)) -> anyhow::Result<Count> {
    let deliveries = Audit::deliveries(peal).await?;
    let mut seen: HashMap<(String, String), usize> = HashMap::new();
    let (mut ids, mut renamed) = (HashMap::new(), 0);
    for (simulator, push) in peal.simulators.delivered() {
        let key = (simulator.job_of(&push).unwrap_or_default(), push.token);
        *seen.entry(key.clone()).or_default() += 1;
        if simulator.keeps_ids() {
            renamed += usize::from(*ids.entry(key).or_insert(push.id.clone()) != push.id);
        }
    }
    let mut count = Count {
        verdict: Verdict::default(),
        pending: 0,
    };
    let verdict = &mut count.verdict;
    let mut known: HashSet<String> = callers.also_asked();
    let mut counted: HashSet<JobId> = HashSet::new();
    let mut of_load = 0;
    for sent in callers.sent() {
        let job = callers.job(&sent)?;
        known.insert(job.to_string());
        verdict.notifications += 1;
        verdict.refused += usize::from(sent.accepted.is_none());
        if sent.accepted.is_none() || !counted.insert(job) {
            continue;
        }
        let last = |key| final_state(&deliveries, &key);
        let whole = last((job, None));
        for device in &callers.recipients[sent.recipient].devices {
            let state = whole.or_else(|| last((job, Some(device.address))));
            let arrived = seen.get(&(job.to_string(), device.token.clone())).copied().unwrap_or(0);
            if arrived > 1 {
                verdict.doubled += arrived - 1;
                verdict.suspect(job);
            }
            let Some(state) = state else {
                count.pending += 1;
                verdict.suspect(job);
                verdict.lose(&format!(
                    "{} to {}: no final receipt, {arrived} arrived",
                    sent.event, device.token
                ));
                continue;
            };
            of_load += usize::from(state == State::Dead);
            *verdict.states.entry(state).or_default() += 1;
            if state == State::Delivered && arrived == 0 {
                verdict.lose(&format!("{} to {}: said to be delivered", sent.event, device.token));
            }
            if state != State::Delivered && arrived > 0 {
                verdict.arrived_anyway(&format!("{} to {}: {state}, and arrived", sent.event, device.token));
            }
        }
    }
    let invented = seen.keys().filter(|(job, _)| !known.contains(job)).count();
    let equation = audit.equation();
    let dead = equation.by_state.get(&State::Dead).copied().unwrap_or(0) - of_load;
    if renamed > 0 {
        verdict
            .complaints
            .push(format!("{renamed} pushes came again under another apns-id"));
    }
    if invented > 0 {
        verdict
            .complaints
            .push(format!("{invented} pushes that nobody asked for"));
    }
    if dead != buried {
        verdict
            .complaints
            .push(format!("{dead} unreadable messages among the dead, of {buried} sent"));
    }
    let wrong = if trims { 0 } else { equation.wrong };
    verdict.unexplained += invented + renamed + wrong + dead.abs_diff(buried);
    Ok(count)
}

fn final_state(deliveries: &Deliveries, key: &(JobId, Option<shared::id::AddressId>)) -> Option<State> {
    let states = deliveries.get(key)?;
    states.iter().rev().copied().find(|state| state.is_final())
}

impl Verdict {
    /// Whether everything was as expected.
    pub(super) fn holds(&self) -> bool {
        self.complaints.is_empty()
    }

    /// Keeps what was measured, and judges what is expected of it.
    pub(super) fn measure(&mut self, told: Told, expect: &Expect) {
        self.figures = told.lines;
        for (name, (least, most)) in &expect.figures {
            match told.values.get(&**name) {
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

    /// The first few are enough to look for a cause.
    fn suspect(&mut self, job: JobId) {
        if self.suspects.len() < 3 {
            self.suspects.push(job);
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
        if expect.arrives_anyway {
            self.complaints.retain(|complaint| !complaint.ends_with("and arrived"));
        }
        for (what, found, most) in [
            ("lost", self.lost, expect.lost),
            ("doubled", self.doubled, self.doubled_at_most),
            ("refused", self.refused, expect.refused),
        ] {
            if found > most {
                self.complaints.push(format!("{found} {what}, at most {most} may be"));
            }
        }
        if self.drained_in.as_secs_f64() > expect.drain_s {
            self.complaints.push(format!(
                "drained in {:.1?}, expected {} s",
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
