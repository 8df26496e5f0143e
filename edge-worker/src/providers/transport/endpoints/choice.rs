//! Chooses the address that new connections go to.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use shared::backoff::Backoff;
use tokio::time::Instant;

use super::{
    Endpoints, Route, Why,
    route::ms,
    state::{Known, State},
};
use crate::providers::transport::http2::Host;

/// How long what has failed is left alone.
pub(super) const LEFT_ALONE: Backoff = Backoff {
    first: Duration::from_secs(1),
    most: Duration::from_mins(1),
};

impl Endpoints {
    /// A ping was answered after `took`.
    pub(in crate::providers::transport) fn pinged(&self, route: &Route, took: Duration) {
        route.round_trip.learn(took);
        let mut state = self.lock();
        let rested = |known: &mut Known| known.ill_until.is_some_and(|until| until <= Instant::now());
        if state.find(route).is_some_and(rested) {
            self.well(&mut state, route);
        }
    }

    /// Decides about `route` after an answer; see [`Route::answered`].
    pub(in crate::providers::transport) fn judge(&self, route: &Route) {
        if route.is_failing() {
            self.failed(route, "errors");
        } else {
            let mut state = self.lock();
            if let Some(known) = state.find(route) {
                known.failures = 0;
            }
            self.well(&mut state, route);
        }
    }

    /// `route` cannot be used, and is left at once.
    pub(in crate::providers::transport) fn failed(&self, route: &Route, reason: &'static str) {
        let (instant, now) = (Instant::now(), self.clock.now());
        let mut state = self.lock();
        let Some(known) = state.find(route) else { return };
        // What was under way when it failed says nothing new.
        if known.ill_until.is_some_and(|until| until > instant) {
            return;
        }
        known.failures += 1;
        known.ill_until = Some(instant + LEFT_ALONE.after(known.failures, None, &mut rand::rng()));
        if !route.ill.swap(true, Ordering::Relaxed) {
            (known.since, known.why) = (now, reason.into());
            tracing::warn!(endpoint = %route.host.name, address = %route.address, reason, "endpoint failed");
        }
        self.fail_over(&mut state);
    }

    /// `route` can be used again.
    fn well(&self, state: &mut State, route: &Route) {
        let Some(known) = state.find(route) else { return };
        known.ill_until = None;
        route.ill.store(false, Ordering::Relaxed);
        route.errors.store(0, Ordering::Relaxed);
        (known.since, known.why) = (self.clock.now(), "works again".into());
        tracing::info!(endpoint = %route.host.name, address = %route.address, "endpoint works again");
        self.fail_over(state);
    }

    /// Chooses another if the chosen one is ill and another is not.
    fn fail_over(&self, state: &mut State) {
        let Some(former) = state.chosen().filter(|chosen| !chosen.is_healthy()) else {
            return;
        };
        let words = format!(
            "{} ({}) failed: {}",
            former.route.host.name, former.route.address, former.why
        );
        if let Some(next) = state.best(|_| true).map(|next| next.route.clone()) {
            state.choose(&next, Why::Failover, words, self.clock.now());
            self.changed.send_replace(());
        }
    }

    /// The address to which a connection is to be opened only to measure it, if any is due: one that has rested after a
    /// failure, one that was never measured, or the one measured longest ago.
    pub(in crate::providers::transport) fn due(&self) -> Option<Arc<Route>> {
        let (now, probe) = (Instant::now(), self.settings.probe());
        let mut state = self.lock();
        let may = state.probed.is_none_or(|then| now - then >= probe);
        let due = state.known.iter_mut().filter_map(|known| {
            let route = &known.route;
            // Open connections are pinged.
            let is_open = route.connections.load(Ordering::Relaxed) > 0;
            let turn = match (known.ill_until, known.probed) {
                (Some(until), _) => (until <= now).then_some((0, None)),
                (None, _) if is_open => None,
                (None, None) => Some((1, None)),
                (None, Some(then)) => (may && now - then >= probe).then_some((2, Some(then))),
            };
            turn.map(|turn| (turn, known))
        });
        let (_, known) = due.min_by_key(|(turn, _)| *turn)?;
        known.probed = Some(now);
        let route = known.route.clone();
        state.probed = Some(now);
        Some(route)
    }

    /// Where a spare connection is best kept, where the settings name several endpoints.
    pub(in crate::providers::transport) fn spare(&self) -> Option<Arc<Route>> {
        let state = self.lock();
        let (_, chosen, _) = state.chosen.as_ref()?;
        let best = state.best(|known| !Arc::ptr_eq(&known.route.host, chosen))?;
        Some(best.route.clone())
    }

    /// Whether a connection to `route` can be the spare.
    pub(in crate::providers::transport) fn may_be_spare(&self, route: &Route) -> bool {
        let mut state = self.lock();
        let elsewhere = |(_, chosen, _): &(_, Arc<Host>, _)| !Arc::ptr_eq(chosen, &route.host);
        state.chosen.as_ref().is_some_and(elsewhere) && state.find(route).is_some_and(|known| known.is_healthy())
    }

    /// Chooses again if another has been clearly faster for long enough.
    pub(in crate::providers::transport) fn review(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        self.fail_over(&mut state);
        let Some(chosen) = state.chosen().filter(|known| known.is_healthy()) else {
            return;
        };
        let chosen = chosen.route.clone();
        let Some(expected) = state.expected(&chosen) else {
            return;
        };
        if let Some(service) = chosen.service() {
            // It forgets slowly, so that others are believed to be what the chosen one was before it became slow.
            let usual = state.usual.map_or(service, |usual| service.min(usual + usual / 50));
            state.usual = Some(usual);
        }
        let Some(best) = state.best(|_| true).map(|best| best.route.clone()) else {
            return;
        };
        let untried = |known: &Known| known.is_healthy() && known.route.round_trip.get().is_none();
        let first = state.chosen.as_ref().is_some_and(|(.., why)| *why == Why::First);
        if first && !state.known.iter().any(untried) {
            let fastest = if state.outdoes(&best, &chosen) { best } else { chosen };
            state.choose(
                &fastest,
                Why::Fastest,
                "fastest of all when first measured",
                self.clock.now(),
            );
            self.changed.send_replace(());
        } else if !state.outdoes(&best, &chosen) {
            state.outdone = None;
        } else if now - *state.outdone.get_or_insert(now) >= Duration::from_millis(self.settings.patience_ms) {
            let better = state.expected(&best).unwrap_or_default();
            let words = format!(
                "faster than {} ({}): {:.1} ms, not {:.1} ms, for {:.1} s",
                chosen.host.name,
                chosen.address,
                ms(better),
                ms(expected),
                Duration::from_millis(self.settings.patience_ms).as_secs_f64(),
            );
            if let Some(former) = state.find(&chosen) {
                (former.since, former.why) = (self.clock.now(), "another is faster".into());
            }
            state.choose(&best, Why::Faster, words, self.clock.now());
            self.changed.send_replace(());
        }
    }
}
