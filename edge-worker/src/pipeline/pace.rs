//! Limits the rate of retries to what this process can sustain beside fresh work. Permits limit only how many retries are in
//! flight, not what they cost: a storm of retries that fail immediately would occupy every processor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shared::nats::subject::Tier;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

/// How often the process is tested for delay.
const TIMER_TICK: Duration = Duration::from_millis(10);

/// If a timer fires later than this, tasks are waiting for a processor.
const TIMER_LATE_AFTER: Duration = Duration::from_millis(4);

/// Retries are admitted in portions, each after this many ticks, so that one pull gets several messages.
const TICKS_PER_PORTION: u32 = 5;

/// The minimum rate, however late the timers are: retries must not starve.
const MIN_JOBS_PER_SECOND: f64 = 200.0;

/// After this many portions without fresh work, late timers no longer reduce the rate.
const UNPACED_AFTER_PORTIONS: u32 = 20;

/// The maximum rate; permits limit retries long before.
const MAX_JOBS_PER_SECOND: f64 = 20_000.0;

/// The rate is multiplied by this after a late timer.
const RATE_CUT_FACTOR: f64 = 0.7;

/// The rate is multiplied by this after a punctual timer. With one late timer in 37, the rate stays the same.
const RATE_RAISE_FACTOR: f64 = 1.01;

/// Admits retries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pace {
    /// One permit for each retry that may be pulled now: those of the main tier, and those of the overflow.
    main: Arc<Semaphore>,
    overflow: Arc<Semaphore>,
    /// The number of fresh messages so far.
    fresh: Arc<AtomicU64>,
}

impl Pace {
    /// Returns the pace and the task that adjusts it, which never ends.
    pub fn new() -> (Self, impl Future<Output = ()> + Send) {
        let pace = Self {
            main: Arc::new(Semaphore::new(0)),
            overflow: Arc::new(Semaphore::new(0)),
            fresh: Arc::default(),
        };
        (pace.clone(), pace.adjust())
    }

    /// Counts a fresh message.
    pub(super) fn count_fresh(&self) {
        self.fresh.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until a retry of `tier` may be pulled, and returns how many may be, up to `max`.
    pub(super) async fn admit(&self, tier: Tier, max: usize) -> usize {
        let admissions = match tier {
            Tier::Main => &self.main,
            Tier::Overflow => &self.overflow,
        };
        let Ok(one) = admissions.acquire().await else {
            return 0;
        };
        one.forget();
        1 + admissions.forget_permits(max.saturating_sub(1))
    }

    /// Measures the delay of timers, and admits one portion of retries after another.
    async fn adjust(self) {
        let mut rate = Rate(MIN_JOBS_PER_SECOND);
        let (mut fresh_before, mut quiet_portions) = (0, 0);
        loop {
            let mut portion = 0.0;
            let fresh = self.fresh.load(Ordering::Relaxed);
            quiet_portions = if fresh == fresh_before { quiet_portions + 1 } else { 0 };
            fresh_before = fresh;
            for _ in 0..TICKS_PER_PORTION {
                let started = Instant::now();
                sleep(TIMER_TICK).await;
                let took = started.elapsed();
                // An unused rate does not show what the process can sustain.
                let used = self.admissions().any(|tier| tier.available_permits() == 0);
                let late =
                    took.saturating_sub(TIMER_TICK) > TIMER_LATE_AFTER && quiet_portions < UNPACED_AFTER_PORTIONS;
                rate.adjust(late, used);
                portion += rate.0 * took.as_secs_f64();
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "at most MAX_JOBS_PER_SECOND times some seconds"
            )]
            let portion = portion.ceil() as usize;
            for tier in self.admissions() {
                tier.forget_permits(Semaphore::MAX_PERMITS);
                tier.add_permits(portion);
            }
        }
    }

    fn admissions(&self) -> impl Iterator<Item = &Semaphore> {
        [&*self.main, &*self.overflow].into_iter()
    }
}

/// A rate of retries, in jobs per second.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate(f64);

impl Rate {
    fn adjust(&mut self, late: bool, used: bool) {
        let factor = if late {
            RATE_CUT_FACTOR
        } else if used {
            RATE_RAISE_FACTOR
        } else {
            1.0
        };
        self.0 = (self.0 * factor).clamp(MIN_JOBS_PER_SECOND, MAX_JOBS_PER_SECOND);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_fast_rises_slowly_and_never_stops() {
        let mut rate = Rate(1000.0);
        rate.adjust(true, true);
        assert_eq!(rate, Rate(700.0));
        rate.adjust(false, true);
        assert_eq!(rate, Rate(707.0));
        rate.adjust(false, false);
        assert_eq!(rate, Rate(707.0));
        for _ in 0..100 {
            rate.adjust(true, true);
        }
        assert_eq!(rate, Rate(MIN_JOBS_PER_SECOND));
        for _ in 0..10_000 {
            rate.adjust(false, true);
        }
        assert_eq!(rate, Rate(MAX_JOBS_PER_SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_admitted_no_faster_than_the_rate() {
        let (pace, adjusting) = Pace::new();
        let adjusting = tokio::spawn(adjusting);
        let started = Instant::now();
        let mut taken = 0;
        while taken < 300 {
            taken += pace.admit(Tier::Main, 16).await;
        }
        // The rate starts at 200 per second and grows about 2.7 times every second.
        let took = started.elapsed();
        assert!((0.8..1.6).contains(&took.as_secs_f64()), "{took:?}");
        adjusting.abort();
    }
}
