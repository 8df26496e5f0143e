//! Ends jobs that nobody wants any more, or that may reach nobody, before anything is asked about their recipients: a job that
//! cannot be worked on must end with its notification.

use shared::{
    id::NotificationId,
    job::{Addressee, Job},
    receipt::State,
};

use super::{context::Pipeline, in_flight::ActiveJob, interrupted::Clear, settlement::Step};
use crate::ledger::History;

/// The reason of a message by a test key for somebody who is not one of the app's `test_recipients`.
pub(super) const NOT_LISTED: &str = "not_listed";

/// A job that has neither expired nor been withdrawn, nor is its recipient erased.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) active: ActiveJob,
    pub(super) history: History,
}

impl Pipeline {
    /// Ends a job that has expired, was withdrawn, is for a recipient who was erased since, or may not reach its addressee.
    pub(super) fn end_unwanted(&self, clear: Clear) -> Step<Wanted> {
        let Clear { active, history } = clear;
        let job = &active.job;
        let unwanted = self.unwanted(job.is_expired(self.clock.now()), job.notification);
        if let Some(state) = unwanted {
            return Err(self.end(active, state, state.as_str()));
        }
        match &job.to {
            Addressee::Recipient(recipient) if self.cancelled.is_erased(&job.app, recipient, job.accepted_at) => {
                Err(self.end(active, State::Cancelled, "erased"))
            }
            Addressee::Recipient(_) | Addressee::Address(_) if self.is_unlisted(job) => {
                Err(self.end(active, State::Suppressed, NOT_LISTED))
            }
            Addressee::Recipient(_) | Addressee::Address(_) => Ok(Wanted { active, history }),
        }
    }

    /// Whether a test key sent `job` to somebody whom its app does not list at this moment.
    pub(super) fn is_unlisted(&self, job: &Job) -> bool {
        let tenants = self.config.tenants();
        job.trial.test_key && tenants.apps.get(&job.app).is_none_or(|app| !app.lets_reach(job))
    }

    /// The state in which work on `notification` ends that has expired or was withdrawn; `None` if it is still wanted.
    pub(super) fn unwanted(&self, is_expired: bool, notification: NotificationId) -> Option<State> {
        if is_expired {
            Some(State::Expired)
        } else {
            self.cancelled.contains(notification).then_some(State::Cancelled)
        }
    }
}
