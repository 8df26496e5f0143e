//! Where a provider can be reached, how well, and which way is used: the fastest that works. It is left at once when it
//! fails, and for a faster one only after that was clearly faster for a while.

mod route;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shared::{backoff::Backoff, clock::Clock, provider::Provider};
use tokio::{sync::watch, time::Instant};

use self::route::{WHOLE, ms};
use super::http2::Host;

pub(super) use self::route::{Route, micros};

/// How endpoints are measured and chosen, and how long unused connections live.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Milliseconds between two measurements of an address. At most one connection is opened in that time only to
    /// measure what is known already.
    pub probe_ms: u64,
    /// Milliseconds for which another address must have been clearly faster before it is chosen.
    pub patience_ms: u64,
    /// Milliseconds until an unused connection is closed; the last one of a credential lives twelve times as long.
    pub idle_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            probe_ms: 30_000,
            patience_ms: 60_000,
            idle_ms: 300_000,
        }
    }
}

impl Settings {
    pub(super) fn probe(&self) -> Duration {
        Duration::from_millis(self.probe_ms.max(10))
    }

    pub(super) fn idle(&self) -> Duration {
        Duration::from_millis(self.idle_ms.max(10))
    }
}

/// Clearly faster is who needs at least a quarter less time, and this much less.
const LEAST_GAIN: Duration = Duration::from_millis(2);

/// Names are resolved anew this often, and addresses that are not named any more are kept this long: large providers
/// name a different few of their addresses each time.
pub(super) const RESOLVED_EVERY: Duration = Duration::from_mins(1);
const ADDRESSES_KEPT: Duration = Duration::from_mins(10);

/// Most addresses of one name that are looked at.
const MOST_ADDRESSES: usize = 4;

/// How long what has failed is left alone.
const LEFT_ALONE: Backoff = Backoff {
    first: Duration::from_secs(1),
    most: Duration::from_mins(1),
};

/// Why an address was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing was measured yet: it is the first of the settings.
    First,
    /// The fastest when all were measured for the first time.
    Fastest,
    /// It had been clearly faster than the former for a while.
    Faster,
    /// The former failed.
    Failover,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::First, Self::Fastest, Self::Faster, Self::Failover];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Fastest => "fastest",
            Self::Faster => "faster",
            Self::Failover => "failover",
        }
    }
}

/// What is known of one address, or of an endpoint without any.
#[derive(Debug, Clone, Serialize)]
pub struct EndpointState {
    /// Whose.
    pub provider: Provider,
    /// `production` or `sandbox`, where the provider has both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<&'static str>,
    /// `host:port`, as in the settings.
    pub endpoint: Arc<str>,
    /// One of the addresses that the host resolves to; none if it has not been resolved.
    pub address: Option<SocketAddr>,
    /// Whether new connections go here first.
    pub chosen: bool,
    /// Whether a connection is kept open here in case the chosen one fails.
    pub spare: bool,
    /// Whether it did not fail lately.
    pub healthy: bool,
    /// Since when it is chosen, healthy or not.
    pub since: Option<Timestamp>,
    /// Why, in words.
    pub why: Cow<'static, str>,
    /// Why it was chosen, if it is.
    #[serde(skip)]
    pub chosen_for: Option<Why>,
    /// Mean milliseconds of connecting: TCP, TLS and HTTP/2.
    pub connect_ms: Option<f64>,
    /// Mean milliseconds of an HTTP/2 ping.
    pub round_trip_ms: Option<f64>,
    /// Mean milliseconds from a push to its answer.
    pub answer_ms: Option<f64>,
    /// Mean share of pushes without an answer, or with one of the 500s; 0 to 1.
    pub errors: f64,
    /// Open connections, with the spare one.
    pub connections: usize,
    /// When an answer came last.
    pub last_used: Option<Timestamp>,
}

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

#[derive(Debug, Default)]
struct State {
    /// In the order of the settings.
    known: Vec<Known>,
    /// By host.
    resolved: Vec<Option<Instant>>,
    chosen: Option<(SocketAddr, Arc<Host>, Why)>,
    /// Since when there has been a clearly faster one than the chosen.
    outdone: Option<Instant>,
    /// What servers need for an answer, as far as seen: the assumption for those that have not answered lately.
    usual: Option<Duration>,
    probed: Option<Instant>,
}

/// One address, and what was decided about it.
#[derive(Debug)]
struct Known {
    route: Arc<Route>,
    /// When the name was last resolved to it.
    named: Instant,
    probed: Option<Instant>,
    /// Until when it is left alone; set while it is ill.
    ill_until: Option<Instant>,
    failures: u32,
    /// Whether connections to it are to be replaced: the present choice was made over it.
    left: bool,
    since: Timestamp,
    why: Cow<'static, str>,
}

impl Known {
    fn is_healthy(&self) -> bool {
        self.ill_until.is_none()
    }

    fn is(&self, route: &Route) -> bool {
        self.route.address == route.address && *self.route.host.name == *route.host.name
    }
}

impl State {
    /// The time that an answer is expected to take; `None` if nothing was measured.
    fn expected(&self, route: &Route) -> Option<Duration> {
        let service = route.service().or(self.usual).unwrap_or_default();
        route.round_trip.get().map(|way| way + service)
    }

