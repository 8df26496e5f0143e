//! Lets a step of a plan wait for the steps before it, and ends it if one of them has succeeded.
//!
//! The job of a step is stored when the step before it has failed, so usually its turn has come. It waits if deliveries of the step
//! before were settled by two workers at the same time: neither can tell that it settled the last one.

use std::sync::Arc;

use jiff::SignedDuration;
use shared::{
    job::Job,
    nats::defer::Deferral,
    plan::{self, Progress},
    receipt::State,
};

use super::{
    context::Pipeline,
    in_flight::ActiveJob,
    settlement::{RETRY_JETSTREAM_AFTER, RETRY_LEDGER_READ_AFTER, Step, Stop},
    wanted::Wanted,
};
use crate::ledger::{History, StoreError};

/// The reason of a step that is not needed, because an earlier one succeeded.
pub(super) const PLAN_SATISFIED: &str = "plan_satisfied";

/// The reason of a step that may not follow, because it is not known whether an earlier one succeeded.
pub(super) const PLAN_STOPPED: &str = "plan_stopped";

/// The reason of a step that waits for an earlier one.
const EARLIER_STEP: &str = "earlier_step";

/// A job that needs to wait for no other step of its plan.
#[derive(Debug)]
pub(super) struct InTurn {
    pub(super) active: ActiveJob,
    pub(super) history: History,
}

impl Pipeline {
    /// Ends a step after an earlier one has succeeded, and lets it wait while one may.
    pub(super) async fn await_turn(&self, wanted: Wanted) -> Step<InTurn> {
        let Wanted { active, history } = wanted;
        let job = &active.job;
        // A retry is for an address that was its turn before.
        let Some(place) = job
            .place
            .as_ref()
            .filter(|place| place.step > 0 && job.remaining.is_none())
        else {
            return Ok(InTurn { active, history });
        };
        let is_open = place.open_until.is_some_and(|until| until > self.clock.now());
        match self.earlier_steps(job) {
            Ok(Progress::Satisfied) => Err(self.end(active, State::Suppressed, PLAN_SATISFIED)),
            Ok(Progress::Stopped) => Err(self.end(active, State::Suppressed, PLAN_STOPPED)),
            Ok(Progress::Open) if is_open => Err(Box::pin(self.wait_for_turn(active)).await),
            // Without a time it was stored because the step before has failed, though its receipt may not be here yet.
            Ok(Progress::Open | Progress::Failed) => Ok(InTurn { active, history }),
            Err(error) => {
                tracing::error!(%error, "the ledger cannot be read; jobs wait");
                Err(Stop::GiveBack(active.pulled.into(), RETRY_LEDGER_READ_AFTER))
            }
        }
    }

    /// How far the steps before `job` have come, all together, as far as this region knows.
    pub(super) fn earlier_steps(&self, job: &Job) -> Result<Progress, StoreError> {
        let mut all = Progress::Failed;
        for earlier in job.earlier_steps(&self.config.id_key()) {
            match plan::progress(self.ledger.look_up(earlier)?.states()) {
                Progress::Failed => {}
                Progress::Open => all = Progress::Open,
                ended @ (Progress::Satisfied | Progress::Stopped) => return Ok(ended),
            }
        }
        Ok(all)
    }

    /// Lets a step wait, as long as it has waited since it was accepted, but not beyond its own life.
    async fn wait_for_turn(&self, active: ActiveJob) -> Stop {
        let job = Arc::clone(&active.job);
        let now = self.clock.now();
        let open_until = job.place.as_ref().and_then(|place| place.open_until).unwrap_or(now);
        let until = self
            .postponed_until(job.accepted_at)
            .min(open_until)
            .min(job.expires_at() - SignedDuration::from_secs(1));
        let deferral = match Deferral::new(&job, until, EARLIER_STEP) {
            Ok(deferral) if until > now => deferral,
            Ok(_) | Err(_) => return Stop::GiveBack(active.pulled.into(), RETRY_JETSTREAM_AFTER),
        };
        self.store_deferral(active, deferral).await
    }
}
