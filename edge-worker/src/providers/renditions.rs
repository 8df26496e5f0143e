//! What is sent, in each provider's form.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use shared::{
    content::{Content, push::Push},
    job::Job,
    provider::Provider,
};

/// One content as bytes for each provider, rendered when the first attempt needs it. Shared by all deliveries of a job,
/// and by all members of a slice, so a rendition depends on the content alone. Cheap to clone.
#[derive(Clone, Default)]
pub struct Renditions(Arc<[OnceLock<Bytes>; Provider::COUNT]>);

impl Renditions {
    /// The content for `provider`: what `render` makes of it, the first time.
    pub(super) fn of(&self, provider: Provider, render: impl FnOnce() -> Bytes) -> &Bytes {
        self.0[provider as usize].get_or_init(render)
    }
}

impl fmt::Debug for Renditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Renditions(hidden)")
    }
}

/// What is sent to all addresses of one job.
pub struct Message {
    job: Arc<Job>,
    renditions: Renditions,
}

impl Message {
    /// The message of `job`. All jobs that share `renditions` have the same content.
    pub fn new(job: Arc<Job>, renditions: Renditions) -> Self {
        Self { job, renditions }
    }

    /// The push itself.
    pub(super) fn push(&self) -> &Push {
        let Content::Push(push) = &self.job.content;
        push
    }

    /// A later copy with the same id replaces an earlier one on the device: the collapse key, or the job's id, so that a
    /// repeated attempt replaces the first copy.
    pub(super) fn collapse_id(&self) -> Cow<'_, str> {
        self.push().collapse_id(|| self.job.id.to_string())
    }

    /// The content for `provider`: what `render` makes of it, the first time.
    pub(super) fn rendition(&self, provider: Provider, render: impl FnOnce(&Push) -> Bytes) -> &Bytes {
        self.renditions.of(provider, || render(self.push()))
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Message(hidden)")
    }
}
