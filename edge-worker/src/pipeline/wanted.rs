//! Ends jobs that nobody wants any more, before anything is asked about their recipients: a job that cannot be worked on
//! must end with its notification.

use shared::{id::NotificationId, job::Addressee, receipt::State};

use super::{context::Pipeline, in_flight::ActiveJob, interrupted::Clear, settlement::Step};
use crate::ledger::History;

/// A job that has neither expired nor been withdrawn, nor is its recipient erased.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) active: ActiveJob,
    pub(super) history: History,
}

impl Pipeline {
    /// Ends a job that has expired, was withdrawn, or is for a recipient who was erased since.
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
            Addressee::Recipient(_) | Addressee::Address(_) => Ok(Wanted { active, history }),
        }
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
