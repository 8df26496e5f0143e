//! Figures of a run: what is told, and judged only where a scenario says so, because a busy machine would judge with.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    ops::Range,
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
    /// It is whole: the storm is parked, the links are cut.
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
        Figure::FreshLatency => fresh_latency(peal, &ways(peal, callers)?, phases),
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
    let pushes = peal.simulators.delivered();
    let mut ways: Vec<(Millis, Millis)> = pushes
        .filter_map(|(simulator, push)| Some((jobs.get(&simulator.job_of(&push)?)?.at_ms, push.at_ms)))
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

fn fresh_latency(peal: &Peal, ways: &[(Millis, Millis)], phases: &Phases) -> Told {
    let took = |from: Millis, to: Millis| {
        let begun = ways.iter().filter(move |(begun, _)| (from..to).contains(begun));
        Took::of(begun.map(|(begun, arrived)| seconds(arrived - begun)))
    };
    let (quiet, storm) = (took(0, phases.struck), took(phases.whole, phases.healed));
    let requests = peal.simulators.all().flat_map(|simulator| simulator.log().pushes());
    let refused = requests.filter(|push| !push.delivered);
    let refused = refused.map(|push| push.at_ms);
    let retries = rate(refused.filter(|at| (phases.whole..phases.healed).contains(at)));
    Told::new(format!(
        "fresh p99 {quiet} in quiet, {storm} in the storm of {retries:.0} retries a second: {:.1} times (2 are allowed)",
        storm.p99 / quiet.p99.max(0.001)
    ))
}

/// What regions did while they were cut off, and how soon everything flowed after.
async fn autonomy(peal: &Peal, callers: &Callers, phases: &Phases) -> anyhow::Result<Told> {
    let load = Load::read(peal, callers).await?;
    let begun = || {
        load.0
            .iter()
            .filter(|course| !course.sent.hurried)
            .map(|course| course.sent.at_ms)
    };
    let lasted = seconds(begun().max().unwrap_or_default() - begun().min().unwrap_or_default());
    let handed_in = per_second(begun().count(), lasted);
    let mut told = Told::new(format!("{handed_in:.0} a second handed in"));
    for spell in &phases.spells {
        let Spell { region, from, to } = spell;
        let (quiet, alone) = (
            load.accepted(region, 0..phases.struck),
            load.accepted(region, *from..*to),
        );
        let (own, of_own) = load.own(spell);
        let own_share = float(own.count) / float(of_own.max(1));
        told.lines.push(format!(
            "{region} cut off for {:.0} s: accepts in {alone}, in {quiet} before; delivers {:.1} % of its own, in {own}",
            seconds(to - from),
            100.0 * own_share
        ));
        told.at_worst("accept_p99_ratio", alone.p99 / quiet.p99.max(0.001), f64::max);
        told.at_worst("own", own_share, f64::min);

        let waited = load.waited(spell);
        if let (Some(first), Some(last)) = (waited.first(), waited.last()) {
            told.lines.push(format!(
                "{} wait, the first is there {first:.2} s after the heal, the last after {last:.2} s: {:.0} a second",
                waited.len(),
                per_second(waited.len(), *last),
            ));
            told.at_worst("first_s", *first, f64::max);
            told.at_worst("flowed_s", *last, f64::max);
        }
        told.at_worst("waited", float(waited.len()), f64::min);

        let twice = load.accepted_twice(spell);
        if twice > 0 {
            told.lines.push(format!("{twice} are accepted there and elsewhere"));
        }
        told.at_worst("twice", float(twice), f64::min);
    }
    Ok(told)
}

/// Everything that was handed in.
struct Load(Vec<Course>);

/// One notification, and how it went on.
struct Course {
    sent: Sent,
    job: JobId,
    home: String,
    /// When it was where it is worked on.
    stored: Option<Millis>,
    /// When its provider had it.
    arrived: Option<Millis>,
}

