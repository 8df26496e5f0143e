//! Parses a message, which is for one recipient or for a topic. An unreadable message is stored as a dead letter and never
//! retried.

use std::{borrow::Cow, sync::Arc};

use shared::{
    broadcast::{Broadcast, Work},
    channel::Channel,
    id::AppId,
    invalid::Invalid,
    job::Job,
    nats::{envelope, subject, topology, version},
    receipt::State,
};

use super::{
    barrier::Current,
    context::Pipeline,
    letter::DeadLetter,
    receipts::receipt_of_unreadable,
    settlement::{RETRY_JETSTREAM_AFTER, RETRY_NEWER_AFTER, Settlement, Step, Stop, Ticket},
};
use crate::pulled::Pulled;

/// After this number of tries a message of a newer version waits on a schedule.
const NEWER_TRIES: i64 = 3;

/// A readable message for one recipient.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) pulled: Pulled,
    pub(super) job: Arc<Job>,
}

/// A readable message.
#[derive(Debug)]
pub(super) enum Read {
    Job(Opened),
    Broadcast(Pulled, Box<Broadcast>),
}

impl Pipeline {
    pub(super) async fn open(&self, Current(pulled): Current) -> Step<Read> {
        if version::is_unknown_work(pulled.headers()) {
            return Err(Box::pin(self.wait_for_newer(pulled)).await);
        }
        match self.read(&pulled) {
            Ok(Work::Job(job)) => Ok(Read::Job(self.opened(pulled, job.into()))),
            Ok(Work::Broadcast(broadcast)) => Ok(Read::Broadcast(pulled, broadcast.into())),
            Err(invalid) => Err(Box::pin(self.bury(pulled, &invalid)).await),
        }
    }

    fn read(&self, pulled: &Pulled) -> Result<Work, Invalid> {
        envelope::read(
            pulled.subject(),
            pulled.headers(),
            &pulled.payload(),
            pulled.stored_at,
            &self.region,
            &self.config.id_key(),
        )
    }

    /// Gives a message back that only a newer version understands. If no newer worker takes it soon, it waits on a schedule
    /// and comes back from there, until no version would deliver it any more.
    async fn wait_for_newer(&self, pulled: Pulled) -> Stop {
        tracing::warn!(subject = %pulled.subject(), "message of a newer version is given back; a newer worker must take it");
        if pulled.tries < NEWER_TRIES {
            return Stop::GiveBack(pulled.into(), RETRY_NEWER_AFTER);
        }
        let now = self.clock.now();
        let accepted_at = envelope::accepted_at(pulled.headers(), pulled.stored_at).unwrap_or(pulled.stored_at);
        if now.duration_since(accepted_at).unsigned_abs() > topology::WORK_MAX_AGE {
            return self
                .bury(
                    pulled,
                    &Invalid::new(version::VERSION, "is newer than any worker of this region"),
                )
                .await;
        }
        let (work, address) = match self.read(&pulled) {
            Ok(Work::Job(job)) => (job.id, job.remaining.and_then(|remaining| remaining.first().copied())),
            Ok(Work::Broadcast(broadcast)) => (broadcast.work(), None),
            Err(_) => (
                envelope::unreadable(pulled.sequence, pulled.stored_at, &self.region).0,
                None,
            ),
        };
        self.reschedule(pulled, work, address, accepted_at).await
    }

    pub(super) fn opened(&self, pulled: Pulled, job: Arc<Job>) -> Opened {
        let metrics = &self.telemetry.metrics;
        metrics.pulled(job.class, self.clock.since(job.accepted_at));
        Opened { pulled, job }
    }

    /// Stores an unreadable message as a dead letter, with the field and the rule that it breaks.
    async fn bury(&self, pulled: Pulled, invalid: &Invalid) -> Stop {
        self.telemetry.metrics.unreadable();
        let lane = subject::Lane::parse(pulled.subject()).ok();
        let (job, notification) = envelope::unreadable(pulled.sequence, pulled.stored_at, &self.region);
        let letter = DeadLetter {
            subject: lane
                .as_ref()
                .map_or_else(|| subject::dead_unreadable(&self.region), subject::Lane::dead),
            id: job.to_string(),
            reason: Cow::Borrowed("unreadable"),
            detail: Some(invalid.to_string()),
            address: None,
            attempt: 1,
        };
        if let Err(error) = letter.store(self, &pulled).await {
            tracing::warn!(%error, "dead letter could not be stored; the message stays in its lane");
            return Stop::GiveBack(pulled.into(), RETRY_JETSTREAM_AFTER);
        }
        tracing::warn!(subject = %pulled.subject(), field = invalid.field, rule = invalid.rule, "message cannot be read");
        let channel = lane.as_ref().map_or(Channel::Push, |lane| lane.channel);
        let receipt = receipt_of_unreadable(job, notification, channel, self.clock.now());
        self.telemetry.metrics.delivery(None, State::Dead);
        Stop::Settle(Box::new(Settlement {
            app: lane.map_or_else(AppId::unknown, |lane| lane.app),
            origin: self.region.clone(),
            receipts: vec![receipt],
            ticket: Ticket::new(pulled, None, None),
            step: None,
            is_tried: false,
        }))
    }
}
