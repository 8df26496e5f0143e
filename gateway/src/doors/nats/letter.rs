//! Dead letters of what services published and what broke a rule: nobody waits for an answer, so the reason is kept.

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use bytes::Bytes;
use serde::Deserialize;
use shared::{
    channel::Channel,
    failpoint::failpoint,
    id::{EventId, NotificationId},
    nats::{
        envelope::{self, header},
        intake::Published,
        publish::{self, NotStored},
        subject, version,
    },
    receipt::{Batch, REFUSED, Receipt, State},
    telemetry::trace::TRACEPARENT,
};

use super::Door;
use crate::doors::problem::Problem;

/// Longest detail of a letter. A sender chooses the names of members, however long.
const DETAIL_CHARS_MAX: usize = 500;

/// A message, or one notification of it, that breaks a rule.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Its place in the message; `None` if the message is refused as a whole, or holds one notification.
    index: Option<usize>,
    json: Bytes,
    problem: Problem,
}

/// What a refused notification may name.
#[derive(Deserialize)]
struct Named {
    event_id: EventId,
}

impl Refusal {
    pub(super) fn new(index: Option<usize>, json: Bytes, problem: Problem) -> Self {
        Self { index, json, problem }
    }

    /// The code of the problem.
    pub(super) fn code(&self) -> &'static str {
        self.problem.kind().code
    }

    /// The event id, as far as it can be read.
    fn event(&self, headers: &HeaderMap) -> Option<EventId> {
        let named = serde_json::from_slice::<Named>(&self.json)
            .ok()
            .map(|named| named.event_id);
        match self.index {
            Some(_) => named,
            None => super::event(named, headers).ok(),
        }
    }
}

impl Door {
    /// Stores a dead letter of each refusal, then their receipts. Repeating it stores nothing twice.
    ///
    /// # Errors
    /// When a letter or the receipts are not known to be stored.
    pub(super) async fn keep(
        &self,
        message: &Published,
        headers: &HeaderMap,
        refusals: Vec<Refusal>,
    ) -> Result<(), NotStored> {
        if refusals.is_empty() {
            return Ok(());
        }
        let mut receipts = Vec::with_capacity(refusals.len());
        for refusal in refusals {
            receipts.push(self.keep_one(message, headers, refusal).await?);
        }
        failpoint("gateway.after-letter");
        self.record(message, receipts).await
    }

    async fn keep_one(&self, message: &Published, headers: &HeaderMap, refusal: Refusal) -> Result<Receipt, NotStored> {
        let context = &self.context;
        let event = refusal.event(headers);
        let id = envelope::refused(
            &message.app,
            message.sequence,
            message.stored_at,
            &context.here,
            refusal.index,
        );
        let detail = refusal.problem.detail().chars().filter(|c| !c.is_control());
        // Of the service's own headers none is kept: they might say what only Peal may say.
        let mut kept = version::headers();
        kept.insert(NATS_MESSAGE_ID, id.to_string());
        kept.insert(envelope::SUBJECT, message.message().subject.as_str());
        kept.insert(envelope::REASON, REFUSED);
        kept.insert(envelope::DETAIL, detail.take(DETAIL_CHARS_MAX).collect::<String>());
        kept.insert(envelope::ATTEMPT, "1");
        kept.insert(envelope::INTAKE_SEQUENCE, message.sequence.to_string());
        if let Some(index) = refusal.index {
            kept.insert(envelope::INDEX, index.to_string());
        }
        if let Some(event) = &event {
            kept.insert(envelope::EVENT_ID, event.as_str());
        }
        if let Some(traceparent) = header(headers, TRACEPARENT) {
            kept.insert(TRACEPARENT, traceparent);
        }
        let subject = subject::dead_refused(&context.here, &message.app);
        publish::store(&context.js, subject, kept, refusal.json).await?;
        context
            .telemetry
            .metrics
            .dead_letter(REFUSED, refusal.problem.kind().code);
        let notification = event.map_or(NotificationId(id.0), |event| NotificationId::of(&message.app, &event));
        let mut receipt = Receipt::new(notification, id, Channel::Push, State::Dead, context.clock.now());
        receipt.reason = Some(REFUSED.into());
        Ok(receipt)
    }

    /// Stores the receipts of all refusals of one message.
    async fn record(&self, message: &Published, receipts: Vec<Receipt>) -> Result<(), NotStored> {
        let here = &self.context.here;
        let id = envelope::refused(&message.app, message.sequence, message.stored_at, here, None);
        let id = format!("{REFUSED}:{id}");
        let mut headers = version::headers();
        headers.insert(NATS_MESSAGE_ID, id.as_str());
        headers.insert(envelope::BATCH, id.as_str());
        let batch = Batch {
            app: message.app.clone(),
            region: here.clone(),
            origin: here.clone(),
            writer: REFUSED.to_owned(),
            accepted: Vec::new(),
            receipts,
            handled: Vec::new(),
        };
        let payload = serde_json::to_vec(&batch).expect("receipts always serialize");
        let subject = subject::receipt(here, here, &message.app);
        publish::store(&self.context.js, subject, headers, payload.into()).await?;
        Ok(())
    }
}
