//! Holds or ends work because an operator suspended its app, or because a control covers it.

use std::time::Duration;

use jiff::Timestamp;
use shared::{
    broadcast::Broadcast,
    control::Work,
    policy::{Ruling, controls},
};

use super::{context::Pipeline, settlement::Step, wanted::Wanted};

/// How long work that cannot wait on a schedule stays with the server.
const RETRY_HELD_AFTER: Duration = Duration::from_secs(30);

/// The reason of work whose app is suspended.
const SUSPENDED: &str = "suspended";

impl Pipeline {
    /// Ends a job that a control ends, and holds one that a control holds or whose app is suspended, without an attempt. It waits on a
    /// schedule from its first try: with the server it would take the places of other work in the lane. Members of a slice that has
    /// begun are not held.
    pub(super) async fn obey_controls(&self, wanted: Wanted) -> Step<Wanted> {
        let job = &wanted.active.job;
        let work = Work {
            app: &job.app,
            category: job.category.as_ref(),
            channel: job.channel(),
            class: job.class,
            region: &self.region,
        };
        match self.ruling_on(work) {
            Ruling::Send => Ok(wanted),
            Ruling::Drop { state, why } => Err(self.end(wanted.active, state, why)),
            Ruling::Wait { .. } if job.slice.is_some() && job.remaining.is_none() => Ok(wanted),
            Ruling::Wait { until, why } => {
                Err(Box::pin(self.wait_on_schedule(wanted.active, why, RETRY_HELD_AFTER, until)).await)
            }
        }
    }

    /// The same for a broadcast that is not split yet, or for a slice.
    pub(super) fn ruling_on_broadcast(&self, broadcast: &Broadcast) -> Ruling {
        self.ruling_on(Work {
            app: &broadcast.app,
            category: broadcast.category.as_ref(),
            channel: broadcast.channel(),
            class: broadcast.class,
            region: &self.region,
        })
    }

    fn ruling_on(&self, work: Work<'_>) -> Ruling {
        let tenants = self.config.tenants();
        if tenants.apps.get(work.app).is_some_and(|app| app.suspended) {
            return Ruling::Wait {
                until: Timestamp::MAX,
                why: SUSPENDED,
            };
        }
        controls::rule(tenants.controls_on(work.app), work, self.clock.now())
    }
}
