//! Stores dead letters: messages that will not be retried, kept unchanged for a person to inspect.

use async_nats::header::NATS_MESSAGE_ID;
use shared::{
    id::AddressId,
    job::Job,
    nats::{envelope, publish, subject},
};

use super::context::Pipeline;
use crate::{providers::Reason, pulled::Pulled};

/// Longest detail of a letter. A sender chooses the names of members, however long.
const MAX_DETAIL_CHARS: usize = 500;

/// A message that will not be retried.
#[derive(Debug)]
pub(super) struct DeadLetter {
    pub(super) subject: String,
    /// The id of the message in DEAD, so that a letter is kept once.
    pub(super) id: String,
    pub(super) reason: Reason,
    /// The field and the rule that it breaks, for people.
    pub(super) detail: Option<String>,
    pub(super) address: Option<AddressId>,
    pub(super) attempt: u32,
}

impl DeadLetter {
    /// The letter of a delivery that will not be retried.
    pub(super) fn of(job: &Job, address: AddressId, reason: Reason, pipeline: &Pipeline) -> Self {
        Self {
            subject: pipeline.lane(job).dead(),
            id: format!("{}:{}", job.delivery(address), job.attempt),
            reason,
            detail: None,
            address: Some(address),
            attempt: job.attempt,
        }
    }

    /// Stores the unchanged message, with the reason in its headers.
    pub(super) async fn store(self, pipeline: &Pipeline, pulled: &Pulled) -> Result<(), publish::NotStored> {
        let mut headers = envelope::kept(pulled.headers());
        headers.insert(NATS_MESSAGE_ID, self.id);
        headers.insert(envelope::SUBJECT, pulled.subject().as_str());
        headers.insert(envelope::REASON, &*self.reason);
        headers.insert(envelope::ATTEMPT, self.attempt.to_string());
        if let Some(detail) = self.detail {
            // The names of members are the sender's; a header takes no line breaks.
            let detail: String = detail
                .chars()
                .filter(|c| !c.is_control())
                .take(MAX_DETAIL_CHARS)
                .collect();
            headers.insert(envelope::DETAIL, detail);
        }
        if let Some(address) = self.address {
            headers.insert(envelope::ADDRESS, address.to_string());
        }
        let channel = subject::parse_dead(&self.subject).map(|subject| subject.channel);
        publish::store(&pipeline.js, self.subject, headers, pulled.payload()).await?;
        let metrics = &pipeline.telemetry.metrics;
        metrics.dead_letter(&channel.unwrap_or_default(), &self.reason);
        Ok(())
    }
}
