//! Content in each provider's form.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use jiff::Timestamp;
use shared::{
    content::{Content, email::Email, push::Push, sms::Sms, webhook::Webhook},
    job::Job,
    provider::Provider,
};

use super::tracking::Tracking;

/// One content as bytes for each provider, rendered when the first attempt needs it. All deliveries of a job and all
/// members of a slice share it, so a rendition must depend only on the content. Cheap to clone.
#[derive(Clone, Default)]
pub struct Renditions(Arc<[OnceLock<Bytes>; Provider::COUNT]>);

impl Renditions {
    /// The rendition for `provider`; `render` makes it at the first call.
    pub(super) fn of(&self, provider: Provider, render: impl FnOnce() -> Bytes) -> &Bytes {
        self.0[provider as usize].get_or_init(render)
    }
}

impl fmt::Debug for Renditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Renditions(hidden)")
    }
}

/// The message of one job, for all its addresses.
pub struct Message {
    job: Arc<Job>,
    renditions: Renditions,
    tracking: Option<Tracking>,
}

impl Message {
    /// The message of `job`. All jobs that share `renditions` have the same content.
    pub fn new(job: Arc<Job>, renditions: Renditions) -> Self {
        Self {
            job,
            renditions,
            tracking: None,
        }
    }

    /// The same message, whose copies carry signed references.
    #[must_use]
    pub fn tracked(self, tracking: Tracking) -> Self {
        Self {
            tracking: Some(tracking),
            ..self
        }
    }

    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    pub(super) fn tracking(&self) -> Option<&Tracking> {
        self.tracking.as_ref()
    }

    /// The push that is its content; `None` if its content is for another channel.
    pub(super) fn push(&self) -> Option<&Push> {
        match &self.job.content {
            Content::Push(push) => Some(push),
            Content::Email(_) | Content::Sms(_) | Content::Webhook(_) => None,
        }
    }

    /// The e-mail that is its content; `None` if its content is for another channel.
    pub(super) fn email(&self) -> Option<&Email> {
        match &self.job.content {
            Content::Email(email) => Some(email),
            _ => None,
        }
    }

    /// The text message that is its content; `None` if its content is for another channel.
    pub(super) fn sms(&self) -> Option<&Sms> {
        match &self.job.content {
            Content::Sms(sms) => Some(sms),
            _ => None,
        }
    }

    /// The webhook that is its content; `None` if its content is for another channel.
    pub(super) fn webhook(&self) -> Option<&Webhook> {
        match &self.job.content {
            Content::Webhook(webhook) => Some(webhook),
            _ => None,
        }
    }

    /// When its notification was accepted.
    pub(super) fn accepted_at(&self) -> Timestamp {
        self.job.accepted_at
    }

    /// The collapse key of `push`, its content, or else the job's id. On the device a copy replaces an earlier one with the
    /// same id, so the copy of a repeated attempt replaces the first.
    pub(super) fn collapse_id<'a>(&self, push: &'a Push) -> Cow<'a, str> {
        push.collapse_id(|| self.job.id.to_string())
    }

    /// The rendition for `provider`; `render` makes it at the first call.
    pub(super) fn rendition(&self, provider: Provider, render: impl FnOnce() -> Bytes) -> &Bytes {
        self.renditions.of(provider, render)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Message(hidden)")
    }
}
