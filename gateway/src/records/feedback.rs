//! What is reported about messages after their deliveries have ended: stored where the report came in, and read, when somebody
//! asks, where the delivery was worked on.

use std::{sync::Arc, time::Duration};

use async_nats::header::NATS_MESSAGE_ID;
use futures::{StreamExt, TryStreamExt, future::join_all, stream};
use shared::{
    feedback::{Feedback, Kind, Report},
    id::{AppId, Category, NotificationId, Region},
    nats::{batch::Message, feedback, publish::NotStored, subject},
    provider::Provider,
    reference::{Reference, Unsubscription},
    suppression::{Suppression, SuppressionReason},
};

use crate::{
    context::Context,
    recipients::suppressions::{Wanted, suppress},
};

/// Reports of one callback that are being stored at one time, at most.
const STORED_AT_ONCE: usize = 64;

/// The feedback of every region. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Feedbacks {
    context: Arc<Context>,
}

/// Why nothing more is to be sent to the address of this feedback; `None` if something may be.
fn suppresses(feedback: &Feedback) -> Option<SuppressionReason> {
    if !Suppression::applies_to(feedback.channel) {
        return None;
    }
    match feedback.kind {
        Kind::Bounced if feedback.hard == Some(true) => Some(SuppressionReason::HardBounce),
        Kind::Complained => Some(SuppressionReason::Complaint),
        Kind::Unsubscribed => Some(SuppressionReason::Unsubscribe),
        Kind::Bounced | Kind::Confirmed | Kind::Undelivered | Kind::Unrecognized => None,
    }
}

/// Why reports were not kept.
#[derive(Debug)]
pub(crate) enum NotKept {
    /// None of them is about a message of the app.
    Unknown,
    /// Some of them may not be stored. Repeating helps and stores nothing twice.
    NotStored(NotStored),
}

impl Feedbacks {
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        Self {
            context: Arc::clone(context),
        }
    }

    /// Stores what `provider` reports about messages of `app`; without a provider it is the recipient who does. Reports that are
    /// about nothing that this app sent through this provider are left out.
    pub(crate) async fn keep(
        &self,
        app: &AppId,
        provider: Option<Provider>,
        reports: Vec<Report>,
    ) -> Result<(), NotKept> {
        let given = reports.len();
        let known: Vec<(Region, Feedback)> = {
            let each = reports.into_iter();
            each.filter_map(|report| self.recognize(app, provider, report))
                .collect()
        };
        if known.is_empty() && given > 0 {
            return Err(NotKept::Unknown);
        }
        if known.len() < given {
            tracing::warn!(%app, unknown = given - known.len(), "a callback reports about messages that are not the app's");
        }
        stream::iter(known)
            .map(|(home, feedback)| self.store(app, home, feedback, None))
            .buffer_unordered(STORED_AT_ONCE)
            .try_collect()
            .await
    }

    /// The feedback that a report is, and the region that it is for; `None` if no message of `app` carried its reference.
    fn recognize(&self, app: &AppId, provider: Option<Provider>, report: Report) -> Option<(Region, Feedback)> {
        let tenants = self.context.config.tenants();
        let ids = self.context.config.id_key();
        let (reference, home) = Reference::open(&ids, app, tenants.regions.keys(), &report.reference)?;
        if provider.is_some_and(|provider| !provider.carries(reference.channel)) {
            return None;
        }
        if let Some(sent_at) = reference.sent_at {
            let latency = Duration::try_from(report.at.duration_since(sent_at)).unwrap_or_default();
            let metrics = &self.context.telemetry.metrics;
            metrics.feedback(provider, report.kind.as_str(), latency);
        }
        Some((home.clone(), report.about(app, provider, &reference)))
    }

    /// Unsubscribes the recipient of a mail, from its category or from everything.
    pub(crate) async fn unsubscribe(
        &self,
        app: &AppId,
        home: &Region,
        unsubscription: Unsubscription,
    ) -> Result<(), NotKept> {
        let Unsubscription { reference, category } = unsubscription;
        let report = Report {
            reference: String::new(),
            event: category.as_ref().map(Category::to_string).unwrap_or_default(),
            kind: Kind::Unsubscribed,
            at: self.context.clock.now(),
            reason: None,
            hard: None,
        };
        let feedback = report.about(app, None, &reference);
        self.store(app, home.clone(), feedback, category).await
    }

    /// Stores a report, and forbids to send to the address if that follows from it.
    async fn store(
        &self,
        app: &AppId,
        home: Region,
        feedback: Feedback,
        category: Option<Category>,
    ) -> Result<(), NotKept> {
        let context = &self.context;
        if let Some(reason) = suppresses(&feedback) {
            let wanted = Wanted {
                channel: feedback.channel,
                address: feedback.address,
                reason,
                source: feedback.provider.map_or("link", Provider::as_str).to_owned(),
                category,
                expires_at: None,
            };
            suppress(context, app, wanted).await.map_err(NotKept::NotStored)?;
        }
        let subject = subject::feedback(&context.here, &home, app, feedback.notification);
        let payload = serde_json::to_vec(&feedback).expect("feedback always serializes");
        let mut headers = context.border.headers(&subject, &payload);
        headers.insert(NATS_MESSAGE_ID, feedback.id.to_string());
        let message = Message {
            subject,
            headers,
            payload: payload.into(),
        };
        message.store(&context.js).await.map(drop).map_err(NotKept::NotStored)
    }

    /// What was reported about a notification of `app`, as far as `regions` worked on it, oldest first. What a region that does not
    /// answer knows is missing.
    pub(crate) async fn of(&self, app: &AppId, id: NotificationId, regions: &[Region]) -> Vec<Feedback> {
        let asked = regions.iter().map(async |region| {
            let found = self.context.stores.feedback(region, app, id).await;
            found.unwrap_or_else(|error| {
                tracing::warn!(%region, %error, "a status lacks the feedback of a region");
                Vec::new()
            })
        });
        feedback::read(join_all(asked).await.into_iter().flatten(), id)
    }
}
