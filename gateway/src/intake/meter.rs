//! A rate with a burst: the generic cell rate algorithm (ITU-T I.371) on one atomic.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Instants are kept as nanoseconds since this one.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Measures how much of a rate is used. Unlike a token bucket from a library, it admits a request that is larger than the
/// burst once nothing is owed; what the request took beyond the burst is owed then.
#[derive(Debug)]
pub(crate) struct Meter {
    /// Nanoseconds in which one unit comes back.
    unit_ns: u64,
    /// Nanoseconds in which a whole burst comes back.
    burst_ns: u64,
    /// When everything that was taken has come back, in nanoseconds since [`EPOCH`].
    free_at: AtomicU64,
}

/// What is left of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    /// Units that may be taken now.
    pub(crate) units: u64,
    /// Until the whole burst may be taken.
    pub(crate) whole_in: Duration,
}

impl Meter {
    /// `per_s` units a second, and `burst` at once.
    pub(crate) fn new(per_s: u32, burst: u32) -> Self {
        let unit_ns = 1_000_000_000 / u64::from(per_s.max(1));
        Self {
            unit_ns,
            burst_ns: unit_ns * u64::from(burst.max(1)),
            free_at: AtomicU64::new(0),
        }
    }

    /// Takes `units`, or returns the time after which they may be taken.
    pub(crate) fn take(&self, units: u64) -> Result<Left, Duration> {
        let now = now_ns();
        let cost = self.unit_ns.saturating_mul(units);
        let mut free_at = self.free_at.load(Ordering::Relaxed);
        loop {
            let from = free_at.max(now);
            let beyond = (from + cost.min(self.burst_ns)).saturating_sub(now + self.burst_ns);
            if beyond > 0 {
                return Err(Duration::from_nanos(beyond));
            }
            let next = from.saturating_add(cost);
            match self
                .free_at
                .compare_exchange_weak(free_at, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Ok(self.left_at(next, now)),
                Err(current) => free_at = current,
            }
        }
    }

    /// What may be taken now.
    pub(crate) fn left(&self) -> Left {
        self.left_at(self.free_at.load(Ordering::Relaxed), now_ns())
    }

    fn left_at(&self, free_at: u64, now: u64) -> Left {
        let used = free_at.saturating_sub(now);
        Left {
            units: self.burst_ns.saturating_sub(used) / self.unit_ns,
            whole_in: Duration::from_nanos(used),
        }
    }
}

fn now_ns() -> u64 {
    u64::try_from(EPOCH.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_comes_back_at_the_rate() {
        let meter = Meter::new(10, 5);
        assert_eq!(meter.take(5).unwrap().units, 0);
        assert_eq!(meter.take(1), Err(Duration::from_millis(100)));
        advance(Duration::from_millis(100)).await;
        assert_eq!(meter.take(1).unwrap().units, 0);
        advance(Duration::from_mins(1)).await;
        assert_eq!(
            meter.left(),
            Left {
                units: 5,
                whole_in: Duration::ZERO
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_beyond_the_burst_is_owed() {
        let meter = Meter::new(10, 10);
        meter.take(30).unwrap();
        assert_eq!(meter.take(1), Err(Duration::from_millis(2100)));
        advance(Duration::from_millis(2100)).await;
        meter.take(1).unwrap();
    }
}
