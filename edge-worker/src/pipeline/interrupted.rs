//! Jobs whose worker was interrupted between recording the intent to send ([`super::intend`]) and recording the outcome: it
//! is unknown whether they were sent.
//!
//! First the answer must be overdue: the worker that has the intent may only be waiting for it. Then the app's policy
//! decides: the job is sent again, or it ends as `unknown` for a person to decide.

use std::time::Duration;

use shared::{
    app::Ambiguity,
    job::Job,
    receipt::{Receipt, State},
};

use super::{
    context::Pipeline,
    dedupe::Fresh,
    in_flight::ActiveJob,
    letter::DeadLetter,
    receipts::receipt,
    settlement::{RETRY_JETSTREAM_AFTER, RETRY_NEWER_AFTER, Step, Stop},
};
use crate::{
    ledger::History,
    limits::{ANSWER_DUE_AFTER, REPORT_PROGRESS_EVERY},
    pulled::Pulled,
};

/// A job of which no attempt was interrupted.
#[derive(Debug)]
pub(super) struct Clear {
    pub(super) active: ActiveJob,
    pub(super) history: History,
}

impl Pipeline {
    /// Ends a job as `unknown` if its worker was interrupted after recording the intent to send, and the app holds such
    /// deliveries.
    pub(super) async fn end_interrupted(&self, fresh: Fresh) -> Step<Clear> {
        let Fresh { active, history } = fresh;
        if history.has_unrecognized() {
            tracing::warn!(job = %active.job.id, "a newer worker recorded a state that this one does not know; the job waits for a newer worker");
            return Err(Box::pin(self.postpone(active, "newer_version", RETRY_NEWER_AFTER)).await);
        }
        let in_doubt = history.in_doubt(active.job.attempt);
        if in_doubt.is_empty() {
            return Ok(Clear { active, history });
        }
        let ActiveJob { pulled, job, .. } = &active;
        if let Some(wait) = self.until_answer_is_overdue(pulled, job, &history) {
            return Err(Stop::GiveBack(active.pulled.into(), wait));
        }
        if self.ambiguity(job) == Ambiguity::Resend {
            return Ok(Clear { active, history });
        }
        for address in &in_doubt {
            let letter = DeadLetter::of(job, *address, "interrupted".into(), self);
            if let Err(error) = letter.store(self, pulled).await {
                tracing::warn!(%error, "dead letter could not be stored; the job is given back");
                return Err(Stop::GiveBack(active.pulled.into(), RETRY_JETSTREAM_AFTER));
            }
        }
        let receipt = Receipt {
            reason: Some("interrupted".into()),
            ..receipt(job, State::Unknown, self.clock.now())
        };
        let addresses = in_doubt.into_iter().map(Some).collect();
        Err(self.end_at(active, addresses, &receipt))
    }

    /// How long to give a job back to the server, because another worker may still be waiting for its answer.
    fn until_answer_is_overdue(&self, pulled: &Pulled, job: &Job, history: &History) -> Option<Duration> {
        let Some(final_answer) = self.providers.final_answer(job.channel()) else {
            // The server has given it to a second worker, so the first had the time that any attempt takes.
            return (pulled.tries < 2).then_some(ANSWER_DUE_AFTER);
        };
        // Only time tells: a server that was killed gives out the job again at once.
        let intended_at = history.intended_at()?;
        let age = self.clock.since(intended_at);
        let left = (final_answer + ANSWER_DUE_AFTER).saturating_sub(age);
        (!left.is_zero()).then(|| left.min(REPORT_PROGRESS_EVERY))
    }
}
