//! How the path of a job ends, and the receipts that record it.

use std::time::Duration;

use jiff::Timestamp;
use opentelemetry::Context;
use shared::{
    channel::Channel,
    id::{AddressId, AppId, JobId, NotificationId, Region},
    job::Job,
    receipt::{Receipt, State},
    telemetry::trace::trace_id,
};
use tokio::sync::oneshot;

use super::{
    Pipeline,
    in_flight::{ActiveJob, Reservation},
};
use crate::{providers::Reason, pulled::Pulled};

/// A stage either passes the job on or ends its path.
pub(super) type Step<T> = Result<T, Stop>;

/// An early end of the path.
#[derive(Debug)]
pub(super) enum Stop {
    /// Nothing more is to be done.
    Settle(Box<Settlement>),
    /// The work cannot be done now and is to be retried after this time.
    GiveBack(Box<Pulled>, Duration),
}

/// The end of the path: the receipts to commit, and the message to acknowledge once they are published.
#[derive(Debug)]
pub(super) struct Settlement {
    pub(super) app: AppId,
    /// The region where the notification was accepted.
    pub(super) origin: Region,
    pub(super) receipts: Vec<Receipt>,
    pub(super) ticket: Ticket,
}

/// Redeemed once the receipts of a job are published.
#[derive(Debug)]
pub struct Ticket(pub(super) Waiting);

/// What waits for the receipts of a job.
#[derive(Debug)]
pub(super) enum Waiting {
    /// A job that is done: the message to acknowledge and the span to end.
    Done {
        pulled: Pulled,
        /// Kept until the ledger knows the outcome: before that, nothing else keeps a redelivered copy away.
        _reservation: Option<Reservation>,
        span: Option<Context>,
    },
    /// A job that may be sent once its intent is published.
    Intent(oneshot::Sender<()>),
}

impl Ticket {
    pub(super) fn new(pulled: Pulled, reservation: Option<Reservation>, span: Option<Context>) -> Self {
        Self(Waiting::Done {
            pulled,
            _reservation: reservation,
            span,
        })
    }
}

impl Settlement {
    pub(super) fn of(active: ActiveJob, receipts: Vec<Receipt>, span: Option<Context>) -> Self {
        let ActiveJob {
            pulled,
            job,
            reservation,
        } = active;
        Self {
            app: job.app.clone(),
            origin: job.origin.clone(),
            receipts,
            ticket: Ticket::new(pulled, Some(reservation), span),
        }
    }
}

impl Stop {
    /// Ends the path of a job without a receipt: its outcome is recorded already, or will be recorded elsewhere.
    pub(super) fn silently(active: ActiveJob) -> Self {
        Self::Settle(Box::new(Settlement::of(active, Vec::new(), None)))
    }
}

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
        recipient: Some(job.recipient.clone()),
        attempt: job.attempt,
        slice: job.slice,
        ..Receipt::new(job.notification, job.id, job.channel(), state, at)
    }
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
