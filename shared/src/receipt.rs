//! Receipts: the durable record of what became of every notification.

use std::{borrow::Cow, collections::BTreeMap};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{
    channel::{Channel, words},
    id::{AddressId, AppId, EventId, JobId, NotificationId, RecipientId, Region, Topic},
    invalid::Invalid,
    provider::Provider,
};

words!(
    /// The state of a delivery.
    State, "state", {
        /// The provider accepted it. For push that is the most a server can know.
        Delivered = "delivered",
        /// Not sent, by rule: opted out, no address, unknown recipient.
        Suppressed = "suppressed",
        /// Its time to live ended before a provider accepted it.
        Expired = "expired",
        /// Withdrawn by its sender.
        Cancelled = "cancelled",
        /// The provider refused it for good.
        Rejected = "rejected",
        /// Its attempts are used up, or the provider's answer was not understood; kept among the dead letters.
        Dead = "dead",
        /// Sent, but it is unknown whether the provider accepted it, and the app lets a person decide then. Kept among the
        /// dead letters.
        Unknown = "unknown",
        /// Waits for another attempt.
        Parked = "parked",
        /// About to be sent, for an app that must not send twice: if no other receipt follows, it is unknown whether it was sent.
        Attempting = "attempting",
        /// Of broadcasts and slices only: it became slices or jobs, which have final states of their own.
        Expanded = "expanded",
        /// The job waits as a whole until a time, by rule. No attempt was made, and there is no outcome.
        Deferred = "deferred",
        /// A state of a newer version of Peal, which this one does not know. It is read, and never written.
        Unrecognized = "unrecognized",
    } else Unrecognized
);

/// The reason of a receipt of what a service published and a gateway refused.
pub const REFUSED: &str = "refused";

impl State {
    /// Whether nothing more will happen to the delivery.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Parked | Self::Attempting | Self::Deferred)
    }

    /// Whether this is the outcome of an attempt or of the job as a whole. An announced attempt is no outcome.
    pub const fn is_outcome(self) -> bool {
        !matches!(self, Self::Attempting | Self::Deferred)
    }

    /// Whether a delivery can end in this state.
    pub const fn ends_delivery(self) -> bool {
        self.is_final() && !matches!(self, Self::Expanded)
    }

    /// Whether a person may have the delivery tried again: a replay makes another attempt of it.
    pub const fn is_replayable(self) -> bool {
        matches!(self, Self::Dead | Self::Unknown)
    }
}

/// The outcome of one attempt of one delivery. A job that reached no address has one receipt without `address`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Receipt {
    /// The notification that the delivery belongs to.
    pub notification: NotificationId,
    /// The job that the delivery belongs to; of an expanded broadcast or slice, its own id.
    pub job: JobId,
    /// The recipient; absent if the message could not be read, or is for a topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<RecipientId>,
    /// The channel of the notification.
    pub channel: Channel,
    /// The address that was tried; absent if none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<AddressId>,
    /// The provider that was asked to deliver it.
    #[serde(default, deserialize_with = "known", skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// The region whose worker made the attempt, if it helped the recipient's home region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub by: Option<Region>,
    /// Which attempt this was, from 1.
    pub attempt: u32,
    /// The outcome of this attempt.
    pub state: State,
    /// The reason: a stable word of Peal's such as `opted_out`, or the provider's own such as `Unregistered`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub reason: Option<Cow<'static, str>>,
    /// The provider's id of the message (FCM's message name; for APNs the `apns-id` is the delivery id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
    /// When the delivery reached this state.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// How long the provider took to answer, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_us: Option<u32>,
    /// When the next attempt is due, if parked; when the job comes back, if deferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_at: Option<Timestamp>,
    /// The age in seconds of the preferences that the worker applied, if they were older than the class permits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_s: Option<u32>,
    /// The id of its trace, if that was sampled: 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Number of the broadcast's slice that the job was expanded from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice: Option<u32>,
    /// The number of the plan's step that the job is for, from 0; absent if its steps do not follow each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// The job of the next step, which was stored because of this outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_job: Option<JobId>,
    /// What a broadcast or a slice became. `job` is then the id of the broadcast or slice, and there is no recipient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expanded: Option<Box<Expanded>>,
}

