//! Figures of a run: what is told, and judged only where a scenario says so, because a busy machine would judge with.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use shared::id::JobId;

use super::{
    load::{Callers, Sent, is_stormy},
    scenario::Figure,
};
use crate::{audit::Audit, peal::Peal};

/// When something happened, milliseconds since 1970.
type Millis = i64;

/// When faults were made and healed.
#[derive(Debug, Clone, Default)]
pub(super) struct Phases {
    /// The first fault begins.
    pub(super) struck: Millis,
    /// It is whole: the storm is handed in, the links are cut.
    pub(super) whole: Millis,
    /// The last has ended.
    pub(super) healed: Millis,
    /// What befell single regions, in order.
    pub(super) spells: Vec<Spell>,
}

/// For how long something was wrong with a region.
#[derive(Debug, Clone)]
pub(super) struct Spell {
    pub(super) region: String,
    pub(super) from: Millis,
    pub(super) to: Millis,
}

/// What was measured: in sentences, and by name for scenarios that judge it.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) lines: Vec<String>,
    pub(super) values: BTreeMap<&'static str, f64>,
}

impl Told {
    fn new(line: String) -> Self {
        Self {
            lines: vec![line],
            values: BTreeMap::new(),
        }
    }

    /// The worst of all spells is what is judged.
    fn at_worst(&mut self, name: &'static str, value: f64, worse: fn(f64, f64) -> f64) {
        self.values
            .entry(name)
            .and_modify(|worst| *worst = worse(*worst, value))
            .or_insert(value);
    }
}

/// The figure of a scenario.
///
/// # Errors
/// When the ids of what was sent are wrong, or a region does not answer.
pub(super) async fn figure(figure: Figure, peal: &Peal, callers: &Callers, phases: &Phases) -> anyhow::Result<Told> {
    Ok(match figure {
        Figure::DrainRate => drain_rate(&ways(peal, callers)?, phases),
        Figure::FreshLatency => fresh_latency(&ways(peal, callers)?, phases),
        Figure::Autonomy => autonomy(peal, callers, phases).await?,
        Figure::Spill => spill(peal, phases).await?,
    })
}

/// When the caller began and when the provider had it, in the order of the latter.
fn ways(peal: &Peal, callers: &Callers) -> anyhow::Result<Vec<(Millis, Millis)>> {
    let mut jobs: HashMap<String, Sent> = HashMap::new();
    for sent in callers.sent().into_iter().filter(|sent| !is_stormy(sent.recipient)) {
        jobs.insert(callers.job(&sent)?.to_string(), sent);
    }
    let pushes = peal.apns.log().delivered();
    let mut ways: Vec<(Millis, Millis)> = pushes
        .iter()
        .filter_map(|push| Some((jobs.get(push.collapse_id.as_deref()?)?.at_ms, push.at_ms)))
        .collect();
    ways.sort_unstable_by_key(|(_, arrived)| *arrived);
    Ok(ways)
}

fn drain_rate(ways: &[(Millis, Millis)], phases: &Phases) -> Told {
    let quiet = rate(ways.iter().map(|way| way.1).filter(|arrived| *arrived < phases.struck));
    let drained = rate(ways.iter().map(|way| way.1).filter(|arrived| *arrived >= phases.healed));
    Told::new(format!(
        "{quiet:.0} a second undisturbed, {drained:.0} a second after the heal: {:.0} % (70 % are wanted)",
        100.0 * drained / quiet
    ))
}

fn fresh_latency(ways: &[(Millis, Millis)], phases: &Phases) -> Told {
    let took = |from: Millis, to: Millis| {
        let begun = ways.iter().filter(move |(begun, _)| (from..to).contains(begun));
        Took::of(begun.map(|(begun, arrived)| seconds(arrived - begun)))
    };
    let (quiet, storm) = (took(0, phases.struck), took(phases.whole, phases.healed));
    Told::new(format!(
        "fresh p99 {quiet} in quiet, {storm} in the storm: {:.1} times (2 are allowed)",
        storm.p99 / quiet.p99.max(0.001)
    ))
}

