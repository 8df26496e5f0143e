//! The age of a region's knowledge of consent. A recipient may opt out in any region, and the home region learns of it only
//! when that region's outbox reaches it.

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

/// How often the region's server is asked when it last received from each other region.
const CHECK_SOURCES_EVERY: Duration = Duration::from_secs(1);

/// Seconds of silence from another region after which consent counts as stale, by class. Stale `bulk` is suppressed; stale
/// `urgent` and `normal` are sent, and their receipts state the age.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaleAfter {
    /// Seconds for `urgent`.
    pub urgent: u32,
    /// Seconds for `normal`.
    pub normal: u32,
    /// Seconds for `bulk`.
    pub bulk: u32,
}

/// The current age of consent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Freshness {
    age_s: Arc<AtomicU32>,
    stale_after: StaleAfter,
}

impl Freshness {
    /// Returns an age of zero, which [`Self::keep_current`] updates.
    pub fn new(stale_after: StaleAfter) -> Self {
        Self {
            age_s: Arc::default(),
            stale_after,
        }
    }

    /// The age in seconds, if consent is stale for `class`.
    pub fn stale(&self, class: Class) -> Option<u32> {
        let limit = match class {
            Class::Urgent => self.stale_after.urgent,
            Class::Normal => self.stale_after.normal,
            Class::Bulk => self.stale_after.bulk,
        };
        Some(self.age_s.load(Ordering::Relaxed)).filter(|age| *age > limit)
    }

    /// Updates the age until the process ends. It is the silence of the region that has been silent longest. The silence of a
    /// region that has never been received from starts now.
    pub async fn keep_current(self, client: Client, region: Region) {
        let mut last_received: HashMap<String, Instant> = HashMap::new();
        let mut ticks = interval(CHECK_SOURCES_EVERY);
        loop {
            ticks.tick().await;
            match topology::sources(&client, &region, topology::RECIPIENTS).await {
                Ok(sources) => {
                    last_received.retain(|from, _| sources.iter().any(|source| source.from == *from));
                    let silences = sources.into_iter().map(|source| silence(&mut last_received, source));
                    let longest = silences.max().unwrap_or_default();
                    let seconds = u32::try_from(longest.as_secs()).unwrap_or(u32::MAX);
                    self.age_s.store(seconds, Ordering::Relaxed);
                }
                Err(error) => tracing::debug!(%error, "the region's sources cannot be read"),
            }
        }
    }
}

fn silence(last_received: &mut HashMap<String, Instant>, source: Sourced) -> Duration {
    let now = Instant::now();
    let last = last_received.entry(source.from).or_insert(now);
    // A restarted server does not know when it last received from a region; this process may.
    if let Some(then) = source.silent.and_then(|silent| now.checked_sub(silent)) {
        *last = then.max(*last);
    }
    now.duration_since(*last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_restarted_server_does_not_reset_the_silence_of_a_region() {
        let mut last_received = HashMap::new();
        let mut silence_s = |silent: Option<u64>| {
            let source = Sourced {
                stream: "OUTBOX".into(),
                from: "us".into(),
                lag: 0,
                silent: silent.map(Duration::from_secs),
            };
            silence(&mut last_received, source).as_secs()
        };
        assert_eq!(silence_s(None), 0);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(silence_s(None), 100);
        assert_eq!(silence_s(Some(1)), 1);
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(silence_s(None), 51);
        assert_eq!(silence_s(Some(200)), 51);
    }
}
