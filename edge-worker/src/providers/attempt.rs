//! One attempt, and what came of it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use shared::{
    id::{AppId, DeliveryId},
    recipient::Address,
};

use super::{Message, Outcome};

/// One attempt to reach one address.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// Whose credential is used.
    pub app: &'a AppId,
    /// Where to.
    pub address: &'a Address,
    /// The delivery this attempt belongs to; the same for every attempt. It is the `apns-id`.
    pub delivery: DeliveryId,
    /// What to say.
    pub message: &'a Message,
    /// When the push stops being worth delivering.
    pub expires_at: Timestamp,
}

/// What came of an [`Attempt`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempted {
    /// What it means for the delivery.
    pub outcome: Outcome,
    /// The HTTP status, if an answer came.
    pub status: Option<u16>,
    /// `host:port` that was tried last; empty if none was.
    pub endpoint: Arc<str>,
    /// How long it took, with all retries in process.
    pub took: Duration,
}
