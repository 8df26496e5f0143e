//! Ends jobs whose worker was interrupted between recording the intent to send ([`super::intend`]) and recording the
//! outcome: it is unknown whether they were sent, so a person decides.

use shared::receipt::{Receipt, State};

use super::{
    context::Pipeline,
    dedupe::Fresh,
    in_flight::ActiveJob,
    letter::DeadLetter,
    receipts::receipt,
    settlement::{RETRY_JETSTREAM_AFTER, RETRY_NEWER_AFTER, Step, Stop},
};
use crate::{ledger::History, limits::ANSWER_DUE_AFTER};

/// A job of which no attempt was interrupted.
#[derive(Debug)]
pub(super) struct Clear {
    pub(super) active: ActiveJob,
    pub(super) history: History,
}

impl Pipeline {
    /// Ends a job as `unknown` if its worker was interrupted after recording the intent to send.
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
        if pulled.tries < 2 {
            return Err(Stop::GiveBack(active.pulled.into(), ANSWER_DUE_AFTER));
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
}
