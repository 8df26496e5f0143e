//! The measurements of one address.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::providers::transport::http2::Host;

/// The mean answer time is used until this long after the last answer.
const ANSWER_RECENT_FOR: Duration = Duration::from_mins(10);

/// An exponentially weighted mean of times, in microseconds; zero until the first. Two writers at once may lose one of
/// two samples, which hardly changes a mean.
#[derive(Debug, Default)]
pub(super) struct Mean(AtomicU64);

impl Mean {
    /// Each sample counts for an eighth.
    pub(super) fn learn(&self, sample: Duration) {
        let sample = micros(sample).max(1);
        let mean = self.0.load(Ordering::Relaxed);
        let next = if mean == 0 {
            sample
        } else {
            mean - mean / 8 + sample / 8
        };
        self.0.store(next, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Option<Duration> {
        let mean = self.0.load(Ordering::Relaxed);
        (mean > 0).then(|| Duration::from_micros(mean))
    }
}

/// A share of 1, in the unit of [`Route::errors`].
pub(super) const FULL_SHARE: u32 = 1 << 16;

/// One address of one endpoint, with its measurements. They are updated at every answer, so they are atomics without a
/// lock.
#[derive(Debug)]
pub(in crate::providers) struct Route {
    pub(in crate::providers) host: Arc<Host>,
    pub(in crate::providers) address: SocketAddr,
    start: Instant,
    pub(super) connect: Mean,
    pub(super) round_trip: Mean,
    pub(super) answer: Mean,
    /// Mean share of failed requests, in parts of [`FULL_SHARE`].
    pub(super) errors: AtomicU32,
    /// Microseconds after `start` of the last answer; zero means never.
    used: AtomicU64,
    pub(super) unhealthy: AtomicBool,
    pub(in crate::providers) connections: AtomicUsize,
}

impl Route {
    pub(super) fn new(host: Arc<Host>, address: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            host,
            address,
            start: Instant::now(),
            connect: Mean::default(),
            round_trip: Mean::default(),
            answer: Mean::default(),
            errors: AtomicU32::new(0),
            used: AtomicU64::new(0),
            unhealthy: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
        })
    }

    /// Records that connecting took `took`.
    pub(in crate::providers) fn connected(&self, took: Duration) {
        self.connect.learn(took);
    }

    /// Records an answer that arrived at `now`, `took` after the request was sent; `failing` if its status is 5xx.
    /// Returns whether the health changed, so that [`super::Endpoints::assess`] must be called.
    pub(in crate::providers) fn answered(&self, now: Instant, took: Duration, failing: bool) -> bool {
        self.answer.learn(took);
        self.used
            .store(micros(now.duration_since(self.start)).max(1), Ordering::Relaxed);
        self.finished(failing)
    }

    /// Records the end of a request. Returns the same as [`Route::answered`].
    pub(in crate::providers) fn finished(&self, failing: bool) -> bool {
        let errors = self.errors.load(Ordering::Relaxed);
        if errors > 0 || failing {
            let sample = if failing { FULL_SHARE / 8 } else { 0 };
            self.errors
                .store(errors - errors.div_ceil(8) + sample, Ordering::Relaxed);
        }
        self.is_failing() != self.unhealthy.load(Ordering::Relaxed)
    }

    pub(super) fn is_failing(&self) -> bool {
        self.errors.load(Ordering::Relaxed) > FULL_SHARE / 2
    }

    pub(super) fn unused_for(&self) -> Option<Duration> {
        let used = self.used.load(Ordering::Relaxed);
        (used > 0).then(|| self.start.elapsed().saturating_sub(Duration::from_micros(used)))
    }

    /// The service time of the server: answer time minus round trip. `None` without a recent answer.
    pub(super) fn service(&self) -> Option<Duration> {
        let is_recent = self.unused_for().is_some_and(|unused| unused < ANSWER_RECENT_FOR);
        let answer = self.answer.get().filter(|_| is_recent)?;
        Some(answer.saturating_sub(self.round_trip.get()?))
    }
}

pub(in crate::providers) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
