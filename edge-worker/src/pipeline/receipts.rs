//! Ends the path of a job with receipts, and builds receipts for the stages.

use jiff::Timestamp;
use shared::{
    broadcast::Broadcast,
    channel::Channel,
    id::{AddressId, JobId, NotificationId},
    job::Job,
    receipt::{Expanded, Receipt, State},
    telemetry::trace::trace_id,
};

use super::{
    context::Pipeline,
    in_flight::ActiveJob,
    settlement::{Settlement, Stop},
};
use crate::providers::Reason;

impl Pipeline {
    /// Ends the path without sending. A retry ends for its address, a first attempt as a whole.
    pub(super) fn end(&self, active: ActiveJob, state: State, reason: &'static str) -> Stop {
        let addresses = match &active.job.remaining {
            Some(remaining) => remaining.iter().copied().map(Some).collect(),
            None => vec![None],
        };
        let stale_s = self.freshness.stale(active.job.class);
        let receipt = Receipt {
            reason: Some(reason.into()),
            stale_s,
            ..receipt(&active.job, state, self.clock.now())
        };
        self.end_at(active, addresses, &receipt)
    }

    /// Ends the path of a job with one copy of `receipt` for each of `addresses`.
    pub(super) fn end_at(&self, active: ActiveJob, addresses: Vec<Option<AddressId>>, receipt: &Receipt) -> Stop {
        let span = self.process_span(&active.pulled, &active.job, Some(receipt.state));
        let trace = span.as_ref().and_then(trace_id);
        let each = |address| {
            self.telemetry.metrics.delivery(None, receipt.state);
            Receipt {
                address,
                trace: trace.clone(),
                ..receipt.clone()
            }
        };
        let receipts = addresses.into_iter().map(each).collect();
        Stop::Settle(Box::new(Settlement::of(active, receipts, span)))
    }
}

/// A receipt of `job`, without an address. The caller fills in what else is known.
pub(super) fn receipt(job: &Job, state: State, at: Timestamp) -> Receipt {
    Receipt {
        recipient: job.recipient().cloned(),
        attempt: job.attempt,
        slice: job.slice,
        step: job.step(),
        ..Receipt::new(job.notification, job.id, job.channel(), state, at)
    }
}

/// The receipt of a broadcast or a slice that became slices or jobs.
pub(super) fn receipt_of_expansion(broadcast: &Broadcast, expanded: Expanded, at: Timestamp) -> Receipt {
    Receipt {
        expanded: Some(expanded.into()),
        ..receipt_of_broadcast(broadcast, State::Expanded, at)
    }
}

/// The receipt of a broadcast of which nothing is sent any more.
pub(super) fn receipt_of_unwanted(broadcast: &Broadcast, state: State, reason: &'static str, at: Timestamp) -> Receipt {
    Receipt {
        reason: Some(Reason::Borrowed(reason)),
        ..receipt_of_broadcast(broadcast, state, at)
    }
}

fn receipt_of_broadcast(broadcast: &Broadcast, state: State, at: Timestamp) -> Receipt {
    Receipt::new(broadcast.notification, broadcast.work(), broadcast.channel(), state, at)
}

/// The receipt of a message that could not be read. Its ids are derived from its place in the stream.
pub(super) fn receipt_of_unreadable(
    job: JobId,
    notification: NotificationId,
    channel: Channel,
    at: Timestamp,
) -> Receipt {
    Receipt {
        reason: Some(Reason::Borrowed("unreadable")),
        ..Receipt::new(notification, job, channel, State::Dead, at)
    }
}
