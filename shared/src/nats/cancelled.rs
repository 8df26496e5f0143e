//! Withdrawn notifications. Every region records withdrawals of what it accepted and follows those of the others; a
//! region that is cut off learns of them afterwards.

use std::{
    collections::HashSet,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use async_nats::jetstream;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::{
    border::Border,
    follow::{self, Entry},
    publish, subject, topology,
};
use crate::id::{AppId, NotificationId, Region};

/// The notifications that were withdrawn, in memory: 16 bytes each. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cancelled {
    known: Arc<RwLock<HashSet<NotificationId>>>,
    /// Whether there is any: usually there is none, and a job then takes no lock.
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
struct Withdrawal {
    at: Timestamp,
}

/// Withdraws `notification`: deliveries that were not sent yet, in any region, end as `cancelled`.
///
/// # Errors
/// When the stream did not acknowledge the record.
pub async fn cancel(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    app: &AppId,
    notification: NotificationId,
    at: Timestamp,
) -> Result<(), publish::NotStored> {
    let subject = subject::directory_cancelled(here, app, notification);
    let value = serde_json::to_vec(&Withdrawal { at }).expect("withdrawals always serialize");
    let headers = border.headers(&subject, &value);
    publish::store(js, subject, headers, value.into()).await?;
    Ok(())
}

impl Cancelled {
    /// Whether `notification` was withdrawn, as far as this process knows.
    pub fn contains(&self, notification: NotificationId) -> bool {
        self.any.load(Ordering::Relaxed)
            && self
                .known
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(&notification)
    }

    /// Becomes `true` once all records that existed at start have been read.
    pub fn loaded(&self) -> watch::Receiver<bool> {
        self.loaded.subscribe()
    }

    /// Follows the stream until the process ends, and believes what `border` admits.
    pub async fn follow(self, js: jetstream::Context, border: Border) {
        border.ready().await;
        let filter = subject::CANCELLED_FILTER;
        let learn = |entry: &Entry| {
            if border.admits_entry(entry) {
                self.learn(&entry.subject);
            }
        };
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
