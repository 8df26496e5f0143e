//! Filling the cache: follows the region's bucket from the last applied sequence.

use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt;
use shared::{
    nats::{
        follow::{self, Entry, FollowError},
        subject, topology,
    },
    telemetry::metric::Metrics,
};
use tokio::sync::watch;

use super::{Became, Change, Store, StoreError};

/// Most facts in one transaction: large enough that sorting pays, small enough to stay below 200 MB.
const MAX_FACTS_PER_TRANSACTION: usize = 250_000;

/// Follows the bucket `recipients` into the cache.
#[derive(Debug)]
pub struct Sync {
    js: jetstream::Context,
    store: Store,
    metrics: Metrics,
    caught_up: watch::Sender<bool>,
}

/// Why following stopped; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The bucket cannot be followed.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The cache cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A read found the cache damaged.
    #[error("the cache was found damaged")]
    Damaged,
}

impl Sync {
    /// Prepares to fill `store`.
    pub fn new(js: jetstream::Context, store: Store, metrics: Metrics) -> Self {
        Self {
            js,
            store,
            metrics,
            caught_up: watch::channel(false).0,
        }
    }

    /// Whether the cache has seen everything the bucket held when following began.
    pub fn caught_up(&self) -> watch::Receiver<bool> {
        self.caught_up.subscribe()
    }

    /// Follows for ever.
    pub async fn run(self) {
        loop {
            if let Err(error) = self.follow().await {
                tracing::info!(%error, "recipients are followed anew");
                if matches!(error, SyncError::Damaged | SyncError::Store(_)) {
                    self.caught_up.send_replace(false);
                    if let Err(error) = self.store.begin_anew() {
                        tracing::error!(%error, "cache cannot be begun anew");
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn follow(&self) -> Result<(), SyncError> {
        let stream = follow::stream_state(&self.js, topology::RECIPIENTS).await?;
        let created_at = stream.created_at.as_millisecond();
        let resume = match self.store.standing()? {
            None => 0,
            Some((sequence, created)) if created == created_at && sequence <= stream.last => sequence,
            Some(_) => {
                // The bucket was made anew or lost its end: its sequences mean something else now.
                tracing::warn!("the bucket of recipients is not the one the cache copied; filling it anew");
                self.store.begin_anew()?;
                0
            }
        };
        if resume == stream.last {
            self.caught_up.send_replace(true);
        }
        let entries = follow::follow(&self.js, topology::RECIPIENTS, ">", resume + 1).await?;
        let mut entries = entries.ready_chunks(8192);
        let mut waiting: Vec<Change> = Vec::new();
        while let Some(chunk) = entries.next().await {
            let (mut sequence, mut pending) = (0, 0);
            for entry in chunk {
                let entry = entry?;
                (sequence, pending) = (entry.sequence, entry.pending);
                waiting.extend(change(&entry));
            }
            if self.store.is_damaged() {
                return Err(SyncError::Damaged);
            }
            // While there is more to come a transaction is worth filling; then every change is applied at once.
            if pending > 0 && waiting.len() < MAX_FACTS_PER_TRANSACTION {
                continue;
            }
            let (store, changes) = (self.store.clone(), std::mem::take(&mut waiting));
            tokio::task::spawn_blocking(move || store.apply(changes, sequence, created_at))
                .await
                .map_err(|_| StoreError::Damaged)??;
            self.metrics.cached(sequence);
            if pending == 0 {
                self.caught_up.send_replace(true);
            }
        }
        Ok(())
    }
}

fn change(entry: &Entry) -> Option<Change> {
    let key = subject::fact_key_of(&entry.subject)?.to_owned();
    // A fact of a kind that this version does not know is left alone.
    subject::parse_fact_key(&key)?;
    let became = if entry.is_removal() {
        entry.moved().map_or(Became::Nothing, Became::TakenAlong)
    } else {
        Became::Fact(entry.payload.to_vec())
    };
    Some((key, entry.sequence, became))
}
