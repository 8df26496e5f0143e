//! How fast what comes again may come: as fast as this process can bear beside fresh work. Permits bound how much of it
//! is under way, which says nothing about what that costs; a storm of retries that are refused at once would take every
//! processor.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

/// How often it is looked whether the process keeps up.
const TICK: Duration = Duration::from_millis(10);

/// A timer that rings later than this means that tasks wait for a processor.
const LATE: Duration = Duration::from_millis(4);

/// Jobs are let through in portions, one after so many ticks, so that a pull is worth its while.
const PORTION: u32 = 5;

/// Jobs a second that are let through however late timers are: what comes again must not starve.
const LEAST: f64 = 50.0;

/// Jobs a second beyond which nothing is counted; permits bound it long before.
const MOST: f64 = 20_000.0;

/// What the rate is multiplied by after a timer that was late.
const LESS: f64 = 0.7;

/// And after one that was not: with one late in forty it stays as it is.
const MORE: f64 = 1.01;

/// Lets jobs through. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pace {
    let_through: Arc<Semaphore>,
}

impl Pace {
    /// And what keeps it, which is to run for ever.
    pub fn new() -> (Self, impl Future<Output = ()> + Send) {
        let pace = Self {
            let_through: Arc::new(Semaphore::new(0)),
        };
        (pace.clone(), pace.keep())
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
        let mut rate = Rate(LEAST);
        loop {
            let mut owed = 0.0;
            for _ in 0..PORTION {
                let begun = Instant::now();
                sleep(TICK).await;
                let took = begun.elapsed();
                // A rate that nobody uses says nothing about what can be borne.
                let used = self.let_through.available_permits() == 0;
                rate.learn(took.saturating_sub(TICK), used);
                owed += rate.0 * took.as_secs_f64();
            }
            self.let_through.forget_permits(Semaphore::MAX_PERMITS);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "at most MOST times some seconds"
            )]
            self.let_through.add_permits(owed.ceil() as usize);
        }
    }
}

/// Jobs a second.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate(f64);

impl Rate {
    fn learn(&mut self, late: Duration, used: bool) {
        let factor = if late > LATE {
            LESS
        } else if used {
            MORE
        } else {
            1.0
        };
        self.0 = (self.0 * factor).clamp(LEAST, MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_fast_rises_slowly_and_never_stops() {
        let mut rate = Rate(1000.0);
        rate.learn(LATE * 2, true);
        assert_eq!(rate, Rate(700.0));
        rate.learn(Duration::ZERO, true);
        assert_eq!(rate, Rate(707.0));
        rate.learn(Duration::ZERO, false);
        assert_eq!(rate, Rate(707.0));
        for _ in 0..100 {
            rate.learn(LATE * 2, true);
        }
        assert_eq!(rate, Rate(LEAST));
        for _ in 0..10_000 {
            rate.learn(Duration::ZERO, true);
        }
        assert_eq!(rate, Rate(MOST));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_come_than_are_let_through() {
        let (pace, keeping) = Pace::new();
        let keeping = tokio::spawn(keeping);
        let begun = Instant::now();
        let mut taken = 0;
        while taken < 100 {
            taken += pace.take(16).await;
        }
        // The rate rises from 50 a second by about 2.7 times every second.
        let took = begun.elapsed();
        assert!((0.8..1.6).contains(&took.as_secs_f64()), "{took:?}");
        keeping.abort();
    }
}
