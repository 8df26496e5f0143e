//! How much work each app stores for later: retries and slices. Work beyond an app's share goes to the overflow of its lane, so
//! that an app whose provider is down, or who sends a large broadcast, does not hold up the retries and broadcasts of others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use shared::{id::AppId, nats::subject::Tier};
use tokio::time::Instant;

/// Retries a second that each app may store before its further retries go to the overflow.
const RETRIES_PER_S: f64 = 50.0;

/// Retries that each app may store at once before its further retries go to the overflow.
const RETRIES_BURST: f64 = 200.0;

/// Members of broadcasts a second that each app may have in slices before its further slices go to the overflow.
const MEMBERS_PER_S: f64 = 500.0;

/// Members of broadcasts that each app may have in slices at once before its further slices go to the overflow: one slice,
/// because a lane works on few slices at a time.
const MEMBERS_BURST: f64 = 1000.0;

/// The shares of all apps. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shares(Arc<Mutex<HashMap<AppId, Shared>>>);

#[derive(Debug)]
struct Shared {
    retries: Level,
    members: Level,
}

/// A leaky bucket.
#[derive(Debug)]
struct Level {
    filled: f64,
    at: Instant,
    per_s: f64,
    burst: f64,
}

impl Shares {
    /// The tier for a retry of `app`.
    pub(super) fn of_retry(&self, app: &AppId) -> Tier {
        self.with(app, |shared| shared.retries.add(1.0))
    }

    /// The tier for a slice of `members` members of a broadcast of `app`.
    pub(super) fn of_slice(&self, app: &AppId, members: u32) -> Tier {
        self.with(app, |shared| shared.members.add(f64::from(members)))
    }

    fn with(&self, app: &AppId, add: impl FnOnce(&mut Shared) -> Tier) -> Tier {
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = shares.get_mut(app) {
            return add(shared);
        }
        add(shares.entry(app.clone()).or_insert_with(|| Shared {
            retries: Level::new(RETRIES_PER_S, RETRIES_BURST),
            members: Level::new(MEMBERS_PER_S, MEMBERS_BURST),
        }))
    }
}

impl Level {
    fn new(per_s: f64, burst: f64) -> Self {
        Self {
            filled: 0.0,
            at: Instant::now(),
            per_s,
            burst,
        }
    }

    /// Adds `amount` if it fits, or if nothing else is there.
    fn add(&mut self, amount: f64) -> Tier {
        let now = Instant::now();
        let leaked = now.duration_since(self.at).as_secs_f64() * self.per_s;
        (self.filled, self.at) = ((self.filled - leaked).max(0.0), now);
        if self.filled > 0.0 && self.filled + amount > self.burst {
            return Tier::Overflow;
        }
        self.filled += amount;
        Tier::Main
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_storm_of_retries_overflows_and_another_app_does_not() {
        let shares = Shares::default();
        let (down, well) = ("down".parse().unwrap(), "well".parse().unwrap());
        let tiers: Vec<Tier> = (0..300).map(|_| shares.of_retry(&down)).collect();
        assert_eq!(tiers.iter().filter(|tier| **tier == Tier::Main).count(), 200);
        assert_eq!((tiers[199], tiers[200]), (Tier::Main, Tier::Overflow));
        assert_eq!(shares.of_retry(&well), Tier::Main);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(shares.of_retry(&down), Tier::Main);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_slice_of_a_large_broadcast_does_not_overflow() {
        let (shares, app) = (Shares::default(), "news".parse().unwrap());
        let tiers: Vec<Tier> = (0..6).map(|_| shares.of_slice(&app, 1000)).collect();
        assert_eq!(tiers[..2], [Tier::Main, Tier::Overflow]);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(shares.of_slice(&app, 50_000), Tier::Main, "nothing else is there");
    }
}
