//! What was withdrawn by its sender. Every region says so of what it accepted, and hears what the others say; a region that
//! is cut off hears it afterwards.

use std::{
    collections::HashSet,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use async_nats::{HeaderMap, jetstream};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::{
    follow::{self, Entry},
    publish, subject, topology,
};
use crate::id::{AppId, NotificationId, Region};

/// The notifications that were withdrawn, in memory: 16 bytes each. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cancelled {
    known: Arc<RwLock<HashSet<NotificationId>>>,
    /// Most jobs are worked on while there is none.
    any: Arc<AtomicBool>,
    loaded: watch::Sender<bool>,
}

impl Default for Cancelled {
    fn default() -> Self {
        Self {
            known: Arc::default(),
            any: Arc::default(),
            loaded: watch::channel(false).0,
        }
    }
}

/// The record of a withdrawal.
#[derive(Debug, Serialize)]
struct Said {
    at: Timestamp,
}

/// Withdraws `notification`: what was not sent yet, anywhere, ends as `cancelled`.
///
/// # Errors
/// When the stream did not say that it stored it.
pub async fn cancel(
    js: &jetstream::Context,
    here: &Region,
    app: &AppId,
    notification: NotificationId,
    at: Timestamp,
) -> Result<(), publish::NotStored> {
    let subject = subject::directory_cancelled(here, app, notification);
    let said = serde_json::to_vec(&Said { at }).expect("withdrawals always serialize");
    publish::store(js, subject, HeaderMap::new(), said.into()).await?;
    Ok(())
}

impl Cancelled {
    /// Whether `notification` was withdrawn, as far as is known here.
    pub fn contains(&self, notification: NotificationId) -> bool {
        self.any.load(Ordering::Relaxed)
            && self
                .known
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(&notification)
    }

    /// Whether everything that was there at start has been read.
    pub fn loaded(&self) -> watch::Receiver<bool> {
        self.loaded.subscribe()
    }

    /// Follows the stream for ever.
    pub async fn follow(self, js: jetstream::Context) {
        let filter = subject::CANCELLED_FILTER;
        let learn = |entry: &Entry| self.learn(&entry.subject);
        let caught_up = || {
            self.loaded.send_replace(true);
        };
        follow::follow_forever(&js, topology::DIRECTORY, filter, learn, caught_up).await;
    }

    fn learn(&self, subject: &str) {
        if let Some(notification) = subject::cancelled_of(subject) {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            known.insert(notification);
            self.any.store(true, Ordering::Relaxed);
        }
    }
}
