//! Fills the cache: follows the region's bucket from the last applied sequence.

use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt;
use shared::{
    nats::{
        ask::Regions,
        border::Border,
        direct::NoAnswer,
        follow::{self, Entry, FollowError, StreamState},
        subject, topology,
    },
    telemetry::metric::Metrics,
};
use tokio::{
    join,
    sync::{mpsc, watch},
};

use super::{
    Action, Change, Position, Store, StoreError,
    restore::{Replaced, Restorer},
};

/// Large enough that sorting pays, small enough to stay below 200 MB.
const MAX_FACTS_PER_TRANSACTION: usize = 250_000;

/// The pause before the bucket is followed again after an interruption.
const RETRY_FOLLOW_AFTER: Duration = Duration::from_millis(200);

/// Copies the bucket `recipients` into the cache.
#[derive(Debug)]
pub struct FactFollower {
    js: jetstream::Context,
    store: Store,
    border: Border,
    metrics: Metrics,
    caught_up: watch::Sender<bool>,
    /// Restores the bucket. A helper does not: the region's own workers do.
    restorer: Option<Restorer>,
    replaced: Option<mpsc::Receiver<Replaced>>,
}

/// Why following stopped. It is always retried.
#[derive(Debug, thiserror::Error)]
pub enum FollowerError {
    /// The bucket cannot be followed.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The cache cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not known whether the bucket is complete.
    #[error("whether the bucket is restored is not known: {0}")]
    Unknown(#[from] NoAnswer),
    /// The bucket was deleted while it was restored.
    #[error("the bucket was deleted while it was restored")]
    Incomplete,
    /// A read detected that the cache is damaged.
    #[error("the cache is damaged")]
    Damaged,
}

impl FactFollower {
    /// Prepares to fill `store` with the facts that `border` admits. With `regions`, the gateways of the store's own region,
    /// the bucket gets back from it what it has lost.
    pub fn new(
        js: jetstream::Context,
        store: Store,
        border: Border,
        metrics: Metrics,
        regions: Option<Regions>,
    ) -> Self {
        let (restorer, replaced) = regions.map(|regions| Restorer::new(regions, store.clone())).unzip();
        Self {
            restorer,
            replaced,
            js,
            store,
            border,
            metrics,
            caught_up: watch::channel(false).0,
        }
    }

    /// Whether the cache holds everything that the bucket held when following began.
    pub fn caught_up(&self) -> watch::Receiver<bool> {
        self.caught_up.subscribe()
    }

    /// Follows the bucket until the process ends.
    pub async fn run(mut self) {
        let replaced = self.replaced.take();
        let mending = async {
            if let (Some(restorer), Some(replaced)) = (&self.restorer, replaced) {
                restorer.mend(replaced).await;
            }
        };
        join!(self.follow_forever(), mending);
    }

    async fn follow_forever(&self) {
        self.border.ready().await;
        loop {
            if let Err(error) = self.follow().await {
                tracing::info!(%error, "following the recipients was interrupted; retrying");
                if matches!(&error, FollowerError::Follow(error) if error.is_gone()) {
                    self.bucket_is_gone();
                }
                if matches!(error, FollowerError::Damaged | FollowerError::Store(_)) {
                    self.caught_up.send_replace(false);
                    if let Err(error) = self.store.reset() {
                        tracing::error!(%error, "cache cannot be replaced");
                    }
                }
            }
            tokio::time::sleep(RETRY_FOLLOW_AFTER).await;
        }
    }

    async fn follow(&self) -> Result<(), FollowerError> {
        let stream = follow::stream_state(&self.js, topology::RECIPIENTS).await?;
        let end = Position::end_of(&stream);
        let at = |sequence| Position { sequence, ..end };
        let known = self.store.position();
        if known != Position::default() && !end.reaches(known) {
            // The bucket was created again or lost its newest messages: its sequences now mean something else.
            self.bucket_is_gone();
            if let (Some(restorer), Some(former)) = (&self.restorer, stream.former)
                && restorer.holds(former, known)
                && !restorer.is_complete(&stream).await?
            {
                restorer.restore(&stream).await?;
                if !restorer
                    .is_complete(&follow::stream_state(&self.js, topology::RECIPIENTS).await?)
                    .await?
                {
                    // It was deleted once more meanwhile.
                    return Err(FollowerError::Incomplete);
                }
            }
            tracing::warn!("the bucket of recipients is not the one that the cache copied; refilling the cache");
            self.store.reset()?;
            if let Some(restorer) = &self.restorer {
                restorer.cache_is_reset();
            }
        }
        if stream.messages == 0 {
            // No message will say that the end is reached.
            self.apply(Vec::new(), end).await?;
        }
        let resume = self.store.position().sequence;
        if resume == end.sequence {
            self.caught_up.send_replace(true);
        }
        let entries = follow::follow(&self.js, topology::RECIPIENTS, ">", resume + 1).await?;
        let mut entries = entries.ready_chunks(8192);
        let mut changes: Vec<Change> = Vec::new();
        let mut replaced: Vec<Replaced> = Vec::new();
        while let Some(chunk) = entries.next().await {
            let (mut sequence, mut pending) = (0, 0);
            for entry in chunk {
                let entry = entry?;
                (sequence, pending) = (entry.sequence, entry.pending);
                if self
                    .border
                    .admits_fact(&entry.subject, &entry.headers, entry.stored_at, &entry.payload)
                {
                    changes.extend(change(&entry));
                } else if let Some(key) = subject::fact_key_of(&entry.subject) {
                    let (key, by) = (key.to_owned(), entry.sequence);
                    replaced.push(Replaced { key, by });
                }
            }
            if self.store.is_damaged() {
                return Err(FollowerError::Damaged);
            }
            // While catching up, a transaction is filled; afterwards each change is applied at once.
            if pending > 0 && changes.len() + replaced.len() < MAX_FACTS_PER_TRANSACTION {
                continue;
            }
            self.apply(std::mem::take(&mut changes), at(sequence)).await?;
            self.metrics.cached(sequence);
            // After what came before them: that is what is written again.
            if let Some(restorer) = &self.restorer {
                replaced.drain(..).for_each(|fact| restorer.replaced(fact));
            }
            replaced.clear();
            if pending == 0 {
                self.caught_up.send_replace(true);
            }
        }
        Ok(())
    }

    /// Records that the bucket that the cache has followed exists no more.
    fn bucket_is_gone(&self) {
        if self.caught_up.send_replace(false)
            && let Some(restorer) = &self.restorer
        {
            restorer.bucket_is_gone();
        }
    }

    async fn apply(&self, changes: Vec<Change>, position: Position) -> Result<(), StoreError> {
        let store = self.store.clone();
        let applied = tokio::task::spawn_blocking(move || store.apply(changes, position));
        applied.await.map_err(|_| StoreError::Damaged)?
    }
}

impl Position {
    /// The last position in the bucket, whose stream is in this state.
    pub fn end_of(bucket: &StreamState) -> Self {
        Self {
            sequence: bucket.last,
            created_at_ms: bucket.created_at.as_millisecond(),
        }
    }
}

fn change(entry: &Entry) -> Option<Change> {
    let key = subject::fact_key_of(&entry.subject)?.to_owned();
    // A fact of a kind that this version does not know is ignored.
    subject::parse_fact_key(&key)?;
    let action = if entry.is_removal() {
        entry.moved().map_or(Action::Remove, Action::MoveAway)
    } else {
        Action::Put(entry.payload.to_vec())
    };
    Some(Change {
        key,
        revision: entry.sequence,
        action,
    })
}
