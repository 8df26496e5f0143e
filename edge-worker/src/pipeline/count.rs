//! Counts what is about to be sent by the region's counters ([`shared::nats::spend`]): the segments of text messages for caps, and
//! notifications for limits. Because the server adds up, no burst through several workers passes a cap or a limit.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use shared::nats::{publish::NotStored, spend};

use super::context::Pipeline;

/// Sums that are kept before those whose windows have ended are dropped.
const SUMS_MIN: usize = 1024;

/// Sums that are kept at most. What is not kept is asked again.
const SUMS_MAX: usize = 200_000;

/// Sums of counters that are used up, as this worker has seen them last. A sum only grows, so such a counter need not be asked again,
/// and a flood that one stops uses up no other.
#[derive(Debug, Default)]
pub struct Sums(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    sums: HashMap<String, Seen>,
    /// How many there are when ended windows are dropped the next time.
    clean_at: usize,
}

/// A sum that was seen.
#[derive(Debug, Clone, Copy)]
struct Seen {
    sum: u64,
    /// When its window ends.
    end: Timestamp,
}

/// What is to be counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted<'a> {
    pub(super) amount: u32,
    /// Its name, for as long as it is counted once.
    pub(super) id: &'a str,
    /// Whether it may have been counted in this window.
    pub(super) is_repeated: bool,
}

/// The counter of a cap or a limit.
#[derive(Debug)]
pub(super) struct Counter {
    pub(super) subject: String,
    /// The most that it allows.
    pub(super) most: u64,
    /// When its window ends.
    pub(super) end: Timestamp,
}

impl Pipeline {
    /// Counts `amount` with all of `counters`, in their order, until one does not allow it: its index.
    ///
    /// # Errors
    /// When a sum is not known.
    pub(super) async fn count(&self, counters: &[Counter], amount: Counted<'_>) -> Result<Option<usize>, NotStored> {
        if let Some(full) = self.sums.forbidding(counters, amount) {
            return Ok(Some(full));
        }
        for (index, counter) in counters.iter().enumerate() {
            let id = format!("{}:{}", amount.id, counter.subject);
            let sum = spend::count(&self.js, counter.subject.clone(), id, amount.amount).await?;
            self.sums.learn(counter, sum, amount, self.clock.now());
            if sum > counter.most {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

impl Sums {
    /// The counter that is known to have no room for `amount`; of several, the one whose window ends last.
    fn forbidding(&self, counters: &[Counter], amount: Counted<'_>) -> Option<usize> {
        let known = self.known();
        // What was counted before is part of the sum.
        let more = if amount.is_repeated {
            0
        } else {
            u64::from(amount.amount)
        };
        let is_full = |counter: &Counter| {
            let seen = known.sums.get(&counter.subject);
            seen.is_some_and(|seen| seen.sum + more > counter.most)
        };
        let full = counters.iter().enumerate().filter(|(_, counter)| is_full(counter));
        full.max_by_key(|(_, counter)| counter.end).map(|(index, _)| index)
    }

    /// Keeps a sum that leaves no room for another such amount.
    fn learn(&self, counter: &Counter, sum: u64, amount: Counted<'_>, now: Timestamp) {
        if sum + u64::from(amount.amount) <= counter.most {
            return;
        }
        let mut known = self.known();
        if let Some(seen) = known.sums.get_mut(&counter.subject) {
            // Answers may overtake each other.
            seen.sum = seen.sum.max(sum);
            return;
        }
        if known.sums.len() >= known.clean_at.max(SUMS_MIN) {
            known.sums.retain(|_, seen| seen.end > now);
            known.clean_at = known.sums.len() * 2;
        }
        if known.sums.len() < SUMS_MAX {
            let seen = Seen { sum, end: counter.end };
            known.sums.insert(counter.subject.clone(), seen);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn counter(name: usize, most: u64, end_s: i64) -> Counter {
        Counter {
            subject: format!("counter.{name}"),
            most,
            end: Timestamp::UNIX_EPOCH + SignedDuration::from_secs(end_s),
        }
    }

    const ONE: Counted<'_> = Counted {
        amount: 1,
        id: "one",
        is_repeated: false,
    };

    #[test]
    fn a_counter_that_is_used_up_is_not_asked_again() {
        let (sums, now) = (Sums::default(), Timestamp::UNIX_EPOCH);
        let counters = [counter(0, 2, 60), counter(1, 1, 3600)];
        sums.learn(&counters[0], 1, ONE, now);
        assert_eq!(sums.forbidding(&counters, ONE), None);
        sums.learn(&counters[0], 2, ONE, now);
        assert_eq!(sums.forbidding(&counters, ONE), Some(0));
        sums.learn(&counters[1], 1, ONE, now);
        assert_eq!(sums.forbidding(&counters, ONE), Some(1), "the later end");
        // It may be the one that was counted.
        let repeated = Counted {
            is_repeated: true,
            ..ONE
        };
        assert_eq!(sums.forbidding(&counters, repeated), None);
        // An answer that was overtaken.
        sums.learn(&counters[0], 3, ONE, now);
        sums.learn(&counters[0], 2, ONE, now);
        assert_eq!(sums.forbidding(&counters, repeated), Some(0));
        // A limit was raised.
        assert_eq!(sums.forbidding(&[counter(0, 4, 60)], ONE), None);
    }

    #[test]
    fn sums_of_windows_that_ended_are_dropped() {
        let (sums, now) = (Sums::default(), Timestamp::UNIX_EPOCH);
        for name in 0..SUMS_MIN {
            sums.learn(&counter(name, 1, 60), 1, ONE, now);
        }
        assert_eq!(sums.known().sums.len(), SUMS_MIN);
        let later = now + SignedDuration::from_secs(61);
        sums.learn(&counter(SUMS_MIN, 1, 120), 1, ONE, later);
        assert_eq!(sums.known().sums.len(), 1);
    }
}
