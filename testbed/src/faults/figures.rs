//! Figures of a run. They are printed, and judged only where a scenario says so: on a busy machine they would fail
//! without a defect.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    ops::Range,
    time::Duration,
};

use shared::{id::JobId, provider::Provider};

use super::{
    load::{Callers, Sent, is_in_storm},
    scenario::Figure,
};
use crate::{audit::Audit, peal::Peal};

/// A time, milliseconds since the epoch.
type Millis = i64;

/// When faults began and ended.
#[derive(Debug, Clone, Default)]
pub(super) struct Phases {
    /// The first fault began.
    pub(super) first_fault: Millis,
    /// All notifications of a storm were parked.
    pub(super) complete: Millis,
    /// The last fault ended.
    pub(super) healed: Millis,
    /// Faults of single regions, in order.
    pub(super) disturbances: Vec<Disturbance>,
    /// Providers whose simulators followed other rules, and when.
    pub(super) troubles: Vec<(Vec<Provider>, Range<Millis>)>,
}

/// A period in which something was wrong with a region.
#[derive(Debug, Clone)]
pub(super) struct Disturbance {
    pub(super) region: String,
    pub(super) from: Millis,
    pub(super) to: Millis,
}

/// What was measured: as sentences to print, and by name for scenarios that judge it.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) lines: Vec<String>,
    pub(super) values: BTreeMap<&'static str, f64>,
}

impl Findings {
    fn new(line: String) -> Self {
        Self {
            lines: vec![line],
            values: BTreeMap::new(),
        }
    }

    /// Records a value. Of all disturbances, the worst value is judged.
    fn at_worst(&mut self, name: &'static str, value: f64, worse: fn(f64, f64) -> f64) {
        self.values
            .entry(name)
            .and_modify(|worst| *worst = worse(*worst, value))
            .or_insert(value);
    }
}

/// Computes the figure of a scenario.
///
/// # Errors
/// When an id of a notification is invalid, or a region does not answer.
pub(super) async fn figure(
    figure: Figure,
    peal: &Peal,
    callers: &Callers,
    phases: &Phases,
) -> anyhow::Result<Findings> {
    Ok(match figure {
        Figure::DrainRate => drain_rate(&arrivals(peal, callers)?, phases),
        Figure::FreshLatency => fresh_latency(peal, &arrivals(peal, callers)?, phases),
        Figure::Autonomy => autonomy(peal, callers, phases).await?,
        Figure::Spill => spill(peal, phases).await?,
        Figure::LanesApart => lanes_apart(peal, phases),
        Figure::Refused => refused(peal),
    })
}

/// For each push, when its caller began and when it arrived at the provider, in the order of arrival.
fn arrivals(peal: &Peal, callers: &Callers) -> anyhow::Result<Vec<(Millis, Millis)>> {
    let mut jobs: HashMap<String, Sent> = HashMap::new();
    for sent in callers.sent().into_iter().filter(|sent| !is_in_storm(sent.recipient)) {
        jobs.insert(callers.job(&sent)?.to_string(), sent);
    }
    let pushes = peal.simulators.delivered();
    let mut arrivals: Vec<(Millis, Millis)> = pushes
        .filter_map(|(simulator, push)| Some((jobs.get(&simulator.job_of(&push)?)?.at_ms, push.at_ms)))
        .collect();
    arrivals.sort_unstable_by_key(|(_, arrived)| *arrived);
    Ok(arrivals)
}

fn drain_rate(arrivals: &[(Millis, Millis)], phases: &Phases) -> Findings {
    let quiet = rate(
        arrivals
            .iter()
            .map(|arrival| arrival.1)
            .filter(|arrived| *arrived < phases.first_fault),
    );
    let drained = rate(
        arrivals
            .iter()
            .map(|arrival| arrival.1)
            .filter(|arrived| *arrived >= phases.healed),
    );
    Findings::new(format!(
        "{quiet:.0} a second undisturbed, {drained:.0} a second after the heal: {:.0} % (at least 70 % is expected)",
        100.0 * drained / quiet
    ))
}