impl Receipt {
    /// The receipt of a first attempt that ended in `state` at that time; all optional members are absent.
    pub const fn new(notification: NotificationId, job: JobId, channel: Channel, state: State, at: Timestamp) -> Self {
        Self {
            notification,
            job,
            recipient: None,
            channel,
            address: None,
            provider: None,
            by: None,
            attempt: 1,
            state,
            reason: None,
            provider_id: None,
            at,
            took_us: None,
            next_at: None,
            stale_s: None,
            trace: None,
            slice: None,
            step: None,
            next_job: None,
            expanded: None,
        }
    }
}

/// What a broadcast or one of its slices became.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Expanded {
    /// The jobs of a slice, all of them settled.
    Jobs(ExpandedSlice),
    /// The slices of a broadcast in one region.
    Slices(Split),
}

impl Expanded {
    /// When the broadcast was accepted.
    pub fn accepted_at(&self) -> Timestamp {
        match self {
            Self::Jobs(slice) => slice.accepted_at,
            Self::Slices(split) => split.accepted_at,
        }
    }
}

/// What a broadcast was split into, in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Split {
    /// How many slices it was split into.
    pub slices: u32,
    /// How many members they have together.
    pub members: u64,
    /// When the broadcast was accepted.
    #[schema(value_type = String, format = DateTime)]
    pub accepted_at: Timestamp,
}

/// What a slice became.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExpandedSlice {
    /// The broadcast that the slice belongs to.
    pub broadcast: JobId,
    /// Number of the slice, from 0.
    pub number: u32,
    /// How many slices the broadcast has in this region.
    pub of: u32,
    /// Members that became jobs, which have receipts of their own.
    pub jobs: u32,
    /// The outcomes of the first attempts at the deliveries of these jobs, by state.
    pub by_state: BTreeMap<State, u32>,
    /// Members who are not sent to because the broadcast was withdrawn; they have no receipts.
    pub cancelled: u32,
    /// Members who moved: their jobs were forwarded to their new home, or have their receipts there.
    pub forwarded: u32,
    /// When the broadcast was accepted.
    #[schema(value_type = String, format = DateTime)]
    pub accepted_at: Timestamp,
}

/// The record that a gateway accepted a notification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Accepted {
    /// The notification that was accepted.
    pub notification: NotificationId,
    /// The caller's name for the event.
    pub event_id: EventId,
    /// How many jobs it became: one per recipient, or, for a broadcast, one per region.
    pub jobs: u32,
    /// The topic to be reached, if it is a broadcast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Topic>,
    /// When the gateway accepted it.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The id of its trace, if that was sampled: 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

words!(
    /// What a person did with a dead letter.
    HandledAs, "handled_as", {
        /// The delivery was given another attempt.
        Replayed = "replayed",
        /// The delivery was discarded.
        Deleted = "deleted",
    }
);

/// The record that a person replayed or deleted a dead letter, which is no longer stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Handled {
    /// The id of the letter: its region and its sequence there.
    pub letter: String,
    /// What the person did.
    pub handled_as: HandledAs,
    /// The notification; absent if the message could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification: Option<NotificationId>,
    /// The job; absent if the message could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// The address; absent if the letter is for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<AddressId>,
    /// The attempt after which it died.
    pub attempt: u32,
    /// When the person did it.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// One message of the receipts stream: many records at once, because one message per record would cost more than the delivery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Batch {
    /// The app of all records.
    pub app: AppId,
    /// The region whose process wrote the batch.
    pub region: Region,
    /// The region that accepted the notifications.
    pub origin: Region,
    /// The process that wrote the batch.
    pub writer: String,
    /// Notifications accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<Accepted>,
    /// Deliveries that changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<Receipt>,
    /// Dead letters that people replayed or deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handled: Vec<Handled>,
}

