//! Stores dead letters: messages that will not be retried, kept unchanged for a person to inspect.

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use bytes::Bytes;
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

    /// Stores the unchanged message, with the reason in its headers. A message that is too large for them is cut.
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
        let payload = pulled.payload();
        if let Some(proof) = pipeline.proof_of_member(pulled, &payload) {
            headers.insert(envelope::PROOF, proof.to_string());
        }
        let channel = subject::parse_dead(&self.subject).map(|subject| subject.channel);
        let max = pipeline.js.client().server_info().max_payload;
        let payload = cut_to_fit(payload, &mut headers, max);
        publish::store(&pipeline.js, self.subject, headers, payload).await?;
        let metrics = &pipeline.telemetry.metrics;
        metrics.dead_letter(&channel.unwrap_or_default(), &self.reason);
        Ok(())
    }
}

/// Room that is left in a letter, for what the server counts besides headers and payload.
const SPARE_BYTES: usize = 1024;

/// The payload of a letter with `headers`, cut where the server would refuse the letter as longer than `max`. The headers then
/// tell the size that it had.
fn cut_to_fit(mut payload: Bytes, headers: &mut HeaderMap, max: usize) -> Bytes {
    let line = |name: &str, value: &str| name.len() + value.len() + ": \r\n".len();
    let all = headers
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    let used: usize = all.map(|(name, value)| line(name.as_ref(), value.as_str())).sum();
    let room = max.saturating_sub(used + SPARE_BYTES);
    if payload.len() > room {
        headers.insert(envelope::ORIGINAL_BYTES, payload.len().to_string());
        payload.truncate(room);
    }
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_never_larger_than_a_message_may_be() {
        for (bytes, header_bytes, max) in [
            (10, 10, 4096),
            (1_048_450, 300, 1_048_576),
            (5000, 2000, 4096),
            (9, 9000, 4096),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(envelope::DETAIL, "x".repeat(header_bytes));
            let payload = Bytes::from(vec![b'x'; bytes]);
            let kept = cut_to_fit(payload, &mut headers, max);
            let told = envelope::header(&headers, envelope::ORIGINAL_BYTES).map(str::to_owned);
            assert_eq!(told, (kept.len() < bytes).then(|| bytes.to_string()));
            assert!(kept.is_empty() || kept.len() + header_bytes < max);
            assert!(kept.len() == bytes || bytes + header_bytes + 2 * SPARE_BYTES > max);
        }
    }
}
