//! Watches the bucket of recipients: remembers its end, in case that it is deleted, and tells whether it is being restored.

use std::sync::{Mutex, PoisonError};

use async_nats::jetstream;
use jiff::SignedDuration;
use shared::{
    clock::Clock,
    id::Region,
    nats::{
        border::Border,
        follow::{self, StreamState},
        restore, topology,
    },
    telemetry::metric::Metrics,
};
use tokio::sync::watch;

/// If no worker has put facts back for this time, none has them: then what is in the bucket counts, so that work goes on.
const RESTORED_WITHIN: SignedDuration = SignedDuration::from_mins(5);

/// What this gateway knows of the bucket of recipients.
#[derive(Debug)]
pub(super) struct FactsUpkeep {
    js: jetstream::Context,
    here: Region,
    border: Border,
    metrics: Metrics,
    /// Its state when it was last checked.
    bucket: Mutex<Option<StreamState>>,
    /// Whether it is not being restored.
    complete: watch::Sender<bool>,
}

impl FactsUpkeep {
    pub(super) fn new(js: jetstream::Context, here: Region, border: Border, metrics: Metrics) -> Self {
        metrics.restoring(false);
        Self {
            js,
            here,
            border,
            metrics,
            bucket: Mutex::default(),
            complete: watch::channel(true).0,
        }
    }

    /// Whether the bucket is not being restored.
    pub(super) fn complete(&self) -> watch::Receiver<bool> {
        self.complete.subscribe()
    }

    /// The state of the bucket when it was last seen.
    pub(super) fn bucket(&self) -> Option<StreamState> {
        *self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the bucket was deleted.
    pub(super) fn is_missing(&self) {
        self.show(false);
    }

    /// Looks at the bucket. Ends a restoration that nobody makes.
    pub(super) async fn check(&self) {
        let Ok(bucket) = follow::stream_state(&self.js, topology::RECIPIENTS).await else {
            return;
        };
        *self.bucket.lock().unwrap_or_else(PoisonError::into_inner) = Some(bucket);
        let since = match restore::waits_since(&self.js, &self.here, &bucket).await {
            Ok(None) => return self.show(true),
            Ok(Some(since)) => since,
            Err(error) => {
                tracing::debug!(%error, "it is not known whether the facts are restored");
                return;
            }
        };
        self.show(false);
        if Clock::system().now().duration_since(since) > RESTORED_WITHIN {
            tracing::error!(
                "no worker has restored the bucket of recipients; what it does not hold is lost: restore it from a backup"
            );
            let bucket_ms = bucket.created_at.as_millisecond();
            if let Err(error) = restore::mark(&self.js, &self.border, &self.here, bucket_ms, true).await {
                tracing::warn!(%error, "the end of the restoration could not be recorded; retrying");
            }
        }
    }

    fn show(&self, complete: bool) {
        if self.complete.send_replace(complete) != complete {
            self.metrics.restoring(!complete);
            if complete {
                tracing::warn!("the facts of this region are restored");
            } else {
                tracing::error!("the bucket of recipients was deleted; work waits until workers have restored it");
            }
        }
    }
}
