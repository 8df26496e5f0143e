//! How long to wait before another attempt.

use std::time::Duration;

use rand::Rng;

/// Longest wait that a provider may impose; beyond it the clock of one of the two is wrong.
pub const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// An exponential schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Before the second attempt.
    pub first: Duration,
    /// By what each wait is longer than the one before.
    pub factor: u32,
    /// Never longer than this.
    pub most: Duration,
}

impl Backoff {
    /// How long to wait after attempt number `attempt` (from 1) failed.
    ///
    /// Grows by the factor each time up to the cap, with a quarter of jitter on top so that a herd spreads out. Never shorter than
    /// what the provider asked for, which itself counts at most [`MAX_RETRY_AFTER`].
    pub fn after(self, attempt: u32, asked: Option<Duration>, random: &mut impl Rng) -> Duration {
        let factor = self.factor.saturating_pow(attempt.saturating_sub(1).min(20));
        let least = self.first.saturating_mul(factor).min(self.most);
        let least = least.max(asked.unwrap_or_default().min(MAX_RETRY_AFTER));
        least + least.mul_f64(random.random_range(0.0..0.25))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Provider;
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    proptest! {
        #[test]
        fn never_earlier_than_asked_and_never_beyond_the_cap(attempt in 1u32..1000, asked in 0u64..100_000, seed: u64) {
            let schedule = Provider::Fcm.backoff();
            let asked = Duration::from_secs(asked);
            let wait = schedule.after(attempt, Some(asked), &mut StdRng::seed_from_u64(seed));
            prop_assert!(wait >= asked.min(MAX_RETRY_AFTER));
            prop_assert!(wait >= schedule.first);
            prop_assert!(wait <= MAX_RETRY_AFTER.mul_f64(1.25));
        }

        #[test]
        fn it_grows_up_to_the_cap_and_adds_at_most_a_quarter(attempt: u32, seed: u64) {
            for provider in Provider::ALL {
                let schedule = provider.backoff();
                let steps = attempt.saturating_sub(1).min(40).cast_signed();
                let plain = schedule.first.as_secs_f64() * f64::from(schedule.factor).powi(steps);
                let least = plain.min(schedule.most.as_secs_f64());
                let wait = schedule.after(attempt, None, &mut StdRng::seed_from_u64(seed)).as_secs_f64();
                prop_assert!((least..=least * 1.25).contains(&wait), "{wait} after attempt {attempt}");
            }
        }
    }

    #[test]
    fn a_herd_spreads_out() {
        let mut random = StdRng::seed_from_u64(1);
        let waits: std::collections::HashSet<_> = (0..100)
            .map(|_| Provider::Apns.backoff().after(3, None, &mut random))
            .collect();
        assert!(waits.len() > 90, "{} different waits", waits.len());
    }
}