    fn chosen(&self) -> Option<&Known> {
        let (address, host, _) = self.chosen.as_ref()?;
        self.known
            .iter()
            .find(|known| known.route.address == *address && Arc::ptr_eq(&known.route.host, host))
    }

    fn find(&mut self, route: &Route) -> Option<&mut Known> {
        self.known.iter_mut().find(|known| known.is(route))
    }

    /// The best of the healthy ones that `may`: the fastest, else the first that was not measured.
    fn best(&self, may: impl Fn(&Known) -> bool) -> Option<&Known> {
        let healthy = self.known.iter().filter(|known| known.is_healthy() && may(known));
        healthy.min_by_key(|known| self.expected(&known.route).unwrap_or(Duration::MAX))
    }

    /// Whether `one` is clearly faster than `other`; not if either is unknown.
    fn outdoes(&self, one: &Route, other: &Route) -> bool {
        match (self.expected(one), self.expected(other)) {
            (Some(one), Some(other)) => one + one / 4 + LEAST_GAIN < other,
            _ => false,
        }
    }

    fn choose(&mut self, route: &Arc<Route>, why: Why, words: impl Into<Cow<'static, str>>, now: Timestamp) {
        self.chosen = Some((route.address, route.host.clone(), why));
        self.outdone = None;
        let left: Vec<bool> = self
            .known
            .iter()
            .map(|known| !Arc::ptr_eq(&known.route.host, &route.host) || self.outdoes(route, &known.route))
            .collect();
        for (known, left) in self.known.iter_mut().zip(left) {
            known.left = left;
        }
        if let Some(known) = self.find(route) {
            (known.since, known.why) = (now, words.into());
            tracing::info!(endpoint = %route.host.name, address = %route.address, why = %known.why, "endpoint chosen");
        }
    }
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

    /// A ping was answered after `took`.
    pub(super) fn pinged(&self, route: &Route, took: Duration) {
        route.round_trip.learn(took);
        let mut state = self.lock();
        let rested = |known: &mut Known| known.ill_until.is_some_and(|until| until <= Instant::now());
        if state.find(route).is_some_and(rested) {
            self.well(&mut state, route);
        }
    }

    /// Decides about `route` after an answer; see [`Route::answered`].
    pub(super) fn judge(&self, route: &Route) {
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
    pub(super) fn failed(&self, route: &Route, reason: &'static str) {
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
    pub(super) fn due(&self) -> Option<Arc<Route>> {
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
    pub(super) fn spare(&self) -> Option<Arc<Route>> {
        let state = self.lock();
        let (_, chosen, _) = state.chosen.as_ref()?;
        let best = state.best(|known| !Arc::ptr_eq(&known.route.host, chosen))?;
        Some(best.route.clone())
    }

    /// Whether a connection to `route` can be the spare.
    pub(super) fn may_be_spare(&self, route: &Route) -> bool {
        let mut state = self.lock();
        let elsewhere = |(_, chosen, _): &(_, Arc<Host>, _)| !Arc::ptr_eq(chosen, &route.host);
        state.chosen.as_ref().is_some_and(elsewhere) && state.find(route).is_some_and(|known| known.is_healthy())
    }

    /// Chooses again if another has been clearly faster for long enough.
    pub(super) fn review(&self) {
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

    /// All that is known; `spare` is where a spare connection is open.
    pub(super) fn report(&self, spare: Option<&Route>) -> Vec<EndpointState> {
        let state = self.lock();
        let now = self.clock.now();
        let chosen = state.chosen().map(|known| known.route.clone());
        let of = |known: &Known| {
            let route = &known.route;
            let chosen = chosen.as_ref().is_some_and(|chosen| Arc::ptr_eq(chosen, route));
            EndpointState {
                address: Some(route.address),
                chosen,
                spare: spare.is_some_and(|spare| known.is(spare)),
                healthy: known.is_healthy(),
                since: Some(known.since),
                why: known.why.clone(),
                chosen_for: state.chosen.as_ref().map(|(.., why)| *why).filter(|_| chosen),
                connect_ms: route.connect.get().map(ms),
                round_trip_ms: route.round_trip.get().map(ms),
                answer_ms: route.answer.get().map(ms),
                errors: f64::from(route.errors.load(Ordering::Relaxed)) / f64::from(WHOLE),
                connections: route.connections.load(Ordering::Relaxed),
                last_used: route.unused_for().and_then(|unused| now.checked_sub(unused).ok()),
                ..self.unknown(&route.host)
            }
        };
        let mut all = Vec::new();
        for host in &self.hosts {
            let before = all.len();
            let known = state.known.iter().filter(|known| Arc::ptr_eq(&known.route.host, host));
            all.extend(known.map(of));
            if all.len() == before {
                all.push(self.unknown(host));
            }
        }
        all
    }

    /// What is said of a host without addresses.
    fn unknown(&self, host: &Host) -> EndpointState {
        EndpointState {
            provider: self.provider,
            environment: self.environment,
            endpoint: host.name.clone(),
            address: None,
            chosen: false,
            spare: false,
            healthy: false,
            since: None,
            why: "not resolved".into(),
            chosen_for: None,
            connect_ms: None,
            round_trip_ms: None,
            answer_ms: None,
            errors: 0.0,
            connections: 0,
            last_used: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