fn fresh_latency(peal: &Peal, arrivals: &[(Millis, Millis)], phases: &Phases) -> Findings {
    let took = |from: Millis, to: Millis| {
        let begun = arrivals.iter().filter(move |(begun, _)| (from..to).contains(begun));
        Took::of(begun.map(|(begun, arrived)| seconds(arrived - begun)))
    };
    let (quiet, storm) = (took(0, phases.first_fault), took(phases.complete, phases.healed));
    let requests = peal.simulators.all().flat_map(|simulator| simulator.log().pushes());
    let refused = requests.filter(|push| !push.delivered);
    let refused = refused.map(|push| push.at_ms);
    let retries = rate(refused.filter(|at| (phases.complete..phases.healed).contains(at)));
    Findings::new(format!(
        "fresh p99 {quiet} in quiet, {storm} in the storm of {retries:.0} retries a second: {:.1} times (at most 2 is expected)",
        storm.p99 / quiet.p99.max(0.001)
    ))
}

/// What regions did while they were cut off, and how soon everything arrived afterwards.
async fn autonomy(peal: &Peal, callers: &Callers, phases: &Phases) -> anyhow::Result<Findings> {
    let journeys = Journeys::read(peal, callers).await?;
    let begun = || {
        journeys
            .0
            .iter()
            .filter(|journey| !journey.sent.in_burst)
            .map(|journey| journey.sent.at_ms)
    };
    let lasted = seconds(begun().max().unwrap_or_default() - begun().min().unwrap_or_default());
    let sent_to = per_second(begun().count(), lasted);
    let mut findings = Findings::new(format!("{sent_to:.0} a second sent"));
    for disturbance in &phases.disturbances {
        let Disturbance { region, from, to } = disturbance;
        let (quiet, alone) = (
            journeys.accepted(region, 0..phases.first_fault),
            journeys.accepted(region, *from..*to),
        );
        let (own, of_own) = journeys.own(disturbance);
        let own_share = float(own.count) / float(of_own.max(1));
        findings.lines.push(format!(
            "{region} cut off for {:.0} s: accepts in {alone}, in {quiet} before; delivers {:.1} % of its own, in {own}",
            seconds(to - from),
            100.0 * own_share
        ));
        findings.at_worst("accept_p99_ratio", alone.p99 / quiet.p99.max(0.001), f64::max);
        findings.at_worst("own", own_share, f64::min);

        let waited = journeys.waited(disturbance);
        if let (Some(first), Some(last)) = (waited.first(), waited.last()) {
            findings.lines.push(format!(
                "{} waited for the heal: the first arrived {first:.2} s after it, the last after {last:.2} s: {:.0} a second",
                waited.len(),
                per_second(waited.len(), *last),
            ));
            findings.at_worst("first_s", *first, f64::max);
            findings.at_worst("flowed_s", *last, f64::max);
        }
        findings.at_worst("waited", float(waited.len()), f64::min);

        let twice = journeys.accepted_twice(disturbance);
        if twice > 0 {
            findings
                .lines
                .push(format!("{twice} were accepted there and elsewhere"));
        }
        findings.at_worst("twice", float(twice), f64::min);
    }
    Ok(findings)
}

/// Everything that was sent.
struct Journeys(Vec<Journey>);

/// One notification, and when it reached each place.
struct Journey {
    sent: Sent,
    job: JobId,
    home: String,
    /// When the home region of its recipient stored it.
    stored: Option<Millis>,
    /// When it arrived at its provider.
    arrived: Option<Millis>,
}

impl Journey {
    /// Whether its caller received the acceptance before `then`.
    fn is_accepted_before(&self, then: Millis) -> bool {
        self.sent
            .accepted
            .is_some_and(|took| self.sent.at_ms + millis(took) < then)
    }
}

