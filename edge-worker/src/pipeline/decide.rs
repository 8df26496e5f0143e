//! Decides whether to send at all: is it still worth it, and does the recipient agree? Asked at the last moment before
//! sending, so that what was said a second ago counts.

use std::sync::Arc;

use shared::{
    channel::Class,
    job::Job,
    receipt::{Receipt, State},
    recipient::Address,
};

use super::{Pipeline, Settlement, Step, Stop, Ticket, dedupe::Reserved, resolve::Addressed};
use crate::{providers::Message, pulled::Pulled};

/// A job that is to be sent now.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) pulled: Pulled,
    pub(super) job: Arc<Job>,
    pub(super) reserved: Reserved,
    pub(super) addresses: Vec<(Address, u64)>,
    pub(super) message: Message,
}

impl Pipeline {
    pub(super) fn decide(&self, addressed: Addressed) -> Step<Ready> {
        if addressed.job.is_expired(self.clock.now()) {
            return Err(self.end(addressed, State::Expired, "expired"));
        }
        if self.cancelled.contains(addressed.job.notification) {
            return Err(self.end(addressed, State::Cancelled, "cancelled"));
        }
        let job = &addressed.job;
        if !addressed.preferences.allows(job.channel, job.body.category.as_ref()) {
            return Err(self.end(addressed, State::Suppressed, "opted_out"));
        }
        if job.class == Class::Bulk && self.freshness.stale(Class::Bulk).is_some() {
            return Err(self.end(addressed, State::Suppressed, "stale_consent"));
        }
        let Addressed {
            pulled,
            job,
            reserved,
            addresses,
            preferences: _,
        } = addressed;
        Ok(Ready {
            message: Message::new(job.clone(), pulled.renditions()),
            pulled,
            job,
            reserved,
            addresses,
        })
    }

    /// Ends the path without sending. A retry ends for its address, a fresh job as a whole.
    pub(super) fn end(&self, addressed: Addressed, state: State, reason: &'static str) -> Stop {
        let Addressed {
            pulled, job, reserved, ..
        } = addressed;
        let at = self.clock.now();
        let span = self.process_span(&pulled, &job, Some(state));
        let ending = match &job.remaining {
            Some(remaining) => remaining.iter().copied().map(Some).collect(),
            None => vec![None],
        };
        let receipts = ending
            .into_iter()
            .map(|address| {
                self.telemetry.metrics.delivery(None, state);
                Receipt {
                    address,
                    state,
                    reason: Some(reason.into()),
                    stale_s: self.freshness.stale(job.class),
                    trace: span.as_ref().and_then(super::trace::id),
                    ..receipt(&job, at)
                }
            })
            .collect();
        let ticket = Ticket::new(pulled, Some(reserved), span);
        Stop::Settle(Box::new(Settlement {
            app: job.app.clone(),
            origin: job.origin.clone(),
            receipts,
            ticket,
        }))
    }
}

/// A receipt of `job` without an outcome; the caller fills in the rest.
pub(super) fn receipt(job: &Job, at: jiff::Timestamp) -> Receipt {
    Receipt {
        recipient: Some(job.body.recipient.clone()),
        attempt: job.attempt,
        slice: job.slice,
        ..Receipt::new(job.notification, job.id, job.channel, State::Delivered, at)
    }
}
