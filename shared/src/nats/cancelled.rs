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
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::{
    border::Border,
    current, direct,
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
    /// The sequence of the last record or mark that was read.
    read_up_to: watch::Sender<u64>,
}

impl Default for Cancelled {
    fn default() -> Self {
        Self {
            known: Arc::default(),
            any: Arc::default(),
            loaded: watch::channel(false).0,
            read_up_to: watch::channel(0).0,
        }
    }
}

/// The record of a withdrawal.
#[derive(Debug, Serialize)]
struct Withdrawal {
    at: Timestamp,
}

/// Withdraws `notification`: deliveries that were not sent yet, in any region, end as `cancelled`. Workers of `here` send
/// nothing of it that they pull after this has returned.
///
/// # Errors
/// When the stream did not acknowledge the record and its mark.
pub async fn cancel(
    js: &jetstream::Context,
    border: &Border,
    here: &Region,
    app: &AppId,
    notification: NotificationId,
    at: Timestamp,
) -> Result<(), publish::NotStored> {
    let value: Bytes = serde_json::to_vec(&Withdrawal { at })
        .expect("withdrawals always serialize")
        .into();
    // In this order: whoever has read the mark has read the record.
    for subject in [
        subject::directory_cancelled(here, app, notification),
        subject::directory_cancelled_mark(here),
    ] {
        let headers = border.headers(&subject, &value);
        publish::store(js, subject, headers, value.clone()).await?;
    }
    Ok(())
}

/// How far a reader must have read to know every withdrawal that a gateway of `here` has answered: see [`Cancelled::reached`].
/// One read of one message, however many withdrawals there are.
///
/// # Errors
/// When the leader of this region's directory does not answer.
pub async fn end(js: &jetstream::Context, here: &Region) -> Result<u64, direct::NoAnswer> {
    let mark = current::last(js, topology::DIRECTORY, &subject::directory_cancelled_mark(here)).await?;
    Ok(mark.map_or(0, |mark| mark.sequence))
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

    /// Whether everything up to `end` is known; see [`end`].
    pub fn has_reached(&self, end: u64) -> bool {
        *self.read_up_to.borrow() >= end
    }

    /// Waits until everything up to `end` is known.
    pub async fn reached(&self, end: u64) {
        // The sender lives as long as `self`.
        drop(self.read_up_to.subscribe().wait_for(|read| *read >= end).await);
    }

    /// Follows the stream until the process ends, and believes what `border` admits.
    pub async fn follow(self, js: jetstream::Context, border: Border) {
        border.ready().await;
        let filter = subject::CANCELLED_FILTER;
        let learn = |entry: &Entry| {
            if border.admits_entry(entry) {
                self.learn(&entry.subject);
            }
            // Also back, when the stream was set back.
            self.read_up_to.send_replace(entry.sequence);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_follows_the_records_and_is_none() {
        let here: Region = "eu".parse().unwrap();
        let mark = subject::directory_cancelled_mark(&here);
        assert_eq!(subject::cancelled_of(&mark), None);
        assert_eq!(subject::DirectoryKey::parse(&mark), None);
        let notification: NotificationId = "0197f3a0-0000-8000-8000-000000000001".parse().unwrap();
        let record = subject::directory_cancelled(&here, &"shop".parse().unwrap(), notification);
        assert_eq!(subject::cancelled_of(&record), Some(notification));
    }
}
