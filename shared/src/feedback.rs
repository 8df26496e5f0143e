//! What was reported about a message after its delivery had ended: it reached the handset, a mailbox sent it back, the recipient
//! complained. Feedback is kept beside receipts and never changes a final state.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::{
    channel::{Channel, words},
    digest,
    id::{AddressId, AppId, JobId, NotificationId},
    provider::Provider,
    reference::Reference,
};

words!(
    /// What happened.
    Kind, "type", {
        /// The handset or mailbox took it.
        Confirmed = "confirmed",
        /// The handset or mailbox did not take it.
        Undelivered = "undelivered",
        /// A mailbox refused it later.
        Bounced = "bounced",
        /// The recipient marked it as spam.
        Complained = "complained",
        /// The recipient unsubscribed.
        Unsubscribed = "unsubscribed",
        /// Something of which only a newer version of Peal knows. It is read, and never written.
        Unrecognized = "unrecognized",
    } else Unrecognized
);

/// Most bytes of a reason; the rest of what a provider wrote is cut off.
const REASON_BYTES_MAX: usize = 200;

/// One report about one delivery, as the stream of feedback keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feedback {
    /// A digest of what its reporter calls the event: a report that comes twice has the same id.
    pub id: Uuid,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// When it happened.
    pub at: Timestamp,
    /// The notification.
    pub notification: NotificationId,
    /// The job; absent if the report came to a bounce address without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// The address that it was sent to.
    pub address: AddressId,
    /// The channel.
    pub channel: Channel,
    /// The provider that reported it; absent for a report that comes from the recipient.
    #[serde(default, deserialize_with = "known", skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// The enhanced status code, or the code of a carrier or provider. Never an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether the mailbox will never take mail; of a bounce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard: Option<bool>,
}

/// What a reporter says about one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The reference that the message carried, as it came back.
    pub reference: String,
    /// What the reporter calls the event.
    pub event: String,
    /// What happened.
    pub kind: Kind,
    /// When it happened.
    pub at: Timestamp,
    /// As in [`Feedback`], of any length.
    pub reason: Option<String>,
    /// As in [`Feedback`].
    pub hard: Option<bool>,
}

impl Report {
    /// The feedback of `app` that this report is, about the message with this reference.
    pub fn about(self, app: &AppId, provider: Option<Provider>, reference: &Reference) -> Feedback {
        let reporter = provider.map_or("recipient", Provider::as_str);
        let (notification, address) = (reference.notification.to_string(), reference.address.to_string());
        let parts = [
            app.as_str(),
            reporter,
            &notification,
            &address,
            self.kind.as_str(),
            &self.event,
        ];
        Feedback {
            id: digest::derive("feedback", &parts.map(without_zero)),
            kind: self.kind,
            at: self.at,
            notification: reference.notification,
            job: reference.job,
            address: reference.address,
            channel: reference.channel,
            provider,
            reason: self.reason.as_deref().and_then(plain),
            hard: self.hard,
        }
    }
}

impl Feedback {
    /// Whether it is about this delivery of its notification.
    pub fn is_about(&self, job: JobId, address: AddressId) -> bool {
        self.address == address && self.job.is_none_or(|known| known == job)
    }
}

/// The parts of a digest must not hold zero bytes, by which they are told apart.
fn without_zero(part: &str) -> &str {
    part.split('\0').next().unwrap_or_default()
}

/// A reason as it is kept. What may hold an address is not kept at all: a status never has an `@`, nor a long number.
fn plain(text: &str) -> Option<String> {
    let text = text.trim();
    let longest_number = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    if text.is_empty() || text.contains('@') || longest_number > Some(6) {
        return None;
    }
    let mut kept = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if kept.len() + c.len_utf8() > REASON_BYTES_MAX {
            break;
        }
        kept.push(c);
    }
    Some(kept)
}

/// A provider, if this version knows it.
fn known<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Provider>, D::Error> {
    let word: Option<Cow<'de, str>> = Deserialize::deserialize(deserializer)?;
    Ok(word.and_then(|word| word.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference() -> Reference {
        Reference {
            channel: Channel::Sms,
            notification: NotificationId(Uuid::from_u128(1)),
            job: Some(JobId(Uuid::from_u128(2))),
            address: AddressId(Uuid::from_u128(3)),
            sent_at: Some(Timestamp::UNIX_EPOCH),
        }
    }

    fn report(event: &str, reason: &str) -> Report {
        Report {
            reference: String::new(),
            event: event.to_owned(),
            kind: Kind::Undelivered,
            at: Timestamp::UNIX_EPOCH,
            reason: Some(reason.to_owned()),
            hard: None,
        }
    }

    #[test]
    fn a_report_that_comes_twice_has_one_id_and_another_apps_has_another() {
        let id = |app: &str, event: &str, provider| {
            let app = app.parse().unwrap();
            report(event, "").about(&app, provider, &reference()).id
        };
        let twilio = Some(Provider::Twilio);
        assert_eq!(id("shop", "SM1", twilio), id("shop", "SM1", twilio));
        assert_ne!(id("shop", "SM1", twilio), id("shop", "SM2", twilio));
        assert_ne!(id("shop", "SM1", twilio), id("bank", "SM1", twilio));
        assert_ne!(id("shop", "SM1", twilio), id("shop", "SM1", Some(Provider::Vonage)));
    }

    #[test]
    fn a_reason_holds_no_address_and_no_control_character_and_is_short() {
        let kept = |reason: &str| {
            let feedback = report("e", reason).about(&"shop".parse().unwrap(), None, &reference());
            feedback.reason
        };
        assert_eq!(kept("30005").as_deref(), Some("30005"));
        assert_eq!(kept(" 5.1.1\r\nno such user ").as_deref(), Some("5.1.1  no such user"));
        for address in ["", "550 <ann@example.com> unknown", "no route to +41791234567"] {
            assert_eq!(kept(address), None, "{address}");
        }
        assert_eq!(kept(&"é".repeat(200)).map(|reason| reason.len()), Some(200));
    }

    #[test]
    fn what_a_newer_version_writes_is_read_as_far_as_it_can_be() {
        let id = "11111111-2222-8333-8444-555555555555";
        let json = format!(
            r#"{{"id":"{id}","type":"forwarded","at":"2026-11-26T08:00:00Z","notification":"{id}","job":"{id}","address":"{id}",
                "channel":"sms","provider":"pigeon","weight":3}}"#
        );
        let read: Feedback = serde_json::from_str(&json).unwrap();
        assert_eq!((read.kind, read.provider), (Kind::Unrecognized, None));
        let other = JobId(Uuid::from_u128(9));
        assert!(read.is_about(read.job.unwrap(), read.address) && !read.is_about(other, read.address));
    }
}
