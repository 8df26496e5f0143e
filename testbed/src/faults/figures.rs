//! Figures of a run: what is told, and judged by nobody here, because a busy machine would judge with.

use std::collections::HashMap;

use super::{
    load::{Callers, Sent, is_stormy},
    scenario::Figure,
};
use crate::peal::Peal;

/// When something happened, milliseconds since 1970.
type Millis = i64;

/// When faults were made and healed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Phases {
    /// The first fault begins.
    pub(super) struck: Millis,
    /// It is whole: the storm is parked, the links are cut.
    pub(super) whole: Millis,
    /// The last has ended.
    pub(super) healed: Millis,
}

/// The figure of a scenario, as a sentence.
///
/// # Errors
/// When the ids of what was sent are wrong.
pub(super) fn figure(figure: Figure, peal: &Peal, callers: &Callers, phases: &Phases) -> anyhow::Result<String> {
    let mut jobs: HashMap<String, Sent> = HashMap::new();
    for sent in callers.sent().into_iter().filter(|sent| !is_stormy(sent.recipient)) {
        jobs.insert(callers.job(&sent)?.to_string(), sent);
    }
    let pushes = peal.apns.log().pushes();
    // When the caller began and when the provider had it.
    let mut ways: Vec<(Millis, Millis)> = pushes
        .iter()
        .filter(|push| push.delivered)
        .filter_map(|push| Some((jobs.get(push.collapse_id.as_deref()?)?.at_ms, push.at_ms)))
        .collect();
    ways.sort_unstable_by_key(|(_, arrived)| *arrived);
    Ok(match figure {
        Figure::DrainRate => {
            let quiet = rate(ways.iter().map(|way| way.1).filter(|arrived| *arrived < phases.struck));
            let drained = rate(ways.iter().map(|way| way.1).filter(|arrived| *arrived >= phases.healed));
            format!(
                "{quiet:.0} a second undisturbed, {drained:.0} a second after the heal: {:.0} % (70 % are wanted)",
                100.0 * drained / quiet
            )
        }
        Figure::FreshLatency => {
            let p99 = |from: Millis, to: Millis| {
                let begun = ways.iter().filter(|(begun, _)| (from..to).contains(begun));
                let mut took: Vec<Millis> = begun.map(|(begun, arrived)| arrived - begun).collect();
                took.sort_unstable();
                let at = took.len() * 99 / 100;
                (took.get(at).copied().unwrap_or_default(), took.len())
            };
            let (quiet, of_quiet) = p99(0, phases.struck);
            let (storm, of_storm) = p99(phases.whole, phases.healed);
            #[expect(clippy::cast_precision_loss, reason = "nothing takes 2^52 ms")]
            let ratio = storm as f64 / quiet.max(1) as f64;
            let refused = pushes.iter().filter(|push| !push.delivered).map(|push| push.at_ms);
            let retries = rate(refused.filter(|at| (phases.whole..phases.healed).contains(at)));
            format!(
                "fresh p99 {quiet} ms in quiet ({of_quiet}), {storm} ms in the storm ({of_storm}, {retries:.0} retries a \
                 second): {ratio:.1} times (2 are allowed)"
            )
        }
    })
}

/// How many a second; the last twentieth is left out, because stragglers say nothing about a rate.
fn rate(arrivals: impl Iterator<Item = Millis>) -> f64 {
    let arrivals: Vec<Millis> = arrivals.collect();
    let most = arrivals.len() * 19 / 20;
    match (arrivals.first(), arrivals.get(most.saturating_sub(1))) {
        #[expect(clippy::cast_precision_loss, reason = "no load has 2^52 notifications")]
        (Some(first), Some(last)) if last > first => 1000.0 * most as f64 / (last - first) as f64,
        _ => 0.0,
    }
}
