//! Records by the hour which API keys are used, in batches: requests wait for nothing.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use shared::{lifecycle::Lifecycle, nats::key_use};
use tokio::time::sleep;

use crate::context::Context;

/// How long uses are collected before they are recorded together.
const COLLECT_FOR: Duration = Duration::from_secs(5);

/// The keys that this gateway has used, each with the beginning of the last hour in which it did. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyUses(Arc<Mutex<Uses>>);

#[derive(Debug, Default)]
struct Uses {
    last: HashMap<String, Timestamp>,
    /// Those that are not recorded yet.
    new: BTreeSet<String>,
}

impl KeyUses {
    /// Notes that the key with this id is used at `now`.
    pub(crate) fn note(&self, key_id: &str, now: Timestamp) {
        let hour = key_use::hour(now);
        let mut uses = self.lock();
        if uses.last.get(key_id).is_some_and(|last| *last >= hour) {
            return;
        }
        uses.last.insert(key_id.to_owned(), hour);
        uses.new.insert(key_id.to_owned());
    }

    /// Begins to record uses, until the process ends.
    pub(crate) fn start(context: &Arc<Context>, lifecycle: &Lifecycle) -> Self {
        let uses = Self::default();
        lifecycle.spawn_endless("key use", uses.clone().run(Arc::clone(context)));
        uses
    }

    async fn run(self, context: Arc<Context>) {
        loop {
            sleep(COLLECT_FOR).await;
            let keys: Vec<String> = {
                let tenants = context.config.tenants();
                let mut uses = self.lock();
                uses.last.retain(|key_id, _| tenants.keys.contains_key(key_id));
                std::mem::take(&mut uses.new).into_iter().collect()
            };
            if keys.is_empty() {
                continue;
            }
            let hour = key_use::hour(context.clock.now());
            let recording = key_use::record(&context.js, &context.border, &context.here, &keys, hour);
            if let Err(error) = recording.await {
                tracing::debug!(%error, "it is recorded later which keys are used");
                self.lock().new.extend(keys);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Uses> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_noted_once_an_hour() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let uses = KeyUses::default();
        let new = || std::mem::take(&mut uses.lock().new).len();
        for (time, expected) in [("10:00:00", 1), ("10:59:59", 0), ("11:00:00", 1), ("10:59:59", 0)] {
            uses.note("0123456789abcdef", at(&format!("2026-11-26T{time}Z")));
            assert_eq!(new(), expected, "{time}");
        }
    }
}