/// What regions did while they were cut off, and how soon everything flowed after.
async fn autonomy(peal: &Peal, callers: &Callers, phases: &Phases) -> anyhow::Result<Told> {
    let stored = Audit::stored(peal).await?;
    let mut arrived: HashMap<String, Millis> = HashMap::new();
    for push in peal.apns.log().delivered() {
        if let Some(job) = push.collapse_id {
            arrived.entry(job).or_insert(push.at_ms);
        }
    }
    let sent: Vec<(Sent, JobId)> = callers
        .sent()
        .into_iter()
        .map(|sent| callers.job(&sent).map(|job| (sent, job)))
        .collect::<Result<_, _>>()?;
    let home = |sent: &Sent| &*callers.recipients[sent.recipient].home;
    let load = || sent.iter().filter(|(sent, _)| !sent.hurried);
    let begun = || load().map(|(sent, _)| sent.at_ms);
    let lasted = seconds(begun().max().unwrap_or_default() - begun().min().unwrap_or_default());
    let mut told = Told::new(format!("{:.0} a second handed in", per_second(load().count(), lasted)));
    for Spell { region, from, to } in &phases.spells {
        // Waited at the heal for the way to another region or from it, and when it came to where it is worked on.
        let waited = sent.iter().filter_map(|(sent, job)| {
            let crosses = (sent.from == *region) != (home(sent) == region);
            let before = sent.accepted.is_some_and(|took| sent.at_ms + millis(took) < *to);
            let came = *stored.get(job)?;
            (crosses && before && came >= *to).then(|| seconds(came - to))
        });
        let mut waited: Vec<f64> = waited.collect();
        waited.sort_unstable_by(f64::total_cmp);
        let (first, last) = (
            waited.first().copied().unwrap_or_default(),
            waited.last().copied().unwrap_or_default(),
        );

        let accepted = |from: Millis, to: Millis| {
            let there = load().filter(move |(sent, _)| sent.from == *region && (from..to).contains(&sent.at_ms));
            Took::of(there.filter_map(|(sent, _)| Some(sent.accepted?.as_secs_f64())))
        };
        let (quiet, alone) = (accepted(0, phases.struck), accepted(*from, *to));

        let own = || {
            // What is handed in in the last second may arrive after the heal.
            let meanwhile = *from..*to - 1000;
            load().filter(move |(sent, _)| {
                sent.from == *region && home(sent) == region && meanwhile.contains(&sent.at_ms)
            })
        };
        let delivered = Took::of(own().filter_map(|(sent, job)| {
            let came = arrived.get(&job.to_string())?;
            (came < to).then(|| seconds(came - sent.at_ms))
        }));
        let own = share(delivered.count, own().count());

        told.lines.push(format!(
            "{region} alone for {:.0} s: accepts in {alone}, in {quiet} before; delivers {:.1} % of its own, in \
             {delivered}; {} wait, the first is there {first:.2} s after the heal, the last after {last:.2} s: {:.0} a \
             second",
            seconds(to - from),
            100.0 * own,
            waited.len(),
            per_second(waited.len(), last),
        ));
        // Accepted on both sides of the cut.
        let twice = sent.iter().filter(|(sent, _)| {
            let meanwhile = sent.accepted.is_some_and(|took| sent.at_ms + millis(took) < *to);
            meanwhile && sent.at_ms >= *from
        });
        let mut sides: HashMap<JobId, (bool, bool)> = HashMap::new();
        for (sent, job) in twice {
            let (here, there) = sides.entry(*job).or_default();
            *here |= sent.from == *region;
            *there |= sent.from != *region;
        }
        let twice = sides.values().filter(|sides| **sides == (true, true)).count();
        if twice > 0 {
            told.lines
                .push(format!("{twice} accepted in {region} and elsewhere meanwhile"));
        }
        told.at_worst("twice", per_second(twice, 1.0), f64::min);
        told.at_worst("waited", per_second(waited.len(), 1.0), f64::min);
        told.at_worst("first_s", first, f64::max);
        told.at_worst("flowed_s", last, f64::max);
        told.at_worst("accept_p99_ratio", alone.p99 / quiet.p99.max(0.001), f64::max);
        told.at_worst("own", own, f64::min);
    }
    Ok(told)
}

/// How soon the workers of other regions delivered what a region's own could not, and when they stopped.
async fn spill(peal: &Peal, phases: &Phases) -> anyhow::Result<Told> {
    let mut delivered = Audit::delivered(peal).await?;
    delivered.sort_unstable_by_key(|delivered| delivered.at_ms);
    let mut told = Told::default();
    for Spell { region, from, to } in &phases.spells {
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
        told.lines.push(format!(
            "{region} in trouble for {:.1} s: the first delivery by a helper after {first:.2} s, {} in all, the last \
             {last:.2} s after the end; then {home} by its own workers",
            seconds(to - from),
            helped(*from).count(),
        ));
        told.at_worst("first_s", first, f64::max);
        told.at_worst("helped", per_second(helped(*from).count(), 1.0), f64::min);
        told.at_worst("ended_s", last, f64::max);
        told.at_worst("home", per_second(home, 1.0), f64::min);
    }
    Ok(told)
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

fn share(part: usize, of: usize) -> f64 {
    per_second(part, per_second(of.max(1), 1.0))
}

fn per_second(count: usize, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "no load has 2^52 notifications")]
    let count = count as f64;
    if seconds > 0.0 { count / seconds } else { 0.0 }
}

/// How many a second; the last twentieth is left out, because stragglers say nothing about a rate.
fn rate(arrivals: impl Iterator<Item = Millis>) -> f64 {
    let arrivals: Vec<Millis> = arrivals.collect();
    let most = arrivals.len() * 19 / 20;
    match (arrivals.first(), arrivals.get(most.saturating_sub(1))) {
        (Some(first), Some(last)) => per_second(most, seconds(last - first)),
        _ => 0.0,
    }
}