impl Course {
    /// Whether its caller knew before `then` that it is stored.
    fn is_accepted_before(&self, then: Millis) -> bool {
        self.sent
            .accepted
            .is_some_and(|took| self.sent.at_ms + millis(took) < then)
    }
}

impl Load {
    async fn read(peal: &Peal, callers: &Callers) -> anyhow::Result<Self> {
        let stored = Audit::stored(peal).await?;
        let mut arrived: HashMap<String, Millis> = HashMap::new();
        for (simulator, push) in peal.simulators.delivered() {
            if let Some(job) = simulator.job_of(&push) {
                arrived.entry(job).or_insert(push.at_ms);
            }
        }
        let course = callers.sent().into_iter().map(|sent| {
            let job = callers.job(&sent)?;
            anyhow::Ok(Course {
                job,
                home: callers.recipients[sent.recipient].home.clone(),
                stored: stored.get(&job).copied(),
                arrived: arrived.get(&job.to_string()).copied(),
                sent,
            })
        });
        Ok(Self(course.collect::<Result<_, _>>()?))
    }

    /// What the load handed in in `region` at that time.
    fn handed_in(&self, region: &str, when: Range<Millis>) -> impl Iterator<Item = &Course> {
        let there = self
            .0
            .iter()
            .filter(move |course| course.sent.from == region && !course.sent.hurried);
        there.filter(move |course| when.contains(&course.sent.at_ms))
    }

    /// How long that took to be accepted.
    fn accepted(&self, region: &str, when: Range<Millis>) -> Took {
        let took = self.handed_in(region, when).filter_map(|course| course.sent.accepted);
        Took::of(took.map(|took| took.as_secs_f64()))
    }

    /// How long a region needed to deliver what it accepted for itself while it was alone, and how many those were.
    fn own(&self, Spell { region, from, to }: &Spell) -> (Took, usize) {
        // What is handed in in the last second may arrive after the heal.
        let own = || {
            self.handed_in(region, *from..*to - 1000)
                .filter(|course| course.home == *region)
        };
        let arrived = own().filter_map(|course| Some((course.sent.at_ms, course.arrived?)));
        let arrived = arrived.filter(|(_, arrived)| arrived < to);
        (
            Took::of(arrived.map(|(begun, arrived)| seconds(arrived - begun))),
            own().count(),
        )
    }

    /// How many seconds after the heal came what had waited for it, to other regions or from them.
    fn waited(&self, Spell { region, to, .. }: &Spell) -> Vec<f64> {
        let crosses = |course: &&Course| (course.sent.from == *region) != (course.home == *region);
        let accepted = self
            .0
            .iter()
            .filter(crosses)
            .filter(|course| course.is_accepted_before(*to));
        let came = accepted.filter_map(|course| course.stored).filter(|came| came >= to);
        let mut waited: Vec<f64> = came.map(|came| seconds(came - to)).collect();
        waited.sort_unstable_by(f64::total_cmp);
        waited
    }

    /// How many a region accepted while it was alone that others accepted, too.
    fn accepted_twice(&self, Spell { region, from, to }: &Spell) -> usize {
        let meanwhile = |course: &&Course| course.sent.at_ms >= *from && course.is_accepted_before(*to);
        let (here, elsewhere): (Vec<&Course>, Vec<&Course>) = self
            .0
            .iter()
            .filter(meanwhile)
            .partition(|course| course.sent.from == *region);
        let here: HashSet<JobId> = here.into_iter().map(|course| course.job).collect();
        let elsewhere: HashSet<JobId> = elsewhere.into_iter().map(|course| course.job).collect();
        here.intersection(&elsewhere).count()
    }
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
        told.at_worst("helped", float(helped(*from).count()), f64::min);
        told.at_worst("ended_s", last, f64::max);
        told.at_worst("home", float(home), f64::min);
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

#[expect(clippy::cast_precision_loss, reason = "no load has 2^52 notifications")]
fn float(count: usize) -> f64 {
    count as f64
}

fn per_second(count: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { float(count) / seconds } else { 0.0 }
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
