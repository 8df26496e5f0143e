//! Decides whether to send at all: the job must not be expired or withdrawn, and the recipient must agree. This is decided
//! immediately before sending, so that a preference set a second ago counts. An address for which the content renders to
//! nothing is not sent to either.

use shared::{address::Address, channel::Class, receipt::State};

use super::{context::Pipeline, in_flight::ActiveJob, resolve::Addressed, settlement::Step};

/// A job that is still wanted and that its recipient agrees to.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) active: ActiveJob,
    /// Each with its revision in the bucket of recipients.
    pub(super) addresses: Vec<(Address, u64)>,
    /// Those for which the content renders to nothing. Nothing is sent to them.
    pub(super) spared: Vec<Address>,
}

impl Pipeline {
    pub(super) fn consent(&self, addressed: Addressed) -> Step<Agreed> {
        let Addressed {
            active,
            addresses,
            preferences,
        } = addressed;
        let job = &active.job;
        // Once more: reading the recipient may have taken seconds.
        if let Some(state) = self.unwanted(job.is_expired(self.clock.now()), job.notification) {
            return Err(self.end(active, state, state.as_str()));
        }
        if !preferences.allows(job.channel(), job.category.as_ref()) {
            return Err(self.end(active, State::Suppressed, "opted_out"));
        }
        if job.class == Class::Bulk && self.freshness.stale(Class::Bulk).is_some() {
            return Err(self.end(active, State::Suppressed, "stale_consent"));
        }
        let sends = |(address, _): &(Address, u64)| job.content.has_something_for(&address.target);
        let (sent, spared): (Vec<_>, Vec<_>) = addresses.into_iter().partition(sends);
        Ok(Agreed {
            active,
            addresses: sent,
            spared: spared.into_iter().map(|(address, _)| address).collect(),
        })
    }
}