impl Journeys {
    async fn read(peal: &Peal, callers: &Callers) -> anyhow::Result<Self> {
        let stored = Audit::stored(peal).await?;
        let mut arrived: HashMap<String, Millis> = HashMap::new();
        for (simulator, push) in peal.simulators.delivered() {
            if let Some(job) = simulator.job_of(&push) {
                arrived.entry(job).or_insert(push.at_ms);
            }
        }
        let journey = callers.sent().into_iter().map(|sent| {
            let job = callers.job(&sent)?;
            anyhow::Ok(Journey {
                job,
                home: callers.recipients[sent.recipient].home.clone(),
                stored: stored.get(&job).copied(),
                arrived: arrived.get(&job.to_string()).copied(),
                sent,
            })
        });
        Ok(Self(journey.collect::<Result<_, _>>()?))
    }

    /// The notifications of the load that callers sent to `region` in that period.
    fn sent_to(&self, region: &str, when: Range<Millis>) -> impl Iterator<Item = &Journey> {
        let there = self
            .0
            .iter()
            .filter(move |journey| journey.sent.from == region && !journey.sent.in_burst);
        there.filter(move |journey| when.contains(&journey.sent.at_ms))
    }

    /// How long those took to be accepted.
    fn accepted(&self, region: &str, when: Range<Millis>) -> Took {
        let took = self.sent_to(region, when).filter_map(|journey| journey.sent.accepted);
        Took::of(took.map(|took| took.as_secs_f64()))
    }

    /// How long a region needed to deliver the notifications for its own recipients that it accepted while it was cut off,
    /// and how many those were.
    fn own(&self, Disturbance { region, from, to }: &Disturbance) -> (Took, usize) {
        // A notification of the last second may arrive after the heal.
        let own = || {
            self.sent_to(region, *from..*to - 1000)
                .filter(|journey| journey.home == *region)
        };
        let arrived = own().filter_map(|journey| Some((journey.sent.at_ms, journey.arrived?)));
        let arrived = arrived.filter(|(_, arrived)| arrived < to);
        (
            Took::of(arrived.map(|(begun, arrived)| seconds(arrived - begun))),
            own().count(),
        )
    }

    /// For each notification between this region and others that waited for the heal, how many seconds after the heal it
    /// arrived there.
    fn waited(&self, Disturbance { region, to, .. }: &Disturbance) -> Vec<f64> {
        let crosses = |journey: &&Journey| (journey.sent.from == *region) != (journey.home == *region);
        let accepted = self
            .0
            .iter()
            .filter(crosses)
            .filter(|journey| journey.is_accepted_before(*to));
        let came = accepted.filter_map(|journey| journey.stored).filter(|came| came >= to);
        let mut waited: Vec<f64> = came.map(|came| seconds(came - to)).collect();
        waited.sort_unstable_by(f64::total_cmp);
        waited
    }

    /// How many notifications a region accepted while it was cut off that another region accepted too.
    fn accepted_twice(&self, Disturbance { region, from, to }: &Disturbance) -> usize {
        let meanwhile = |journey: &&Journey| journey.sent.at_ms >= *from && journey.is_accepted_before(*to);
        let (here, elsewhere): (Vec<&Journey>, Vec<&Journey>) = self
            .0
            .iter()
            .filter(meanwhile)
            .partition(|journey| journey.sent.from == *region);
        let here: HashSet<JobId> = here.into_iter().map(|journey| journey.job).collect();
        let elsewhere: HashSet<JobId> = elsewhere.into_iter().map(|journey| journey.job).collect();
        here.intersection(&elsewhere).count()
    }
}

