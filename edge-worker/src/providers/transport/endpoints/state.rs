//! The measurements of all addresses, how they compare, and the address in use.

use std::{borrow::Cow, net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Route, Why};
use crate::providers::transport::http2::Host;

/// An address is clearly faster if the other takes at least a quarter longer and, on top, at least this much longer.
const MIN_GAIN: Duration = Duration::from_millis(2);

/// The addresses of all hosts, and which one is chosen.
#[derive(Debug, Default)]
pub(super) struct State {
    /// In the order of the settings.
    pub(super) known: Vec<Known>,
    /// When each host was last resolved, by its index.
    pub(super) resolved: Vec<Option<Instant>>,
    pub(super) chosen: Option<(SocketAddr, Arc<Host>, Why)>,
    /// Since when another address has been clearly faster than the chosen one.
    pub(super) outdone_since: Option<Instant>,
    /// The usual service time of a server; assumed for addresses without a recent answer.
    pub(super) usual_service: Option<Duration>,
    /// When a connection was last opened only to measure.
    pub(super) probed: Option<Instant>,
}

/// One address, its health, and whether connections to it are to stay.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) route: Arc<Route>,
    /// When DNS last returned it.
    pub(super) last_resolved: Instant,
    pub(super) probed: Option<Instant>,
    /// Not tried before this time; set while it is unhealthy.
    pub(super) unhealthy_until: Option<Instant>,
    pub(super) failures: u32,
    /// Whether its connections are to be replaced, because a better address was chosen.
    pub(super) superseded: bool,
    /// When its state last changed.
    pub(super) since: Timestamp,
    /// The reason of that change, for operators.
    pub(super) why: Cow<'static, str>,
}

impl Known {
    pub(super) fn is_healthy(&self) -> bool {
        self.unhealthy_until.is_none()
    }

    pub(super) fn is(&self, route: &Route) -> bool {
        self.route.address == route.address && *self.route.host.name == *route.host.name
    }
}

impl State {
    /// How long an answer is expected to take: round trip and service time. `None` without a measured round trip.
    pub(super) fn expected(&self, route: &Route) -> Option<Duration> {
        let service = route.service().or(self.usual_service).unwrap_or_default();
        route.round_trip.get().map(|round_trip| round_trip + service)
    }

    pub(super) fn chosen(&self) -> Option<&Known> {
        let (address, host, _) = self.chosen.as_ref()?;
        self.known
            .iter()
            .find(|known| known.route.address == *address && Arc::ptr_eq(&known.route.host, host))
    }

    pub(super) fn find(&mut self, route: &Route) -> Option<&mut Known> {
        self.known.iter_mut().find(|known| known.is(route))
    }

    /// The fastest healthy address that passes `filter`; without measurements, the first one.
    pub(super) fn best(&self, filter: impl Fn(&Known) -> bool) -> Option<&Known> {
        let healthy = self.known.iter().filter(|known| known.is_healthy() && filter(known));
        healthy.min_by_key(|known| self.expected(&known.route).unwrap_or(Duration::MAX))
    }

    /// Whether `one` is clearly faster than `other`; false if either was not measured.
    pub(super) fn is_clearly_faster(&self, one: &Route, other: &Route) -> bool {
        match (self.expected(one), self.expected(other)) {
            (Some(one), Some(other)) => one + one / 4 + MIN_GAIN < other,
            _ => false,
        }
    }

    pub(super) fn choose(
        &mut self,
        route: &Arc<Route>,
        why: Why,
        reason: impl Into<Cow<'static, str>>,
        now: Timestamp,
    ) {
        self.chosen = Some((route.address, route.host.clone(), why));
        self.outdone_since = None;
        let superseded: Vec<bool> = self
            .known
            .iter()
            .map(|known| !Arc::ptr_eq(&known.route.host, &route.host) || self.is_clearly_faster(route, &known.route))
            .collect();
        for (known, superseded) in self.known.iter_mut().zip(superseded) {
            known.superseded = superseded;
        }
        if let Some(known) = self.find(route) {
            (known.since, known.why) = (now, reason.into());
            tracing::info!(endpoint = %route.host.name, address = %route.address, why = %known.why, "endpoint chosen");
        }
    }
}
