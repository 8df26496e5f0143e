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

/// When a failed address is tried again.
pub(super) const RETRY_FAILED_AFTER: Backoff = Backoff {
    first: Duration::from_secs(1),
    factor: 2,
    most: Duration::from_mins(1),
};

impl Endpoints {
    /// Records a ping that was answered after `took`.
    pub(in crate::providers::transport) fn pinged(&self, route: &Route, took: Duration) {
        route.round_trip.learn(took);
        let mut state = self.lock();
        let may_retry = |known: &mut Known| known.unhealthy_until.is_some_and(|until| until <= Instant::now());
        if state.find(route).is_some_and(may_retry) {
            self.recovered(&mut state, route);
        }
    }

    /// Updates the health of `route` after an answer; see [`Route::answered`].
    pub(in crate::providers::transport) fn assess(&self, route: &Route) {
        if route.is_failing() {
            self.failed(route, "errors");
        } else {
            let mut state = self.lock();
            if let Some(known) = state.find(route) {
                known.failures = 0;
            }
            self.recovered(&mut state, route);
        }
    }

    /// Records that `route` cannot be used, and chooses another at once.
    pub(in crate::providers::transport) fn failed(&self, route: &Route, reason: &'static str) {
        let (instant, now) = (Instant::now(), self.clock.now());
        let mut state = self.lock();
        let Some(known) = state.find(route) else { return };
        // Attempts in flight when it failed add no information.
        if known.unhealthy_until.is_some_and(|until| until > instant) {
            return;
        }
        known.failures += 1;
        known.unhealthy_until = Some(instant + RETRY_FAILED_AFTER.after(known.failures, None, &mut rand::rng()));
        if !route.unhealthy.swap(true, Ordering::Relaxed) {
            (known.since, known.why) = (now, reason.into());
            tracing::warn!(endpoint = %route.host.name, address = %route.address, reason, "endpoint failed");
        }
        self.fail_over(&mut state);
    }

    /// Records that `route` can be used again.
    fn recovered(&self, state: &mut State, route: &Route) {
        let Some(known) = state.find(route) else { return };
        known.unhealthy_until = None;
        route.unhealthy.store(false, Ordering::Relaxed);
        route.errors.store(0, Ordering::Relaxed);
        (known.since, known.why) = (self.clock.now(), "works again".into());
        tracing::info!(endpoint = %route.host.name, address = %route.address, "endpoint works again");
        self.fail_over(state);
    }

    /// Chooses another address if the chosen one is unhealthy and another is healthy.
    fn fail_over(&self, state: &mut State) {
        let Some(former) = state.chosen().filter(|chosen| !chosen.is_healthy()) else {
            return;
        };
        let reason = format!(
            "{} ({}) failed: {}",
            former.route.host.name, former.route.address, former.why
        );
        if let Some(next) = state.best(|_| true).map(|next| next.route.clone()) {
            state.choose(&next, Why::Failover, reason, self.clock.now());
            self.changed.send_replace(());
        }
    }

    /// The address to measure next by opening a connection, if a measurement is due: one whose wait after a failure has
    /// ended, else one that was never measured, else the one whose measurement is oldest.
    pub(in crate::providers::transport) fn next_probe(&self) -> Option<Arc<Route>> {
        let (now, probe) = (Instant::now(), self.settings.probe());
        let mut state = self.lock();
        let may_probe = state.probed.is_none_or(|then| now - then >= probe);
        let due = state.known.iter_mut().filter_map(|known| {
            let route = &known.route;
            // Pings on open connections measure those addresses.
            let is_open = route.connections.load(Ordering::Relaxed) > 0;
            let turn = match (known.unhealthy_until, known.probed) {
                (Some(until), _) => (until <= now).then_some((0, None)),
                (None, _) if is_open => None,
                (None, None) => Some((1, None)),
                (None, Some(then)) => (may_probe && now - then >= probe).then_some((2, Some(then))),
            };
            turn.map(|turn| (turn, known))
        });
        let (_, known) = due.min_by_key(|(turn, _)| *turn)?;
        known.probed = Some(now);
        let route = known.route.clone();
        state.probed = Some(now);
        Some(route)
    }

    /// The best address for a spare connection: at another endpoint than the chosen one. `None` with one endpoint.
    pub(in crate::providers::transport) fn spare_route(&self) -> Option<Arc<Route>> {
        let state = self.lock();
        let (_, chosen, _) = state.chosen.as_ref()?;
        let best = state.best(|known| !Arc::ptr_eq(&known.route.host, chosen))?;
        Some(best.route.clone())
    }

    /// Whether a connection to `route` can be the spare.
    pub(in crate::providers::transport) fn can_be_spare(&self, route: &Route) -> bool {
        let mut state = self.lock();
        let elsewhere = |(_, chosen, _): &(_, Arc<Host>, _)| !Arc::ptr_eq(chosen, &route.host);
        state.chosen.as_ref().is_some_and(elsewhere) && state.find(route).is_some_and(|known| known.is_healthy())
    }

    /// Chooses another address if it has been clearly faster for `patience_ms`.
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
            // Rises slowly, so that the others are still expected to be as fast as the chosen one was before it slowed
            // down.
            let usual = state
                .usual_service
                .map_or(service, |usual| service.min(usual + usual / 50));
            state.usual_service = Some(usual);
        }
        let Some(best) = state.best(|_| true).map(|best| best.route.clone()) else {
            return;
        };
        let untried = |known: &Known| known.is_healthy() && known.route.round_trip.get().is_none();
        let first = state.chosen.as_ref().is_some_and(|(.., why)| *why == Why::First);
        if first && !state.known.iter().any(untried) {
            let fastest = if state.is_clearly_faster(&best, &chosen) {
                best
            } else {
                chosen
            };
            state.choose(
                &fastest,
                Why::Fastest,
                "fastest of all when first measured",
                self.clock.now(),
            );
            self.changed.send_replace(());
        } else if !state.is_clearly_faster(&best, &chosen) {
            state.outdone_since = None;
        } else if now - *state.outdone_since.get_or_insert(now) >= Duration::from_millis(self.settings.patience_ms) {
            let better = state.expected(&best).unwrap_or_default();
            let reason = format!(
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
            state.choose(&best, Why::Faster, reason, self.clock.now());
            self.changed.send_replace(());
        }
    }
}