/// How soon the workers of other regions delivered for a region whose own workers could not, and when they stopped.
async fn spill(peal: &Peal, phases: &Phases) -> anyhow::Result<Findings> {
    let mut delivered = Audit::delivered(peal).await?;
    delivered.sort_unstable_by_key(|delivered| delivered.at_ms);
    let mut findings = Findings::default();
    for Disturbance { region, from, to } in &phases.disturbances {
        let of_region = || delivered.iter().filter(|delivered| delivered.region == *region);
        let helped =
            |since: Millis| of_region().filter(move |delivered| delivered.by.is_some() && delivered.at_ms >= since);
        let first = helped(*from)
            .next()
            .map_or(f64::INFINITY, |first| seconds(first.at_ms - from));
        let last = helped(*to).next_back().map_or(0.0, |last| seconds(last.at_ms - to));
        let home = of_region()
            .filter(|delivered| delivered.by.is_none() && delivered.at_ms >= *to)
            .count();
        findings.lines.push(format!(
            "{region} in trouble for {:.1} s: the first delivery by a helper after {first:.2} s, {} in all, the last \
             {last:.2} s after the end; then {home} by its own workers",
            seconds(to - from),
            helped(*from).count(),
        ));
        findings.at_worst("first_s", first, f64::max);
        findings.at_worst("helped", float(helped(*from).count()), f64::min);
        findings.at_worst("ended_s", last, f64::max);
        findings.at_worst("home", float(home), f64::min);
    }
    Ok(findings)
}

/// What each provider without trouble got a second while others had it, as a share of what it got before.
fn lanes_apart(peal: &Peal, phases: &Phases) -> Findings {
    let mut arrived: BTreeMap<Provider, Vec<Millis>> = BTreeMap::new();
    for (simulator, push) in peal.simulators.delivered() {
        arrived.entry(simulator.provider()).or_default().push(push.at_ms);
    }
    let began = arrived.values().flatten().min().copied().unwrap_or_default();
    let mut findings = Findings::default();
    for (troubled, during) in &phases.troubles {
        for (provider, at) in arrived.iter().filter(|(provider, _)| !troubled.contains(provider)) {
            let rate_within = |period: Range<Millis>| {
                let count = at.iter().filter(|at| period.contains(at)).count();
                per_second(count, seconds(period.end - period.start))
            };
            let (before, meanwhile) = (rate_within(began..phases.first_fault), rate_within(during.clone()));
            let kept = meanwhile / before;
            findings.lines.push(format!(
                "{provider}: {before:.1} a second before, {meanwhile:.1} during the trouble: {:.1} % (at least 95 % is expected)",
                100.0 * kept
            ));
            findings.at_worst("kept", kept, f64::min);
        }
    }
    findings
}

fn refused(peal: &Peal) -> Findings {
    let pushes = peal.simulators.apns.log().pushes();
    let times = || pushes.iter().map(|push| push.at_ms);
    let took = seconds(times().max().unwrap_or_default() - times().min().unwrap_or_default());
    let refused = pushes.iter().filter(|push| !push.delivered).count();
    let mut findings = Findings::new(format!(
        "{:.0} requests a second reached Apple, which refused {refused} of {} (none is expected)",
        per_second(pushes.len(), took),
        pushes.len()
    ));
    findings.at_worst("refused", per_second(refused, 1.0), f64::max);
    findings
}

/// How long things took, in seconds.
#[derive(Debug, Clone, Copy, Default)]
struct Took {
    p50: f64,
    p99: f64,
    count: usize,
}

impl Took {
    fn of(took: impl Iterator<Item = f64>) -> Self {
        let mut took: Vec<f64> = took.collect();
        took.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
        Self {
            p50: at(50),
            p99: at(99),
            count: took.len(),
        }
    }
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99) = (1000.0 * self.p50, 1000.0 * self.p99);
        write!(f, "{p50:.1} ms, p99 {p99:.1} ms ({})", self.count)
    }
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

fn seconds(millis: Millis) -> f64 {
    Duration::from_millis(u64::try_from(millis).unwrap_or_default()).as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "no load has 2^52 notifications")]
fn float(count: usize) -> f64 {
    count as f64
}

fn per_second(count: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { float(count) / seconds } else { 0.0 }
}

/// How many arrived a second. The last twentieth is left out, because stragglers would distort the rate.
fn rate(times: impl Iterator<Item = Millis>) -> f64 {
    let arrivals: Vec<Millis> = times.collect();
    let most = arrivals.len() * 19 / 20;
    match (arrivals.first(), arrivals.get(most.saturating_sub(1))) {
        (Some(first), Some(last)) => per_second(most, seconds(last - first)),
        _ => 0.0,
    }
}
