//! What is measured of one address.

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

/// An answer counts for what was measured this long after it came.
const ANSWERS_COUNT: Duration = Duration::from_mins(10);

/// An exponentially weighted mean of times, in microseconds; zero until the first. Two writers at once may lose one of
/// two samples, which a mean can bear.
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

/// All of a share.
pub(super) const WHOLE: u32 = 1 << 16;

/// One address of one endpoint, and what is known of it. Written at every answer, so without any lock.
#[derive(Debug)]
pub(in crate::providers) struct Route {
    pub(in crate::providers) host: Arc<Host>,
    pub(in crate::providers) address: SocketAddr,
    start: Instant,
    pub(super) connect: Mean,
    pub(super) round_trip: Mean,
    pub(super) answer: Mean,
    /// Mean share of failed requests, in parts of [`WHOLE`].
    pub(super) errors: AtomicU32,
    /// Microseconds after `start`; zero means never.
    used: AtomicU64,
    pub(super) ill: AtomicBool,
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
            ill: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
        })
    }

    /// A connection was made in `took`.
    pub(in crate::providers) fn connected(&self, took: Duration) {
        self.connect.learn(took);
    }

    /// A request got an answer at `now`, `took` after it was sent; a failing one if the server is to blame. Returns
    /// whether [`super::Endpoints::judge`] has something to decide.
    pub(in crate::providers) fn answered(&self, now: Instant, took: Duration, failing: bool) -> bool {
        self.answer.learn(took);
        self.used
            .store(micros(now.duration_since(self.start)).max(1), Ordering::Relaxed);
        self.went(failing)
    }

    /// A request went well, or not. Returns as [`Route::answered`].
    pub(in crate::providers) fn went(&self, failing: bool) -> bool {
        let errors = self.errors.load(Ordering::Relaxed);
        if errors > 0 || failing {
            let sample = if failing { WHOLE / 8 } else { 0 };
            self.errors
                .store(errors - errors.div_ceil(8) + sample, Ordering::Relaxed);
        }
        self.is_failing() != self.ill.load(Ordering::Relaxed)
    }

    pub(super) fn is_failing(&self) -> bool {
        self.errors.load(Ordering::Relaxed) > WHOLE / 2
    }

    pub(super) fn unused_for(&self) -> Option<Duration> {
        let used = self.used.load(Ordering::Relaxed);
        (used > 0).then(|| self.start.elapsed().saturating_sub(Duration::from_micros(used)))
    }

    /// What the server itself needs: the time of an answer without the way. `None` if it has not answered lately.
    pub(super) fn service(&self) -> Option<Duration> {
        let lately = self.unused_for().is_some_and(|unused| unused < ANSWERS_COUNT);
        let answer = self.answer.get().filter(|_| lately)?;
        Some(answer.saturating_sub(self.round_trip.get()?))
    }
}

pub(in crate::providers) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