impl Batch {
    /// Reads the body of a message of receipts. Records that this version cannot read are left out and logged; the rest of
    /// the batch is kept.
    ///
    /// # Errors
    /// The first member of the batch itself that breaks a rule.
    pub fn read(json: &[u8]) -> Result<Self, Invalid> {
        if let Ok(batch) = serde_json::from_slice(json) {
            return Ok(batch);
        }
        let raw: RawBatch<'_> =
            serde_json::from_slice(json).map_err(|_| Invalid::new("batch", "must be a batch of receipts"))?;
        let mut left_out = 0;
        let batch = Self {
            app: raw.app,
            region: raw.region,
            origin: raw.origin,
            writer: raw.writer,
            accepted: readable(&raw.accepted, &mut left_out),
            receipts: readable(&raw.receipts, &mut left_out),
            handled: readable(&raw.handled, &mut left_out),
        };
        tracing::warn!(
            left_out,
            writer = batch.writer,
            "records of another version cannot be read"
        );
        Ok(batch)
    }
}

/// A batch whose records are not read yet.
#[derive(Deserialize)]
struct RawBatch<'a> {
    app: AppId,
    region: Region,
    origin: Region,
    writer: String,
    #[serde(borrow, default)]
    accepted: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    receipts: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    handled: Vec<&'a RawValue>,
}

fn readable<T: DeserializeOwned>(records: &[&RawValue], left_out: &mut usize) -> Vec<T> {
    let read = records
        .iter()
        .filter_map(|record| serde_json::from_str(record.get()).ok());
    let readable: Vec<T> = read.collect();
    *left_out += records.len() - readable.len();
    readable
}

/// A provider, if this version knows it.
fn known<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Provider>, D::Error> {
    let word: Option<Cow<'de, str>> = Deserialize::deserialize(deserializer)?;
    Ok(word.and_then(|word| word.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a newer version may write: unknown members, a state, a provider and a channel that this one does not know.
    #[test]
    fn a_batch_of_a_newer_version_is_read_as_far_as_it_can_be() {
        let id = "11111111-2222-8333-8444-555555555555";
        let receipt = |channel: &str, provider: &str, state: &str| {
            format!(
                r#"{{"notification":"{id}","job":"{id}","channel":"{channel}","provider":"{provider}","attempt":1,"state":"{state}","at":"2026-01-02T03:04:05Z","newer":[]}}"#
            )
        };
        let receipts = [
            receipt("push", "pigeon", "delivered"),
            receipt("push", "apns", "teleported"),
            receipt("pigeon", "apns", "delivered"),
        ];
        let json = format!(
            r#"{{"app":"shop","region":"eu","origin":"eu","writer":"w","newer":1,"receipts":[{}],"handled":[{{"letter":1}}]}}"#,
            receipts.join(",")
        );
        let batch = Batch::read(json.as_bytes()).unwrap();
        let read: Vec<_> = batch
            .receipts
            .iter()
            .map(|receipt| (receipt.provider, receipt.state))
            .collect();
        let expected = [(None, State::Delivered), (Some(Provider::Apns), State::Unrecognized)];
        assert_eq!(read, expected);
        assert!(batch.handled.is_empty());
        assert!(Batch::read(b"{}").is_err());
    }

    #[test]
    fn batches_of_0_1_are_read() {
        let json = br#"{"app":"shop","region":"eu","origin":"us","writer":"w-1","receipts":[{"notification":"11111111-2222-8333-8444-555555555555","job":"11111111-2222-8333-8444-555555555555","recipient":"ann","channel":"push","address":"11111111-2222-8333-8444-555555555555","provider":"fcm","attempt":2,"state":"parked","reason":"busy","at":"2026-01-02T03:04:05Z","next_at":"2026-01-02T03:05:05Z"}]}"#;
        let batch = Batch::read(json).unwrap();
        assert_eq!(batch.receipts[0].provider, Some(Provider::Fcm));
        assert_eq!(serde_json::to_vec(&batch).unwrap(), json);
    }
}
