//! Circuit breakers: after several failures in a row nothing is sent for some time; then one attempt probes whether
//! sending works again.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use shared::provider::Provider;
use tokio::time::Instant;

use super::{Attempted, Outcome};

/// The reason of what was not tried because a breaker is open.
pub(crate) const BREAKER_OPEN: &str = "breaker_open";

/// How long a probe keeps other attempts away, if it gets no answer.
const PROBE_WITHIN: Duration = Duration::from_secs(5);

/// The kind of failures that a breaker counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// The credential: whether the provider accepts it.
    Credential,
    /// The endpoints: whether they are reachable and answer.
    Endpoint,
}

impl Watched {
    /// The value of the metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Credential => "credential",
            Self::Endpoint => "endpoint",
        }
    }

    /// Failures in a row that open it. A credential that was refused three times will be refused again; a server may
    /// fail a few times and recover.
    const fn max_failures(self) -> u32 {
        match self {
            Self::Credential => 3,
            Self::Endpoint => 10,
        }
    }

    /// How long it stays open the first time, and at most. Each failed probe doubles the time.
    const fn open(self) -> (Duration, Duration) {
        match self {
            Self::Credential => (Duration::from_secs(5), Duration::from_mins(5)),
            Self::Endpoint => (Duration::from_secs(1), Duration::from_mins(1)),
        }
    }
}

/// One breaker.
#[derive(Debug)]
struct Breaker {
    watched: Watched,
    start: Instant,
    failures: AtomicU32,
    /// How often it opened since the last success.
    opened: AtomicU32,
    /// Milliseconds after `start`; zero while it is closed.
    until: AtomicU64,
    probing: AtomicBool,
}

impl Breaker {
    fn new(watched: Watched) -> Self {
        Self {
            watched,
            start: Instant::now(),
            failures: AtomicU32::new(0),
            opened: AtomicU32::new(0),
            until: AtomicU64::new(0),
            probing: AtomicBool::new(false),
        }
    }

    /// Admits an attempt, or the probe of an open breaker.
    ///
    /// # Errors
    /// How long to wait, if the breaker is open.
    fn admit(&self) -> Result<(), Duration> {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return Ok(());
        }
        let now = self.now();
        if now < until {
            return Err(Duration::from_millis(until - now));
        }
        let next = now + millis(PROBE_WITHIN);
        match self
            .until
            .compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed)
        {
            Ok(_) => {
                self.probing.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(_) => Err(PROBE_WITHIN),
        }
    }

    /// Records a success; returns whether it closed the breaker.
    fn worked(&self) -> bool {
        // Checked first: all cores read these, and a store at every push would invalidate their cache lines.
        if self.failures.load(Ordering::Relaxed) == 0 && self.until.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.failures.store(0, Ordering::Relaxed);
        self.opened.store(0, Ordering::Relaxed);
        self.probing.store(false, Ordering::Relaxed);
        self.until.swap(0, Ordering::Relaxed) != 0
    }

    /// Records a failure; returns for how long it opened the breaker, if it did.
    fn failed(&self) -> Option<Duration> {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let open = self.until.load(Ordering::Relaxed) != 0;
        // Failures of attempts that were in flight when it opened do not count.
        if !self.probing.swap(false, Ordering::Relaxed) && (open || failures < self.watched.max_failures()) {
            return None;
        }
        let doublings = self.opened.fetch_add(1, Ordering::Relaxed).min(16);
        let (first, most) = self.watched.open();
        let wait = first.saturating_mul(1 << doublings).min(most);
        self.until.store(self.now() + millis(wait), Ordering::Relaxed);
        Some(wait)
    }

    fn is_open(&self) -> bool {
        self.until.load(Ordering::Relaxed) != 0
    }

    fn is_clear(&self) -> bool {
        !self.is_open() && self.failures.load(Ordering::Relaxed) == 0
    }

    fn now(&self) -> u64 {
        millis(self.start.elapsed())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The two breakers of one credential in one environment.
#[derive(Debug)]
pub(super) struct Circuit {
    provider: Provider,
    /// Names the credential and the environment; no secret.
    name: String,
    credential: Breaker,
    endpoint: Breaker,
    /// Whether it is one of very many, of which nothing is logged: anybody can name destinations that fail.
    is_of_destination: bool,
}

/// Whether a breaker is open, for metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerState {
    /// The provider to which sending stops.
    pub provider: Provider,
    /// Names the credential and the environment; no secret.
    pub name: String,
    /// The kind of failures that it counts.
    pub watched: Watched,
    /// Whether sending is stopped.
    pub is_open: bool,
}

impl Circuit {
    pub(super) fn new(provider: Provider, name: String) -> Self {
        Self {
            provider,
            name,
            credential: Breaker::new(Watched::Credential),
            endpoint: Breaker::new(Watched::Endpoint),
            is_of_destination: false,
        }
    }

    /// The breakers of one destination of the credential `name`.
    pub(super) fn of_destination(provider: Provider, name: String) -> Self {
        Self {
            is_of_destination: true,
            ..Self::new(provider, name)
        }
    }

