//! What is known of the addresses, and the choice among them.

use std::{borrow::Cow, net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Route, Why};
use crate::providers::transport::http2::Host;

/// Clearly faster is who needs at least a quarter less time, and this much less.
const LEAST_GAIN: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
pub(super) struct State {
    /// In the order of the settings.
    pub(super) known: Vec<Known>,
    /// By host.
    pub(super) resolved: Vec<Option<Instant>>,
    pub(super) chosen: Option<(SocketAddr, Arc<Host>, Why)>,
    /// Since when there has been a clearly faster one than the chosen.
    pub(super) outdone: Option<Instant>,
    /// What servers need for an answer, as far as seen: the assumption for those that have not answered lately.
    pub(super) usual: Option<Duration>,
    pub(super) probed: Option<Instant>,
}

/// One address, and what was decided about it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) route: Arc<Route>,
    /// When the name was last resolved to it.
    pub(super) named: Instant,
    pub(super) probed: Option<Instant>,
    /// Until when it is left alone; set while it is ill.
    pub(super) ill_until: Option<Instant>,
    pub(super) failures: u32,
    /// Whether connections to it are to be replaced: the present choice was made over it.
    pub(super) left: bool,
    pub(super) since: Timestamp,
    pub(super) why: Cow<'static, str>,
}

impl Known {
    pub(super) fn is_healthy(&self) -> bool {
        self.ill_until.is_none()
    }

    pub(super) fn is(&self, route: &Route) -> bool {
        self.route.address == route.address && *self.route.host.name == *route.host.name
    }
}

impl State {
    /// The time that an answer is expected to take; `None` if nothing was measured.
    pub(super) fn expected(&self, route: &Route) -> Option<Duration> {
        let service = route.service().or(self.usual).unwrap_or_default();
        route.round_trip.get().map(|way| way + service)
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

    /// The best of the healthy ones that `may`: the fastest, else the first that was not measured.
    pub(super) fn best(&self, may: impl Fn(&Known) -> bool) -> Option<&Known> {
        let healthy = self.known.iter().filter(|known| known.is_healthy() && may(known));
        healthy.min_by_key(|known| self.expected(&known.route).unwrap_or(Duration::MAX))
    }

    /// Whether `one` is clearly faster than `other`; not if either is unknown.
    pub(super) fn outdoes(&self, one: &Route, other: &Route) -> bool {
        match (self.expected(one), self.expected(other)) {
            (Some(one), Some(other)) => one + one / 4 + LEAST_GAIN < other,
            _ => false,
        }
    }

    pub(super) fn choose(&mut self, route: &Arc<Route>, why: Why, words: impl Into<Cow<'static, str>>, now: Timestamp) {
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
