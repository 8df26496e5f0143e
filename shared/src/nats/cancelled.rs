//! Withdrawn notifications and erased recipients. Every region records withdrawals of what it accepted and follows those of the others; a
//! region that is cut off learns of them afterwards.

use std::{
    collections::{HashMap, HashSet},
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
    erasure::Erasure,
    follow::{self, Entry},
    publish, subject, topology,
};
use crate::{
    id::{AppId, NotificationId, RecipientId, Region},
    tolerant,
};

/// The notifications that were withdrawn, in memory, 16 bytes each, and the recipients who were erased. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cancelled {
    known: Arc<RwLock<Known>>,
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

#[derive(Debug, Default)]
struct Known {
    notifications: HashSet<NotificationId>,
    /// By app and recipient, up to when they were erased.
    erased: HashMap<AppId, HashMap<RecipientId, Timestamp>>,
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
                .notifications
                .contains(&notification)
    }

    /// Whether `recipient` of `app` was erased after `accepted_at`, as far as this process knows.
    pub fn is_erased(&self, app: &AppId, recipient: &RecipientId, accepted_at: Timestamp) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let erased_at = known.erased.get(app).and_then(|erased| erased.get(recipient));
        erased_at.is_some_and(|at| accepted_at <= *at)
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
                self.learn(&entry.subject, &entry.payload);
            }
            // Also back, when the stream was set back.
            self.read_up_to.send_replace(entry.sequence);
        };
        let caught_up = || {
            self.loaded.send_replace(true);
        };
        follow::follow_forever(&js, topology::DIRECTORY, filter, learn, caught_up).await;
    }

    fn learn(&self, subject: &str, value: &[u8]) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(notification) = subject::cancelled_of(subject) {
            known.notifications.insert(notification);
        } else if let Some(named) = subject::parse_erasure(subject).filter(|named| named.is_request) {
            match tolerant::read::<Erasure>(value) {
                Ok(Erasure { recipient, at }) => {
                    let of_app = known.erased.entry(named.app).or_default();
                    let known = of_app.entry(recipient).or_insert(at);
                    *known = at.max(*known);
                }
                Err(error) => tracing::error!(%error, "a record of an erasure cannot be read"),
            }
        } else {
            return;
        }
        self.any.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ErasureId;

    #[test]
    fn a_mark_follows_the_records_and_is_none() {
        let here: Region = "eu".parse().unwrap();
        let mark = subject::directory_cancelled_mark(&here);
        assert_eq!(subject::cancelled_of(&mark), None);
        assert_eq!(subject::DirectoryKey::parse(&mark), None);
        let notification: NotificationId = "0197f3a0-0000-8000-8000-000000000001".parse().unwrap();
        let record = subject::directory_cancelled(&here, &"shop".parse().unwrap(), notification);
        assert_eq!(subject::cancelled_of(&record), Some(notification));
        assert_eq!(subject::parse_erasure(&record), None);
    }

    #[test]
    fn what_was_accepted_before_an_erasure_is_unwanted_for_that_recipient_of_that_app_alone() {
        let (eu, shop): (Region, AppId) = ("eu".parse().unwrap(), "shop".parse().unwrap());
        let (ann, bob): (RecipientId, RecipientId) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let at = |second| Timestamp::from_second(second).unwrap();
        let cancelled = Cancelled::default();
        let id = ErasureId::fresh();
        let record = |second| {
            let recipient = ann.clone();
            serde_json::to_vec(&Erasure {
                recipient,
                at: at(second),
            })
            .unwrap()
        };
        cancelled.learn(&subject::erasure(&eu, &shop, id), &record(10));
        // An older request of another region arrives later.
        cancelled.learn(&subject::erasure(&eu, &shop, ErasureId::fresh()), &record(5));
        cancelled.learn(&subject::erased(&eu, &shop, id), b"{}");
        assert!(cancelled.is_erased(&shop, &ann, at(9)) && cancelled.is_erased(&shop, &ann, at(10)));
        assert!(!cancelled.is_erased(&shop, &ann, at(11)), "registered again since");
        assert!(!cancelled.is_erased(&shop, &bob, at(9)));
        assert!(!cancelled.is_erased(&"bank".parse().unwrap(), &ann, at(9)));
        assert!(!cancelled.contains(NotificationId(id.0)), "an erasure is no withdrawal");
    }
}
