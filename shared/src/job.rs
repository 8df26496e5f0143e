//! One notification for one recipient on one channel.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    channel::{Channel, Class},
    id::{AddressId, AppId, Category, DeliveryId, EventId, JobId, NotificationId, RecipientId, Region},
    invalid::Invalid,
    payload,
    push::Push,
};

/// How late a push that is now or never may still be tried.
const NOW_OR_NEVER: SignedDuration = SignedDuration::from_secs(60);

/// What a job says: the JSON body of a message on `notify.<channel>.<region>.<class>.<app>`, written by the gateway
/// and by services alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// The caller's name for what happened. Without it the message's `Nats-Msg-Id` is the event id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<EventId>,
    /// Who is to be reached.
    pub recipient: RecipientId,
    /// What kind of notification this is, for the recipient's preferences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    /// The content, for channel `push`.
    #[schema(value_type = Push)]
    pub push: Arc<Push>,
}

impl Body {
    /// Checks what the types do not. `size` is the length of this body as JSON in bytes: one that is far below every
    /// provider's limit need not be rendered to know that it fits.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn check(&self, size: usize) -> Result<(), Invalid> {
        self.push.check().map_err(|invalid| invalid.within("push"))?;
        if size <= payload::SURELY_FITS {
            Ok(())
        } else {
            payload::check_size(&self.push)
        }
    }
}

/// Whether a push that was accepted then is no longer worth a first attempt at `now`.
pub(crate) fn is_expired(push: &Push, accepted_at: Timestamp, now: Timestamp) -> bool {
    match push.ttl_s() {
        0 => now.duration_since(accepted_at) > NOW_OR_NEVER,
        _ => now >= expires_at(push, accepted_at),
    }
}

fn expires_at(push: &Push, accepted_at: Timestamp) -> Timestamp {
    let life = SignedDuration::from_secs(i64::from(push.ttl_s()));
    accepted_at.checked_add(life).unwrap_or(Timestamp::MAX)
}

/// A job on its way: the body, and what the subject and the headers say.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The job's id, which is also the key of the ledger.
    pub id: JobId,
    /// The notification it belongs to.
    pub notification: NotificationId,
    /// The tenant.
    pub app: AppId,
    /// The way it takes.
    pub channel: Channel,
    /// The lane.
    pub class: Class,
    /// Where it was accepted.
    pub origin: Region,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// How many attempts before this one do not count: the job was not to blame, or a person wants it tried anew.
    pub discounted: u32,
    /// The addresses that still wait, for a retry; `None` means all of the recipient's.
    pub remaining: Option<Vec<AddressId>>,
    /// Number of the slice of a broadcast that it came out of.
    pub slice: Option<u32>,
    /// The content.
    pub body: Body,
}

impl Job {
    /// Number of this attempt among those that count, from 1.
    pub fn counted(&self) -> u32 {
        self.attempt.saturating_sub(self.discounted).max(1)
    }

    /// Number of the attempt after this one.
    pub fn next_attempt(&self) -> u32 {
        // A service may write any number into the header.
        self.attempt.saturating_add(1)
    }

    /// When the notification stops being worth delivering.
    pub fn expires_at(&self) -> Timestamp {
        expires_at(&self.body.push, self.accepted_at)
    }

    /// Whether the notification is no longer worth delivering at `now`. A push that is now or never (`ttl` 0) has one
    /// attempt, soon after it was accepted.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        (self.attempt > 1 && self.body.push.ttl_s() == 0) || is_expired(&self.body.push, self.accepted_at, now)
    }

    /// The delivery of this job to `address`.
    pub fn delivery(&self, address: AddressId) -> DeliveryId {
        DeliveryId::of(self.id, address)
    }
}
