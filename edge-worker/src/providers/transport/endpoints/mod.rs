//! The addresses of a provider: how they are measured, and which one is used. The fastest healthy address is used. A
//! failed one is abandoned at once; a faster one is chosen only after it was clearly faster for `patience_ms`.

mod choice;
mod report;
mod route;
mod settings;
mod state;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shared::{clock::Clock, provider::Provider};
use tokio::{sync::watch, time::Instant};

use self::state::{Known, State};
use super::http2::Host;

pub(super) use self::route::{Route, micros};
pub use self::{
    report::{EndpointState, Why},
    settings::Settings,
};

/// How often a host is resolved.
pub(super) const RESOLVE_EVERY: Duration = Duration::from_mins(1);

/// How long an address is kept that DNS no longer returns: large providers return a few of their addresses each time.
const KEEP_ADDRESS_FOR: Duration = Duration::from_mins(10);

/// The maximum number of addresses of a host; further ones are ignored.
const MAX_ADDRESSES_PER_HOST: usize = 4;

/// The endpoints of one provider and environment.
#[derive(Debug)]
pub(in crate::providers) struct Endpoints {
    provider: Provider,
    environment: Option<&'static str>,
    hosts: Vec<Arc<Host>>,
    pub(super) settings: Settings,
    clock: Clock,
    start: Instant,
    /// Microseconds after `start` of the last use; zero means never.
    last_used: AtomicU64,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Endpoints {
    pub(in crate::providers) fn new(
        provider: Provider,
        environment: Option<&'static str>,
        hosts: Vec<Arc<Host>>,
        settings: Settings,
        clock: Clock,
    ) -> Arc<Self> {
        let state = State {
            resolved: vec![None; hosts.len()],
            ..State::default()
        };
        Arc::new(Self {
            provider,
            environment,
            hosts,
            settings,
            clock,
            start: Instant::now(),
            last_used: AtomicU64::new(0),
            state: Mutex::new(state),
            changed: watch::Sender::default(),
        })
    }

    /// Notifies when another address is chosen.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Records that a connection is needed or open.
    pub(super) fn mark_used(&self) {
        self.last_used
            .store(micros(self.start.elapsed()).max(1), Ordering::Relaxed);
    }

    /// Whether they were used within three measurement intervals. If not, nothing is measured, because providers count
    /// connections.
    pub(super) fn is_in_use(&self) -> bool {
        let used = self.last_used.load(Ordering::Relaxed);
        let since = self.start.elapsed().saturating_sub(Duration::from_micros(used));
        used > 0 && since < 3 * self.settings.probe()
    }

    /// Hosts that were not resolved for `age`, with their indices.
    pub(super) fn unresolved(&self, age: Duration) -> Vec<(usize, Arc<Host>)> {
        let state = self.lock();
        let hosts = self.hosts.iter().zip(&state.resolved).enumerate();
        hosts
            .filter(|(_, (_, resolved))| resolved.is_none_or(|then| then.elapsed() >= age))
            .map(|(index, (host, _))| (index, host.clone()))
            .collect()
    }

    /// Records that the host at `index` resolves to `addresses`. An empty result, such as a DNS failure, changes
    /// nothing.
    pub(super) fn resolved(&self, index: usize, addresses: &[SocketAddr]) {
        if addresses.is_empty() {
            return;
        }
        let (host, instant, now) = (&self.hosts[index], Instant::now(), self.clock.now());
        let mut state = self.lock();
        for &address in addresses {
            let known = state
                .known
                .iter_mut()
                .filter(|known| Arc::ptr_eq(&known.route.host, host));
            let mut known: Vec<_> = known.collect();
            if let Some(known) = known.iter_mut().find(|known| known.route.address == address) {
                known.last_resolved = instant;
            } else if known.len() < MAX_ADDRESSES_PER_HOST {
                let elsewhere = |(_, chosen, _): &(_, Arc<Host>, _)| !Arc::ptr_eq(chosen, host);
                let new = Known {
                    route: Route::new(host.clone(), address),
                    last_resolved: instant,
                    probed: None,
                    unhealthy_until: None,
                    failures: 0,
                    superseded: state.chosen.as_ref().is_some_and(elsewhere),
                    since: now,
                    why: "named by DNS".into(),
                };
                state.known.push(new);
            }
        }
        state.resolved[index] = Some(instant);
        let chosen = state.chosen.as_ref().map(|(address, ..)| *address);
        state.known.retain(|known| {
            let is_recent = instant - known.last_resolved < KEEP_ADDRESS_FOR;
            is_recent || !Arc::ptr_eq(&known.route.host, host) || Some(known.route.address) == chosen
        });
        let place = |known: &Known| self.hosts.iter().position(|host| Arc::ptr_eq(host, &known.route.host));
        state.known.sort_by_key(place);
    }

    /// Whether any address is healthy.
    pub(super) fn any_healthy(&self) -> bool {
        self.lock().known.iter().any(Known::is_healthy)
    }

    /// Whether an endpoint other than `name` is healthy; false if `name` is not one of these endpoints.
    pub(super) fn has_another(&self, name: &str) -> bool {
        let state = self.lock();
        let mut healthy = state.known.iter().filter(|known| known.is_healthy());
        self.hosts.iter().any(|host| *host.name == *name) && healthy.any(|known| *known.route.host.name != *name)
    }

    /// All addresses in the order in which connection number `nth` of a pool tries them: first the chosen one and the
    /// equally good ones of its endpoint, over which connections spread; then the other healthy ones; then the
    /// unhealthy ones.
    pub(super) fn in_order(&self, nth: usize) -> Vec<Arc<Route>> {
        let mut state = self.lock();
        if state.chosen().is_none()
            && let Some(first) = state.known.iter().find(|known| known.is_healthy())
        {
            let first = first.route.clone();
            state.choose(&first, Why::First, "first in the settings", self.clock.now());
        }
        let chosen = state.chosen().map(|known| known.route.clone());
        let rank = |known: &Known| {
            let Some(chosen) = &chosen else { return 3 };
            let is_measured = || known.route.round_trip.get().is_some() || chosen.round_trip.get().is_none();
            match known.unhealthy_until {
                Some(_) => 3,
                None if known.is(chosen) => 0,
                None if !known.superseded && is_measured() && !state.is_clearly_faster(chosen, &known.route) => 1,
                None => 2,
            }
        };
        let mut order: Vec<_> = state
            .known
            .iter()
            .map(|known| (rank(known), state.expected(&known.route), known.route.clone()))
            .collect();
        order.sort_by_key(|(rank, expected, _)| (*rank, expected.unwrap_or(Duration::MAX)));
        let as_good = order.iter().filter(|(rank, ..)| *rank < 2).count();
        if as_good > 0 {
            order[..as_good].rotate_left(nth % as_good);
        }
        order.into_iter().map(|(_, _, route)| route).collect()
    }

    /// Whether connections to `route` should stay open.
    pub(super) fn should_keep(&self, route: &Route) -> bool {
        let mut state = self.lock();
        let usable = state
            .find(route)
            .is_some_and(|known| known.is_healthy() && !known.superseded);
        // Without a better address, connections stay.
        usable || !state.known.iter().any(|known| known.is_healthy() && !known.superseded)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
