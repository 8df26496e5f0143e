//! How fast what comes again may come: as fast as this process can bear beside fresh work. Permits bound how much of it
//! is under way, which says nothing about what that costs; a storm of retries that are refused at once would take every
//! processor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

/// How often it is looked whether the process keeps up.
const TIMER_TICK: Duration = Duration::from_millis(10);

/// A timer that rings later than this means that tasks wait for a processor.
const TIMER_LATE_AFTER: Duration = Duration::from_millis(4);

/// Jobs are let through in portions, one after so many ticks, so that a pull is worth its while.
const TICKS_PER_PORTION: u32 = 5;

/// Jobs a second that are let through however late timers are: what comes again must not starve.
const MIN_JOBS_PER_SECOND: f64 = 200.0;

/// Without fresh work for so many portions there is nothing to be careful of.
const UNPACED_AFTER_PORTIONS: u32 = 20;

/// Jobs a second beyond which nothing is counted; permits bound it long before.
const MAX_JOBS_PER_SECOND: f64 = 20_000.0;

/// What the rate is multiplied by after a timer that was late.
const RATE_CUT_FACTOR: f64 = 0.7;

/// And after one that was not: with one late in forty it stays as it is.
const RATE_RAISE_FACTOR: f64 = 1.01;

/// Lets jobs through. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pace {
    let_through: Arc<Semaphore>,
    fresh: Arc<AtomicU64>,
}

impl Pace {
    /// And what keeps it, which is to run for ever.
    pub fn new() -> (Self, impl Future<Output = ()> + Send) {
        let pace = Self {
            let_through: Arc::new(Semaphore::new(0)),
            fresh: Arc::default(),
        };
        (pace.clone(), pace.keep())
    }

    /// Fresh work has come.
    pub(super) fn saw_fresh(&self) {
        self.fresh.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until one job may come, and takes as many as may, up to `most`.
    pub(super) async fn take(&self, most: usize) -> usize {
        let Ok(one) = self.let_through.acquire().await else {
            return 0;
        };
        one.forget();
        1 + self.let_through.forget_permits(most.saturating_sub(1))
    }

    /// Measures and lets through.
    async fn keep(self) {
        let mut rate = Rate(MIN_JOBS_PER_SECOND);
        let (mut seen, mut portions_alone) = (0, 0);
        loop {
            let mut owed = 0.0;
            let fresh = self.fresh.load(Ordering::Relaxed);
            portions_alone = if fresh == seen { portions_alone + 1 } else { 0 };
            seen = fresh;
            for _ in 0..TICKS_PER_PORTION {
                let begun = Instant::now();
                sleep(TIMER_TICK).await;
                let took = begun.elapsed();
                // A rate that nobody uses says nothing about what can be borne.
                let used = self.let_through.available_permits() == 0;
                let late =
                    took.saturating_sub(TIMER_TICK) > TIMER_LATE_AFTER && portions_alone < UNPACED_AFTER_PORTIONS;
                rate.learn(late, used);
                owed += rate.0 * took.as_secs_f64();
            }
            self.let_through.forget_permits(Semaphore::MAX_PERMITS);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "at most MAX_JOBS_PER_SECOND times some seconds"
            )]
            self.let_through.add_permits(owed.ceil() as usize);
        }
    }
}

/// Jobs a second.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate(f64);

impl Rate {
    fn learn(&mut self, late: bool, used: bool) {
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
        rate.learn(true, true);
        assert_eq!(rate, Rate(700.0));
        rate.learn(false, true);
        assert_eq!(rate, Rate(707.0));
        rate.learn(false, false);
        assert_eq!(rate, Rate(707.0));
        for _ in 0..100 {
            rate.learn(true, true);
        }
        assert_eq!(rate, Rate(MIN_JOBS_PER_SECOND));
        for _ in 0..10_000 {
            rate.learn(false, true);
        }
        assert_eq!(rate, Rate(MAX_JOBS_PER_SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_come_than_are_let_through() {
        let (pace, keeping) = Pace::new();
        let keeping = tokio::spawn(keeping);
        let begun = Instant::now();
        let mut taken = 0;
        while taken < 300 {
            taken += pace.take(16).await;
        }
        // The rate rises from 200 a second by about 2.7 times every second.
        let took = begun.elapsed();
        assert!((0.8..1.6).contains(&took.as_secs_f64()), "{took:?}");
        keeping.abort();
    }
}
