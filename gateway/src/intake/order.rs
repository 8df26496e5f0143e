//! The request of a caller, independent of the door that it came through.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::value::RawValue;
use shared::{
    address::Address,
    app::App,
    channel::{Channel, Class},
    id::{Category, EventId, GroupKey, NotificationId, RecipientId, Region, Topic},
    nats::subject::Lane,
    plan::Arrangement,
    trial::Trial,
};

/// A notification that a caller asks to send.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) app: Arc<App>,
    pub(crate) event: EventId,
    pub(crate) to: Addressees,
    pub(crate) class: Class,
    pub(crate) category: Option<Category>,
    pub(crate) trial: Trial,
    pub(crate) contents: Arrangement,
    /// From when its life counts.
    pub(crate) life_from: Timestamp,
    /// When it is to be accepted, if not now.
    pub(crate) later: Option<Later>,
    /// When it stops being worth delivering, if its caller said so. The contents live no longer.
    pub(crate) expires_at: Option<Timestamp>,
    /// What it belongs to.
    pub(crate) group_key: Option<GroupKey>,
}

/// When a notification is to be accepted, and what its caller wrote.
#[derive(Debug)]
pub(crate) struct Later {
    pub(crate) send_at: Timestamp,
    pub(crate) json: Box<RawValue>,
}

/// The addressees of a notification.
#[derive(Debug)]
pub(crate) enum Addressees {
    /// These recipients.
    Recipients(Vec<RecipientId>),
    /// An address, which need not be registered.
    Address(Box<Address>),
    /// The members of a topic.
    Topic(Topic),
}

impl Order {
    /// The notification that it asks for.
    pub(crate) fn notification(&self) -> NotificationId {
        NotificationId::of(&self.app.id, &self.trial.name(&self.event))
    }

    /// Number of jobs that it becomes at once in a mesh of `regions`.
    pub(crate) fn jobs(&self, regions: usize) -> usize {
        let of_each = match &self.to {
            Addressees::Recipients(recipients) => recipients.len(),
            Addressees::Address(_) => 1,
            Addressees::Topic(_) => regions,
        };
        match &self.contents {
            Arrangement::Each(contents) => of_each * contents.len(),
            Arrangement::Course(_) => of_each,
        }
    }

    /// The lane of the order's jobs for `channel` in `region`.
    pub(super) fn lane(&self, channel: Channel, region: Region) -> Lane {
        Lane {
            channel,
            region,
            class: self.class,
            app: self.app.id.clone(),
        }
    }
}