    /// Whether nothing has failed since it last worked.
    pub(super) fn is_clear(&self) -> bool {
        [&self.credential, &self.endpoint]
            .iter()
            .all(|breaker| breaker.is_clear())
    }

    /// Whether one of its breakers is open.
    pub(super) fn is_open(&self) -> bool {
        self.credential.is_open() || self.endpoint.is_open()
    }

    /// Admits an attempt.
    ///
    /// # Errors
    /// The outcome, if a breaker is open.
    pub(super) fn admit(&self) -> Result<(), Outcome> {
        if let Err(wait) = self.credential.admit() {
            return Err(Outcome::credential(BREAKER_OPEN, Some(wait)));
        }
        if let Err(wait) = self.endpoint.admit() {
            return Err(Outcome::endpoint(BREAKER_OPEN, Some(wait)));
        }
        Ok(())
    }

    /// Records an attempt. A failure at one endpoint does not count if the next attempt uses another (`has_another`).
    pub(super) fn learn(&self, attempted: &Attempted, has_another: impl Fn() -> bool) {
        let failing = attempted.status.is_some_and(|status| status >= 500);
        match &attempted.outcome {
            Outcome::CredentialTrouble { .. } => {
                self.failed(&self.credential);
                self.worked(&self.endpoint);
            }
            Outcome::EndpointTrouble { .. } | Outcome::Ambiguous { .. } => self.unreached(has_another),
            Outcome::RetryLater { .. } if failing => self.unreached(has_another),
            Outcome::NotYet { .. } => {}
            Outcome::Accepted { .. }
            | Outcome::Rejected { .. }
            | Outcome::AddressGone { .. }
            | Outcome::RetryLater { .. } => {
                self.worked(&self.credential);
                self.worked(&self.endpoint);
            }
        }
    }

    fn unreached(&self, has_another: impl Fn() -> bool) {
        if !has_another() {
            self.failed(&self.endpoint);
        }
    }

    pub(super) fn states(&self) -> [BreakerState; 2] {
        [&self.credential, &self.endpoint].map(|breaker| BreakerState {
            provider: self.provider,
            name: self.name.clone(),
            watched: breaker.watched,
            is_open: breaker.is_open(),
        })
    }

    fn worked(&self, breaker: &Breaker) {
        if breaker.worked() && !self.is_of_destination {
            tracing::info!(provider = %self.provider, name = self.name, watched = breaker.watched.as_str(), "breaker closed");
        }
    }

    fn failed(&self, breaker: &Breaker) {
        if let Some(wait) = breaker.failed()
            && !self.is_of_destination
        {
            let seconds = wait.as_secs();
            tracing::warn!(provider = %self.provider, name = self.name, watched = breaker.watched.as_str(), seconds, "breaker open");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_and_one_attempt_probes() {
        let breaker = Breaker::new(Watched::Endpoint);
        for _ in 0..3 {
            for _ in 0..9 {
                assert_eq!((breaker.admit(), breaker.failed()), (Ok(()), None));
            }
            assert!(!breaker.worked(), "a success in between starts the count again");
        }
        for _ in 0..9 {
            assert_eq!(breaker.failed(), None);
        }
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(breaker.failed(), Some(Duration::from_secs(1)));
        assert_eq!(breaker.failed(), None, "failures of attempts in flight do not count");
        assert_eq!(breaker.admit(), Err(Duration::from_secs(1)));
        for wait in [2, 4, 8, 16, 32, 60, 60] {
            tokio::time::advance(Duration::from_mins(1)).await;
            assert_eq!(breaker.admit(), Ok(()));
            assert_eq!(breaker.admit(), Err(PROBE_WITHIN), "one at a time");
            assert_eq!(breaker.failed(), Some(Duration::from_secs(wait)));
        }
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(breaker.admit(), Ok(()));
        // No answer comes; another attempt may try.
        tokio::time::advance(PROBE_WITHIN).await;
        assert_eq!(breaker.admit(), Ok(()));
        assert!(breaker.worked());
        assert_eq!((breaker.admit(), breaker.is_open()), (Ok(()), false));
    }

    #[tokio::test]
    async fn failures_at_one_of_several_endpoints_do_not_open_it() {
        let circuit = Circuit::new(Provider::Apns, "name".into());
        let lost = Attempted {
            outcome: Outcome::ambiguous("connection_lost"),
            provider: Provider::Apns,
            status: None,
            endpoint: "".into(),
            template: "",
            started_at: jiff::Timestamp::UNIX_EPOCH,
            ended_at: jiff::Timestamp::UNIX_EPOCH,
            took: Duration::ZERO,
        };
        for _ in 0..100 {
            circuit.learn(&lost, || true);
        }
        assert_eq!(circuit.admit(), Ok(()));
        for _ in 0..Watched::Endpoint.max_failures() {
            circuit.learn(&lost, || false);
        }
        assert!(circuit.admit().is_err());
    }
}
