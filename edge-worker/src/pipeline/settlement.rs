//! How the path of a job ends.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use opentelemetry::Context;
use shared::{
    broadcast::Broadcast,
    id::{AppId, Region},
    job::Job,
    receipt::Receipt,
};
use tokio::sync::oneshot;

use super::in_flight::{ActiveJob, Reservation};
use crate::pulled::Pulled;

/// How long a copy of a job that is in flight in this process stays with the server.
pub(super) const RETRY_ACTIVE_JOB_AFTER: Duration = Duration::from_secs(1);

/// How long a job stays with the server after the ledger could not be read.
pub(super) const RETRY_LEDGER_READ_AFTER: Duration = Duration::from_secs(5);

/// How long a job that only a newer version of Peal understands stays with the server.
pub(super) const RETRY_NEWER_AFTER: Duration = Duration::from_secs(5);

/// How long a job stays with the server after a read or write in JetStream, or a read of the cache, failed.
pub(super) const RETRY_JETSTREAM_AFTER: Duration = Duration::from_secs(2);

/// A stage either passes the job on or ends its path.
pub(super) type Step<T> = Result<T, Stop>;

/// An early end of the path.
#[derive(Debug)]
pub(super) enum Stop {
    /// The job is done, or needs nothing here.
    Settle(Box<Settlement>),
    /// The work cannot be done now; the server redelivers the message after this time.
    GiveBack(Box<Pulled>, Duration),
    /// A member of a slice waits with it until this time.
    HoldMember(Box<Pulled>, Timestamp),
}

/// The end of the path: the receipts to commit, and the message to acknowledge once they are published.
#[derive(Debug)]
pub(super) struct Settlement {
    pub(super) app: AppId,
    /// The region where the notification was accepted.
    pub(super) origin: Region,
    pub(super) receipts: Vec<Receipt>,
    pub(super) ticket: Ticket,
    /// The job, if another step of its plan may follow it.
    pub(super) step: Option<Arc<Job>>,
    /// Whether a provider was asked to deliver it, this time.
    pub(super) is_tried: bool,
}

/// Travels through the ledger with the receipts of a job, and is redeemed once they are published.
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
            is_tried: false,
            step: job.place.is_some().then_some(job),
        }
    }

    /// Settles a broadcast or a slice. Without a receipt, its outcome is recorded already.
    pub(super) fn of_broadcast(
        pulled: Pulled,
        broadcast: &Broadcast,
        reservation: Reservation,
        receipt: Option<Receipt>,
    ) -> Self {
        Self {
            app: broadcast.app.clone(),
            origin: broadcast.origin.clone(),
            receipts: receipt.into_iter().collect(),
            ticket: Ticket::new(pulled, Some(reservation), None),
            step: None,
            is_tried: false,
        }
    }
}

impl Stop {
    /// Ends the path of a job without a receipt: its outcome is recorded already, or will be recorded elsewhere.
    pub(super) fn silently(active: ActiveJob) -> Self {
        Self::Settle(Box::new(Settlement::of(active, Vec::new(), None)))
    }
}
