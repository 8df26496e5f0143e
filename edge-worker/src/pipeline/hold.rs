//! Lets a job wait until a rule allows it: as a whole if all of its addresses wait, and else each of them for itself. A wait is no
//! attempt.

use std::sync::Arc;

use jiff::Timestamp;
use shared::{address::Address, job::Job, nats::defer::Deferral};

use super::{attempt::AddressAttempt, context::Pipeline, in_flight::ActiveJob, settlement::Step};
use crate::providers::{Attempted, Outcome};

/// An address that nothing is sent to before a time.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) address: Address,
    /// The revision of the address in the bucket of recipients.
    pub(super) revision: u64,
    /// When the rule is applied again.
    pub(super) until: Timestamp,
    /// The rule, as a word of receipts.
    pub(super) why: &'static str,
}

impl Pipeline {
    /// Lets a job wait as a whole until the first of `held` may be sent to, if it can: nothing else may happen to it now. A retry and
    /// a member of a slice go on, with each address waiting for itself.
    pub(super) async fn hold_whole(&self, active: ActiveJob, held: &[Held]) -> Step<ActiveJob> {
        let job = Arc::clone(&active.job);
        let first = held.iter().min_by_key(|held| held.until);
        let deferral = first.map(|first| Deferral::new(&job, first.until, first.why));
        match deferral {
            Some(Ok(deferral)) => Err(self.store_deferral(active, deferral).await),
            Some(Err(_)) | None => Ok(active),
        }
    }

    /// An attempt that was not made, for an address that comes back alone.
    pub(super) fn held_back(&self, job: &Job, held: Held) -> AddressAttempt {
        let Held {
            address,
            revision,
            until,
            why,
        } = held;
        let now = self.clock.now();
        let provider = self.providers.preferred(job, &address);
        let wait = until.duration_since(now).try_into().unwrap_or_default();
        let outcome = Outcome::NotYet {
            reason: why.into(),
            wait,
        };
        AddressAttempt {
            address,
            revision,
            attempted: Attempted::none(outcome, provider, now),
        }
    }
}
