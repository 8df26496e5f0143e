//! Gives the region's bucket what it has lost and this cache still holds: all facts, if the bucket was deleted, and those that
//! another region has replaced without a signature.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use shared::nats::{
    ask::Regions,
    direct::NoAnswer,
    follow::StreamState,
    restore::{Former, Kept},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{Position, Store, StoreError};

/// Facts that are handed to a gateway in one question. With an address of several kilobytes each they stay below the size of
/// a message.
const FACTS_AT_ONCE: usize = 200;

/// How often a restoration that lasts records that it goes on.
const RECORD_PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// The pause before a gateway is asked again that did not answer.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Replaced facts that wait to be written again. A flood of more is mended by the cache that is filled last.
const REPLACED_WAITING_MAX: usize = 10_000;

/// A fact that was replaced without a signature.
#[derive(Debug)]
pub(super) struct Replaced {
    /// Its key in the bucket.
    pub(super) key: String,
    /// The sequence of what replaced it.
    pub(super) by: u64,
}

/// Restores the bucket of a worker's own region.
#[derive(Debug)]
pub(super) struct Restorer {
    regions: Regions,
    store: Store,
    /// Whether the cache was current when the bucket was deleted.
    was_current: AtomicBool,
    replaced: mpsc::Sender<Replaced>,
}

impl Restorer {
    /// A restorer, and what [`Self::mend`] reads from.
    pub(super) fn new(regions: Regions, store: Store) -> (Self, mpsc::Receiver<Replaced>) {
        let (replaced, waiting) = mpsc::channel(REPLACED_WAITING_MAX);
        let restorer = Self {
            regions,
            store,
            was_current: AtomicBool::new(false),
            replaced,
        };
        (restorer, waiting)
    }

    /// Records that the bucket is gone, while the cache held all of it.
    pub(super) fn bucket_is_gone(&self) {
        self.was_current.store(true, Ordering::Relaxed);
    }

    /// Records that the cache copies the new bucket from now on.
    pub(super) fn cache_is_reset(&self) {
        self.was_current.store(false, Ordering::Relaxed);
    }

    /// Whether this cache, which copied another bucket than the one that replaces `former`, holds all of it: it followed the
    /// former to its end, or had reached what the gateways saw of it last.
    pub(super) fn holds(&self, former: Former, position: Position) -> bool {
        let reached = position.created_at_ms == former.created_at_ms && position.sequence >= former.sequence;
        self.was_current.load(Ordering::Relaxed) || reached
    }

    /// Whether `bucket` has all facts of the one that it replaces.
    ///
    /// # Errors
    /// When the leader of the region's directory does not answer.
    pub(super) async fn is_complete(&self, bucket: &StreamState) -> Result<bool, NoAnswer> {
        self.regions.has_facts(bucket).await
    }

    /// Puts every fact of the cache into `bucket` that it does not have, and records that it is complete.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub(super) async fn restore(&self, bucket: &StreamState) -> Result<(), StoreError> {
        let bucket_ms = bucket.created_at.as_millisecond();
        let (mut after, mut facts, mut recorded) = (None::<String>, 0, Instant::now());
        loop {
            let (store, from) = (self.store.clone(), after.clone());
            let reading = tokio::task::spawn_blocking(move || store.facts_after(from.as_deref(), FACTS_AT_ONCE));
            let read = reading.await.map_err(|_| StoreError::Damaged)??;
            let Some((last, _)) = read.last() else { break };
            after = Some(last.clone());
            facts += read.len();
            let kept: Vec<Kept> = read.into_iter().filter_map(|(key, json)| kept(key, json, 0)).collect();
            until_answered("put facts back", || self.regions.put_back(kept.clone())).await;
            if recorded.elapsed() >= RECORD_PROGRESS_EVERY {
                recorded = Instant::now();
                // Another worker may have completed it, which must stay so; then this one ends soon too.
                until_answered("record progress", || self.regions.mark_restored(bucket_ms, false)).await;
            }
        }
        until_answered("record the restoration", || self.regions.mark_restored(bucket_ms, true)).await;
        tracing::warn!(facts, "restored the bucket of recipients from the cache");
        Ok(())
    }

    /// Has a fact written again that was replaced without a signature.
    pub(super) fn replaced(&self, fact: Replaced) {
        if self.replaced.try_send(fact).is_err() {
            tracing::error!("too many facts were replaced without a signature; this one stays replaced in the bucket");
        }
    }

    /// Writes replaced facts again, which the cache still holds, until the process ends.
    pub(super) async fn mend(&self, mut waiting: mpsc::Receiver<Replaced>) {
        let mut replaced = Vec::new();
        while waiting.recv_many(&mut replaced, FACTS_AT_ONCE).await > 0 {
            let kept = replaced.drain(..).filter_map(|fact| {
                let json = self.store.fact(&fact.key).ok().flatten()?;
                kept(fact.key, json, fact.by)
            });
            let kept: Vec<Kept> = kept.collect();
            if !kept.is_empty() {
                let facts = kept.len();
                until_answered("mend facts", || self.regions.put_back(kept.clone())).await;
                tracing::warn!(
                    facts,
                    "wrote facts again that another region had replaced without a signature"
                );
            }
        }
    }
}

fn kept(key: String, json: Vec<u8>, instead_of: u64) -> Option<Kept> {
    let value = String::from_utf8(json).ok()?;
    Some(Kept { key, instead_of, value })
}

async fn until_answered<F: Future<Output = Result<(), NoAnswer>>>(what: &str, mut ask: impl FnMut() -> F) {
    let mut is_logged = false;
    while let Err(error) = ask().await {
        if !is_logged {
            tracing::warn!(%error, "no gateway could {what}; retrying");
            is_logged = true;
        }
        sleep(RETRY_AFTER).await;
    }
}
