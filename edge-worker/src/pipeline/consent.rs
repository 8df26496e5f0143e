//! Decides whether to send at all: the job must not be expired or withdrawn, and the recipient must agree. This is decided
//! immediately before sending, so that a preference set a second ago counts. An address for which the content renders to
//! nothing is not sent to either, nor a phone number in a country that the app does not open.

use shared::{
    address::Address,
    channel::{Channel, Class},
    job::Job,
    receipt::State,
};

use super::{context::Pipeline, in_flight::ActiveJob, resolve::Addressed, settlement::Step};

/// A job that is still wanted and that its recipient agrees to.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) active: ActiveJob,
    /// Each with its revision in the bucket of recipients.
    pub(super) addresses: Vec<(Address, u64)>,
    /// Those that nothing is sent to.
    pub(super) spared: Vec<Spared>,
}

/// An address that nothing is sent to, by a rule.
#[derive(Debug)]
pub(super) struct Spared {
    pub(super) address: Address,
    pub(super) state: State,
    /// The rule, as a word of receipts.
    pub(super) reason: &'static str,
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
        let (mut sent, mut spared) = (Vec::with_capacity(addresses.len()), Vec::new());
        for (address, revision) in addresses {
            match self.rule_against(job, &address) {
                None => sent.push((address, revision)),
                Some((state, reason)) => spared.push(Spared { address, state, reason }),
            }
        }
        Ok(Agreed {
            active,
            addresses: sent,
            spared,
        })
    }

    /// The state and the reason of a rule that forbids to send to this address.
    fn rule_against(&self, job: &Job, address: &Address) -> Option<(State, &'static str)> {
        if !job.content.has_something_for(&address.target) {
            return Some((State::Suppressed, "nothing_for_target"));
        }
        let opens = || {
            let tenants = self.config.tenants();
            tenants.apps.get(&job.app).is_none_or(|app| app.opens(&address.target))
        };
        (job.channel() == Channel::Sms && !opens()).then_some((State::Rejected, "country_closed"))
    }
}
