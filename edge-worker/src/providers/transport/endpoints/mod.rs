//! Where a provider can be reached, how well, and which way is used: the fastest that works. It is left at once when it
//! fails, and for a faster one only after that was clearly faster for a while.

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

/// Names are resolved anew this often, and addresses that are not named any more are kept this long: large providers
/// name a different few of their addresses each time.
pub(super) const RESOLVED_EVERY: Duration = Duration::from_mins(1);
const ADDRESSES_KEPT: Duration = Duration::from_mins(10);

/// Most addresses of one name that are looked at.
const MOST_ADDRESSES: usize = 4;

/// The endpoints of one provider and environment.
#[derive(Debug)]
pub(in crate::providers) struct Endpoints {
    provider: Provider,
    environment: Option<&'static str>,
    hosts: Vec<Arc<Host>>,
    pub(super) settings: Settings,
    clock: Clock,
    start: Instant,
    /// Microseconds after `start` when somebody last used them; zero means never.
    wanted: AtomicU64,
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
            wanted: AtomicU64::new(0),
            state: Mutex::new(state),
            changed: watch::Sender::default(),
        })
    }

    /// Tells when another address is chosen.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Somebody needs them.
    pub(super) fn want(&self) {
        self.wanted
            .store(micros(self.start.elapsed()).max(1), Ordering::Relaxed);
    }

    /// Whether somebody needed them lately. If not, nothing is measured: providers count connections.
    pub(super) fn is_wanted(&self) -> bool {
        let wanted = self.wanted.load(Ordering::Relaxed);
        let since = self.start.elapsed().saturating_sub(Duration::from_micros(wanted));
        wanted > 0 && since < 3 * self.settings.probe()
    }

    /// Hosts whose names were not resolved for `age`, with their indices.
    pub(super) fn unresolved(&self, age: Duration) -> Vec<(usize, Arc<Host>)> {
        let state = self.lock();
        let hosts = self.hosts.iter().zip(&state.resolved).enumerate();
        hosts
            .filter(|(_, (_, resolved))| resolved.is_none_or(|then| then.elapsed() >= age))
            .map(|(index, (host, _))| (index, host.clone()))
            .collect()
    }

    /// The host at `index` resolves to `addresses`; if there are none, the former stay.
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
                known.named = instant;
            } else if known.len() < MOST_ADDRESSES {
                let elsewhere = |(_, chosen, _): &(_, Arc<Host>, _)| !Arc::ptr_eq(chosen, host);
                let new = Known {
                    route: Route::new(host.clone(), address),
                    named: instant,
                    probed: None,
                    ill_until: None,
                    failures: 0,
                    left: state.chosen.as_ref().is_some_and(elsewhere),
                    since: now,
                    why: "named by DNS".into(),
                };
                state.known.push(new);
            }
        }
        state.resolved[index] = Some(instant);
        let chosen = state.chosen.as_ref().map(|(address, ..)| *address);
        state.known.retain(|known| {
            let is_named = instant - known.named < ADDRESSES_KEPT;
            is_named || !Arc::ptr_eq(&known.route.host, host) || Some(known.route.address) == chosen
        });
        let place = |known: &Known| self.hosts.iter().position(|host| Arc::ptr_eq(host, &known.route.host));
        state.known.sort_by_key(place);
    }

    /// Whether an address is known that did not fail lately.
    pub(super) fn any_healthy(&self) -> bool {
        self.lock().known.iter().any(Known::is_healthy)
    }

    /// Whether another of these endpoints than the one called `name` did not fail lately; not if `name` is none of them.
    pub(super) fn has_another(&self, name: &str) -> bool {
        let state = self.lock();
        let mut healthy = state.known.iter().filter(|known| known.is_healthy());
        self.hosts.iter().any(|host| *host.name == *name) && healthy.any(|known| *known.route.host.name != *name)
    }

    /// All addresses in the order in which they are to be tried for the connection number `nth` of a pool: the chosen one
    /// and those of its endpoint that are as good, over which connections spread; then the others; then the ill.
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
            match known.ill_until {
                Some(_) => 3,
                None if known.is(chosen) => 0,
                None if !known.left && is_measured() && !state.outdoes(chosen, &known.route) => 1,
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

    /// Whether connections to `route` are to stay.
    pub(super) fn serves(&self, route: &Route) -> bool {
        let mut state = self.lock();
        let usable = state.find(route).is_some_and(|known| known.is_healthy() && !known.left);
        // Who has nowhere else to go stays.
        usable || !state.known.iter().any(|known| known.is_healthy() && !known.left)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
