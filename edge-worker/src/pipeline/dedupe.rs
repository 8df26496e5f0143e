//! Drops jobs that were done before.
//!
//! All outcomes of one pass over a job are committed together, so any record of a first attempt shows that the pass is
//! complete. A record of a retry does not: the worker may have crashed after it stored the retry and before it committed the
//! pass. A retry is for one address and one attempt, and is looked up by both.

use super::{
    context::Pipeline,
    in_flight::ActiveJob,
    open::Opened,
    settlement::{RETRY_ACTIVE_JOB_AFTER, RETRY_LEDGER_READ_AFTER, Step, Stop},
};
use crate::ledger::History;

/// A job that was not done before, reserved for this process.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) active: ActiveJob,
    /// Its records in the ledger, such as intents and outcomes of other attempts.
    pub(super) history: History,
}

impl Pipeline {
    pub(super) fn dedupe(&self, opened: Opened) -> Step<Fresh> {
        let Opened { pulled, job } = opened;
        let address = job.remaining.as_ref().and_then(|remaining| remaining.first()).copied();
        let Some(reservation) = self.in_flight.reserve((job.id, address.map(|address| address.0))) else {
            return Err(Stop::GiveBack(pulled.into(), RETRY_ACTIVE_JOB_AFTER));
        };
        let history = match self.ledger.look_up(job.id) {
            Ok(history) => history,
            Err(error) => {
                tracing::error!(%error, "the ledger cannot be read; jobs wait");
                return Err(Stop::GiveBack(pulled.into(), RETRY_LEDGER_READ_AFTER));
            }
        };
        let done = match address {
            // Only a newer worker knows what the state means.
            _ if history.has_unrecognized() => false,
            None => history.has_completed_pass(job.attempt),
            Some(address) => history.ended_as_a_whole() || history.is_done(address, job.attempt),
        };
        let active = ActiveJob {
            pulled,
            job,
            reservation,
        };
        if done {
            return Err(self.drop_duplicate(active));
        }
        Ok(Fresh { active, history })
    }

    /// Ends the path of a job that was done before.
    pub(super) fn drop_duplicate(&self, active: ActiveJob) -> Stop {
        self.telemetry.metrics.duplicate();
        Stop::silently(active)
    }
}
