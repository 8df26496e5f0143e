//! How old is what a region knows of consent. A recipient may opt out in any region; the home hears of it when that
//! region's outbox reaches it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_nats::Client;
use serde::Deserialize;
use shared::{
    channel::Class,
    id::Region,
    nats::topology::{self, Sourced},
};
use tokio::time::{Instant, interval};

/// How often the region's servers are asked whom they hear.
const CHECK_SOURCES_EVERY: Duration = Duration::from_secs(1);

/// After how many seconds without a word from another region what is known counts as stale, by class. Then `bulk` is
/// suppressed; the others are sent, and their receipts say how old it was.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaleAfter {
    /// For `urgent`.
    pub urgent: u32,
    /// For `normal`.
    pub normal: u32,
    /// For `bulk`.
    pub bulk: u32,
}

/// The age of what is known. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Freshness {
    age_s: Arc<AtomicU32>,
    stale_after: StaleAfter,
}

impl Freshness {
    /// Fresh, until [`Self::keep`] finds otherwise.
    pub fn new(stale_after: StaleAfter) -> Self {
        Self {
            age_s: Arc::default(),
            stale_after,
        }
    }

    /// The age in seconds, if that is more than `class` may bear.
    pub fn stale(&self, class: Class) -> Option<u32> {
        let most = match class {
            Class::Urgent => self.stale_after.urgent,
            Class::Normal => self.stale_after.normal,
            Class::Bulk => self.stale_after.bulk,
        };
        Some(self.age_s.load(Ordering::Relaxed)).filter(|age| *age > most)
    }

    /// Keeps the age current for ever: that of the region that was silent for longest. One that was never heard of
    /// counts from now on.
    pub async fn keep(self, client: Client, region: Region) {
        let mut heard: HashMap<String, Instant> = HashMap::new();
        let mut looks = interval(CHECK_SOURCES_EVERY);
        loop {
            looks.tick().await;
            match topology::sources(&client, &region, topology::RECIPIENTS).await {
                Ok(sources) => {
                    heard.retain(|from, _| sources.iter().any(|source| source.from == *from));
                    let ages = sources.into_iter().map(|source| age(&mut heard, source));
                    let oldest = ages.max().unwrap_or_default();
                    let seconds = u32::try_from(oldest.as_secs()).unwrap_or(u32::MAX);
                    self.age_s.store(seconds, Ordering::Relaxed);
                }
                Err(error) => tracing::debug!(%error, "the region's sources cannot be looked at"),
            }
        }
    }
}

fn age(heard: &mut HashMap<String, Instant>, source: Sourced) -> Duration {
    let now = Instant::now();
    let last = heard.entry(source.from).or_insert(now);
    // A server that was started anew does not know when it last heard; this process may.
    if let Some(then) = source.silent.and_then(|silent| now.checked_sub(silent)) {
        *last = then.max(*last);
    }
    now.duration_since(*last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_heard_once_is_not_forgotten_by_a_new_server() {
        let mut heard = HashMap::new();
        let mut look = |silent: Option<u64>| {
            let source = Sourced {
                stream: "OUTBOX".into(),
                from: "us".into(),
                lag: 0,
                silent: silent.map(Duration::from_secs),
            };
            age(&mut heard, source).as_secs()
        };
        assert_eq!(look(None), 0);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(look(None), 100);
        assert_eq!(look(Some(1)), 1);
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(look(None), 51);
        assert_eq!(look(Some(200)), 51);
    }
}
