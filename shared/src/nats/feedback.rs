//! Reading what was reported about a notification.

use std::collections::HashSet;

use async_nats::jetstream;

use super::{
    border::Border,
    direct::{self, Found, NoAnswer},
    subject,
    topology::{Domain, FEEDBACK},
    version,
};
use crate::{
    feedback::Feedback,
    id::{AppId, NotificationId, Region},
};

/// Reports about one notification that are read, at most.
pub const READ_MAX: usize = 1024;

/// What this region, which is `home`, has about `notification` of `app` and may believe: the first 1024 reports.
///
/// # Errors
/// [`NoAnswer`], within two seconds.
pub async fn found(
    js: &jetstream::Context,
    border: &Border,
    home: &Region,
    app: &AppId,
    notification: NotificationId,
) -> Result<Vec<Found>, NoAnswer> {
    let filter = subject::feedback_about(home, app, notification);
    let mut found = direct::from(js, &Domain::Here, FEEDBACK, &filter, 1, READ_MAX).await?;
    found.retain(|found| border.admits_found(found));
    Ok(found)
}

/// The reports about `notification` among `found` that can be read, each once, oldest first.
pub fn read(found: impl IntoIterator<Item = Found>, notification: NotificationId) -> Vec<Feedback> {
    let mut seen = HashSet::new();
    let mut all: Vec<Feedback> = found
        .into_iter()
        .filter(|found| !version::is_unknown(&found.headers))
        .filter_map(|found| serde_json::from_slice(&found.payload).ok())
        .filter(|feedback: &Feedback| feedback.notification == notification && seen.insert(feedback.id))
        .collect();
    all.sort_by_key(|feedback| feedback.at);
    all
}
