//! The report of all endpoints, for operators.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use jiff::Timestamp;
use serde::Serialize;
use shared::provider::Provider;

use super::{
    Endpoints, Route,
    route::{FULL_SHARE, ms},
    state::Known,
};
use crate::providers::transport::http2::Host;

/// Why an address was chosen; a label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing was measured yet, so the first one in the settings is used.
    First,
    /// It was the fastest once all addresses had been measured.
    Fastest,
    /// It had been clearly faster than the previous choice for `patience_ms`.
    Faster,
    /// The previous choice failed.
    Failover,
}

impl Why {
    /// All reasons, in the order of declaration.
    pub const ALL: [Self; 4] = [Self::First, Self::Fastest, Self::Faster, Self::Failover];

    /// The value of the metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Fastest => "fastest",
            Self::Faster => "faster",
            Self::Failover => "failover",
        }
    }
}

/// The state of one address, or of an endpoint whose host was not resolved.
#[derive(Debug, Clone, Serialize)]
pub struct EndpointState {
    /// The provider that listens there.
    pub provider: Provider,
    /// `production` or `sandbox`, where the provider has both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<&'static str>,
    /// `host:port`, as in the settings.
    pub endpoint: Arc<str>,
    /// One of the addresses of the host; absent if the host was not resolved.
    pub address: Option<SocketAddr>,
    /// Whether new connections are opened here first.
    pub chosen: bool,
    /// Whether a connection is kept open here in case the chosen one fails.
    pub spare: bool,
    /// False from a failure until the address works again.
    pub healthy: bool,
    /// When it was last chosen, failed, or worked again.
    pub since: Option<Timestamp>,
    /// The reason of that change, in words for an operator.
    pub why: Cow<'static, str>,
    /// The reason of the choice, if it is the chosen one.
    #[serde(skip)]
    pub chosen_for: Option<Why>,
    /// Mean milliseconds of connecting: TCP, TLS and HTTP/2.
    pub connect_ms: Option<f64>,
    /// Mean milliseconds of an HTTP/2 ping.
    pub round_trip_ms: Option<f64>,
    /// Mean milliseconds from a request to its answer.
    pub answer_ms: Option<f64>,
    /// Mean share of requests that got no answer or a 5xx status; 0 to 1.
    pub errors: f64,
    /// Open connections, including the spare one.
    pub connections: usize,
    /// When the last answer arrived.
    pub last_used: Option<Timestamp>,
}

impl Endpoints {
    /// The state of every address; `spare` is the address with the spare connection.
    pub(in crate::providers::transport) fn report(&self, spare: Option<&Route>) -> Vec<EndpointState> {
        let state = self.lock();
        let now = self.clock.now();
        let chosen = state.chosen().map(|known| known.route.clone());
        let state_of = |known: &Known| {
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
                errors: f64::from(route.errors.load(Ordering::Relaxed)) / f64::from(FULL_SHARE),
                connections: route.connections.load(Ordering::Relaxed),
                last_used: route.unused_for().and_then(|unused| now.checked_sub(unused).ok()),
                ..self.unknown(&route.host)
            }
        };
        let mut all = Vec::new();
        for host in &self.hosts {
            let before = all.len();
            let known = state.known.iter().filter(|known| Arc::ptr_eq(&known.route.host, host));
            all.extend(known.map(state_of));
            if all.len() == before {
                all.push(self.unknown(host));
            }
        }
        all
    }

    /// The state of a host without addresses; also the base of the others.
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
}
