//! Lets the next step of a plan follow a job that has ended without success, or that needs a confirmation.
//!
//! The next job is stored before the outcome is committed, like a retry: a crash in between makes the step be tried again and the
//! next job be stored again, under the same id. Its turn comes in [`super::turn`].

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use shared::{
    failpoint::failpoint,
    job::Job,
    nats::defer,
    plan::{self, Mode, Progress},
    receipt::State,
};

use super::{
    border::UNPROVEN,
    context::Pipeline,
    settlement::{RETRY_JETSTREAM_AFTER, RETRY_LEDGER_READ_AFTER, Settlement, Waiting},
    turn::{NotKnown, PLAN_SATISFIED, PLAN_STOPPED},
    wanted::NOT_LISTED,
};
use crate::pulled::Pulled;

/// When it is looked again whether a step has failed whose last deliveries two workers may have settled at the same time.
const LOOK_AGAIN_AFTER: SignedDuration = SignedDuration::from_secs(30);

/// After its life a step has ended within this time.
const ENDS_WITHIN: SignedDuration = SignedDuration::from_mins(1);

/// The end of a path whose next step, if there is one, is stored.
#[derive(Debug)]
pub(super) struct Followed(pub(super) Settlement);

/// The next step could not be stored; the message was given back to the server.
#[derive(Debug)]
pub(super) struct NotFollowed;

impl Pipeline {
    /// Stores the job of the next step, if this one has ended without success, and mentions it in the receipts.
    pub(super) async fn follow(&self, settlement: Settlement) -> Result<Followed, NotFollowed> {
        let Settlement {
            step: Some(job),
            ticket,
            ..
        } = &settlement
        else {
            return Ok(Followed(settlement));
        };
        let Waiting::Done { pulled, .. } = &ticket.0 else {
            return Ok(Followed(settlement));
        };
        let (next, due) = match Box::pin(self.next_step(pulled, job, &settlement)).await {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(Followed(settlement)),
            Err(error) => {
                tracing::error!(%error, "it is not known how far earlier steps have come; jobs wait");
                return Err(settlement.give_back(RETRY_LEDGER_READ_AFTER));
            }
        };
        let target = self.tier_of_retry(pulled, &next).subject(&self.lane(&next).due());
        let storing = defer::store_next(&self.js, &next, due, target, pulled.headers(), pulled.payload());
        if let Err(error) = Box::pin(storing).await {
            tracing::warn!(job = %job.id, %error, "the next step could not be stored; the job is given back");
            return Err(settlement.give_back(RETRY_JETSTREAM_AFTER));
        }
        failpoint("worker.after-next-step");
        let mut settlement = settlement;
        for receipt in settlement
            .receipts
            .iter_mut()
            .filter(|receipt| receipt.state.is_final())
        {
            receipt.next_job = Some(next.id);
            receipt.next_at = Some(due);
        }
        Ok(Followed(settlement))
    }

    /// The job of the next step and when it is due; `None` if no step follows now.
    async fn next_step(
        &self,
        pulled: &Pulled,
        job: &Job,
        settlement: &Settlement,
    ) -> Result<Option<(Job, Timestamp)>, NotKnown> {
        let receipts = &settlement.receipts;
        let has_ended = receipts.iter().any(|receipt| receipt.state.is_final());
        let stops = |reason: &str| [PLAN_SATISFIED, PLAN_STOPPED, UNPROVEN, NOT_LISTED].contains(&reason);
        let is_stopped = receipts
            .iter()
            .any(|receipt| receipt.reason.as_deref().is_some_and(stops));
        if !has_ended || is_stopped || self.cancelled.contains(job.notification) {
            return Ok(None);
        }
        // It may have expired before its proof was looked at, and the next step would need none.
        if self.needs_proof(pulled)
            && !self.is_proven(job.proof.as_ref(), &job.claims(&pulled.payload()), job.accepted_at)
        {
            return Ok(None);
        }
        let history = self.ledger.look_up(job.id)?;
        let is_first = job
            .place
            .as_ref()
            .is_some_and(|place| place.course.mode() == Mode::First);
        if is_first && (settlement.is_tried || job.remaining.is_some() || history.has_outcome()) {
            // The recipient can be reached by this step: it is the one.
            return Ok(None);
        }
        let now = self.clock.now();
        let is_delivered = receipts.iter().any(|receipt| receipt.state == State::Delivered);
        let place = job.place.as_ref().filter(|_| is_delivered);
        let confirmed_until = place.and_then(|place| now.checked_add(place.course.wait(place.step)?).ok());
        let states = receipts
            .iter()
            .map(|receipt| (receipt.address, receipt.attempt, receipt.state));
        let (open_until, due) = match plan::progress(history.states().chain(states)) {
            // The next step looks whether this one was confirmed, until it has waited for long enough.
            Progress::Satisfied if confirmed_until.is_some() => (confirmed_until, now + LOOK_AGAIN_AFTER),
            Progress::Satisfied | Progress::Stopped => return Ok(None),
            Progress::Failed => (self.still_open_until(job).await?, now),
            // This delivery comes again, and looks then.
            Progress::Open if receipts.iter().any(|receipt| receipt.state == State::Parked) => return Ok(None),
            Progress::Open => (Some(job.expires_at() + ENDS_WITHIN), now + LOOK_AGAIN_AFTER),
        };
        let Some(mut next) = job.next_step(&self.config.id_key(), open_until) else {
            return Ok(None);
        };
        if job.proof.is_some() {
            // The proof covers the channel, so that nobody else can make a step of what was accepted as another.
            let payload = pulled.payload();
            next.proof = Some(self.border.prover().work(&next.claims(&payload), next.accepted_at));
        }
        Ok(Some((next, due)))
    }

    /// Until when the steps before `job` may still succeed, if it has ended before they have.
    async fn still_open_until(&self, job: &Job) -> Result<Option<Timestamp>, NotKnown> {
        let open_until = job.place.as_ref().and_then(|place| place.open_until);
        let is_open = open_until.is_some() && self.earlier_steps(job).await?.progress == Progress::Open;
        Ok(open_until.filter(|_| is_open))
    }
}

impl Settlement {
    /// Gives the message of a job back to the server, which redelivers it after `wait`.
    fn give_back(self, wait: Duration) -> NotFollowed {
        if let Waiting::Done { pulled, .. } = self.ticket.0 {
            pulled.give_back(wait);
        }
        NotFollowed
    }
}
