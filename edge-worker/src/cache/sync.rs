//! Fills the cache: follows the region's bucket from the last applied sequence.

use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt;
use shared::{
    nats::{
        border::Border,
        follow::{self, Entry, FollowError, StreamState},
        subject, topology,
    },
    telemetry::metric::Metrics,
};
use tokio::sync::watch;

use super::{Action, Change, Position, Store, StoreError};

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
    /// A read detected that the cache is damaged.
    #[error("the cache is damaged")]
    Damaged,
}

impl FactFollower {
    /// Prepares to fill `store` with the facts that `border` admits.
    pub fn new(js: jetstream::Context, store: Store, border: Border, metrics: Metrics) -> Self {
        Self {
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
    pub async fn run(self) {
        self.border.ready().await;
        loop {
            if let Err(error) = self.follow().await {
                tracing::info!(%error, "following the recipients was interrupted; retrying");
                if matches!(&error, FollowerError::Follow(error) if error.is_gone()) {
                    self.caught_up.send_replace(false);
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
            tracing::warn!("the bucket of recipients is not the one that the cache copied; refilling the cache");
            self.store.reset()?;
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
                }
            }
            if self.store.is_damaged() {
                return Err(FollowerError::Damaged);
            }
            // While catching up, a transaction is filled; afterwards each change is applied at once.
            if pending > 0 && changes.len() < MAX_FACTS_PER_TRANSACTION {
                continue;
            }
            self.apply(std::mem::take(&mut changes), at(sequence)).await?;
            self.metrics.cached(sequence);
            if pending == 0 {
                self.caught_up.send_replace(true);
            }
        }
        Ok(())
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
