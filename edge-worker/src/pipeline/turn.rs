//! Lets a step of a plan wait for the steps before it, and ends it if one of them has succeeded.
//!
//! The job of a step is stored when the step before it has failed, so usually its turn has come. It waits if deliveries of the step
//! before were settled by two workers at the same time: neither can tell that it settled the last one. And it waits if the step
//! before is delivered and needs a confirmation: nobody tells workers what providers report, so each look reads it.

use jiff::{SignedDuration, Timestamp};
use shared::{
    job::Job,
    nats::{defer::Deferral, direct::NoAnswer, feedback},
    plan::{self, Place, Progress},
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

/// How far the steps before a job have come, all together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Earlier {
    pub(super) progress: Progress,
    /// How long at most one of them that is delivered may wait for its confirmation.
    wait: Option<SignedDuration>,
}

/// Why it is not known how far the steps before a job have come.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotKnown {
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] StoreError),
    /// What was reported cannot be read.
    #[error("feedback: {0}")]
    Feedback(#[from] NoAnswer),
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
        let Earlier { progress, wait } = match Box::pin(self.earlier_steps(job)).await {
            Ok(earlier) => earlier,
            Err(error) => {
                tracing::error!(%error, "it is not known how far earlier steps have come; jobs wait");
                return Err(Stop::GiveBack(active.pulled.into(), RETRY_LEDGER_READ_AFTER));
            }
        };
        let now = self.clock.now();
        let open_until = place.open_until.filter(|until| *until > now);
        match (progress, open_until) {
            (Progress::Satisfied, _) => Err(self.end(active, State::Suppressed, PLAN_SATISFIED)),
            (Progress::Stopped, _) => Err(self.end(active, State::Suppressed, PLAN_STOPPED)),
            (Progress::Open, Some(until)) => {
                // Two workers that settle deliveries of one step may store the next with different ends.
                let confirmed_until = wait.and_then(|wait| now.checked_add(wait).ok()).unwrap_or(until);
                Err(Box::pin(self.wait_for_turn(active, until.min(confirmed_until))).await)
            }
            // Without a time it was stored because the step before has failed, though its receipt may not be here yet.
            (Progress::Open | Progress::Failed, _) => Ok(InTurn { active, history }),
        }
    }

    /// How far the steps before `job` have come, all together, as far as this region knows.
    pub(super) async fn earlier_steps(&self, job: &Job) -> Result<Earlier, NotKnown> {
        let mut all = Earlier {
            progress: Progress::Failed,
            wait: None,
        };
        let Some(Place { course, .. }) = &job.place else {
            return Ok(all);
        };
        let mut reports = None;
        for (step, earlier) in (0..).zip(job.earlier_steps(&self.config.id_key())) {
            let history = self.ledger.look_up(earlier)?;
            let mut progress = plan::progress(history.states());
            if let (Some(wait), Some(content)) = (course.wait(step), course.content(step)) {
                let is_delivered = progress == Progress::Satisfied;
                if reports.is_none() {
                    let found = feedback::found(&self.js, &self.border, &self.region, &job.app, job.notification);
                    reports = Some(feedback::read(found.await?, job.notification));
                }
                let reports = reports.as_deref().unwrap_or_default();
                progress = plan::confirmation(history.states(), earlier, content.channel(), reports);
                if is_delivered && progress == Progress::Open {
                    all.wait = all.wait.max(Some(wait));
                }
            }
            match progress {
                Progress::Failed => {}
                Progress::Open => all.progress = Progress::Open,
                Progress::Satisfied | Progress::Stopped => return Ok(Earlier { progress, wait: None }),
            }
        }
        Ok(all)
    }

    /// Lets a step wait until `open_until`, at most as long as it has waited since it was accepted, and not beyond its own life.
    async fn wait_for_turn(&self, active: ActiveJob, open_until: Timestamp) -> Stop {
        let now = self.clock.now();
        let place = active.job.place.clone().map(|place| Place {
            open_until: Some(open_until),
            ..place
        });
        let job = Job {
            place,
            ..Job::clone(&active.job)
        };
        let until = self.back_at(&job).min(open_until);
        let deferral = match Deferral::new(&job, until, EARLIER_STEP) {
            Ok(deferral) if until > now => deferral,
            Ok(_) | Err(_) => return Stop::GiveBack(active.pulled.into(), RETRY_JETSTREAM_AFTER),
        };
        self.store_deferral(active, deferral).await
    }
}
