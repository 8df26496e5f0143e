//! What a caller asks for, whatever door it came through.

use std::sync::Arc;

use shared::{
    app::App,
    channel::Class,
    content::Content,
    id::{Category, EventId, RecipientId, Region, Topic},
    nats::subject::Lane,
};

/// One notification that a caller wants sent.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) app: Arc<App>,
    pub(crate) event: EventId,
    pub(crate) to: To,
    pub(crate) class: Class,
    pub(crate) category: Option<Category>,
    pub(crate) content: Content,
}

/// Who is to be reached.
#[derive(Debug)]
pub(crate) enum To {
    /// These recipients.
    Recipients(Vec<RecipientId>),
    /// The members of a topic.
    Topic(Topic),
}

impl Order {
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
