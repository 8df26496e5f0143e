//! The request of a caller, independent of the door that it came through.

use std::sync::Arc;

use jiff::Timestamp;
use shared::{
    address::Address,
    app::App,
    channel::Class,
    content::Content,
    id::{Category, EventId, RecipientId, Region, Topic},
    nats::subject::Lane,
};

/// A notification that a caller asks to send.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) app: Arc<App>,
    pub(crate) event: EventId,
    pub(crate) to: Addressees,
    pub(crate) class: Class,
    pub(crate) category: Option<Category>,
    pub(crate) content: Content,
    /// From when its life counts.
    pub(crate) life_from: Timestamp,
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
    /// Number of jobs that it becomes in a mesh of `regions`.
    pub(super) fn jobs(&self, regions: usize) -> usize {
        match &self.to {
            Addressees::Recipients(recipients) => recipients.len(),
            Addressees::Address(_) => 1,
            Addressees::Topic(_) => regions,
        }
    }

    /// The lane of the order's jobs in `region`.
    pub(super) fn lane(&self, region: Region) -> Lane {
        Lane {
            channel: self.content.channel(),
            region,
            class: self.class,
            app: self.app.id.clone(),
        }
    }
}
