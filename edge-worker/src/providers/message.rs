//! What is sent, rendered once per job, or once per slice, and shared by all deliveries.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, OnceLock},
};

use a2::CollapseId;
use bytes::Bytes;
use http::HeaderValue;
use serde_json::{Map, Value};
use shared::{job::Job, payload, push::Push};

use super::apns::unrepeated;

/// What is sent, shared by all deliveries of a job. Each provider's form is rendered when the first address needs it.
pub struct Message {
    job: Arc<Job>,
    collapse_header: OnceLock<Option<HeaderValue>>,
    apns: Arc<OnceLock<Bytes>>,
    fcm: OnceLock<Map<String, Value>>,
}

impl Message {
    /// The message of `job`. `apns` is where the body for APNs is, or will be, for all jobs of the same content.
    pub fn render(job: Arc<Job>, apns: Arc<OnceLock<Bytes>>) -> Self {
        Self {
            job,
            collapse_header: OnceLock::new(),
            apns,
            fcm: OnceLock::new(),
        }
    }

    /// The push itself.
    pub fn push(&self) -> &Push {
        &self.job.body.push
    }

    /// What makes a later copy replace an earlier one on the device: the collapse key, or the job's id.
    pub fn collapse_id(&self) -> Cow<'_, str> {
        match &self.push().collapse_key {
            Some(key) => Cow::Borrowed(key),
            // A repeated attempt replaces the first copy on the device.
            None => Cow::Owned(self.job.id.to_string()),
        }
    }

    /// The body for APNs.
    pub fn apns(&self) -> &Bytes {
        self.apns.get_or_init(|| payload::apns(self.push()).into())
    }

    /// The message for FCM, without its target.
    pub fn fcm(&self) -> &Map<String, Value> {
        self.fcm.get_or_init(|| payload::fcm(self.push(), &self.collapse_id()))
    }

    /// `apns-collapse-id`; `None` if Apple would refuse it.
    pub(super) fn collapse_header(&self) -> Option<&HeaderValue> {
        let header = || {
            let id = self.collapse_id();
            let id = CollapseId::new(&id).ok()?;
            HeaderValue::from_str(id.value).ok().map(unrepeated)
        };
        self.collapse_header.get_or_init(header).as_ref()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Message(hidden)")
    }
}
