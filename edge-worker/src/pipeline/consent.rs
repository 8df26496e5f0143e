//! Decides whether to send at all: the job must not be expired or withdrawn, and the recipient must agree. This is decided
//! immediately before sending, so that a preference set a second ago counts. An address for which the content renders to
//! nothing is not sent to either, nor one that is on the app's suppression list or disabled, nor a phone number in a country that the app
//! does not open.

use std::time::Duration;

use shared::{
    address::{Address, Target},
    channel::{Channel, Class},
    job::Job,
    policy::{
        Ruling,
        category::CategoryKind,
        consent::{Asked, consent},
    },
    preferences::Preferences,
    receipt::State,
    suppression::{Suppression, SuppressionId},
};

use super::{
    context::Pipeline,
    in_flight::ActiveJob,
    resolve::Addressed,
    settlement::{RETRY_JETSTREAM_AFTER, Step, Stop},
    timing::Times,
    wanted::NOT_LISTED,
};
use crate::cache::StoreError;

/// When a mail that nobody could unsubscribe from is looked at again, for the first times.
const RETRY_WITHOUT_LINKS_AFTER: Duration = Duration::from_secs(30);

/// A job that is still wanted and that its recipient agrees to.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) active: ActiveJob,
    /// Each with its revision in the bucket of recipients.
    pub(super) addresses: Vec<(Address, u64)>,
    /// Those that nothing is sent to.
    pub(super) spared: Vec<Spared>,
    pub(super) times: Times,
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
            timezone,
        } = addressed;
        let job = &active.job;
        // Once more: reading the recipient may have taken seconds.
        if let Some(state) = self.unwanted(job.is_expired(self.clock.now()), job.notification) {
            return Err(self.end(active, state, state.as_str()));
        }
        if self.is_unlisted(job) {
            return Err(self.end(active, State::Suppressed, NOT_LISTED));
        }
        // Consent never waits.
        if let Ruling::Drop { state, why } = self.agreement(job, &preferences) {
            return Err(self.end(active, state, why));
        }
        if job.class == Class::Bulk && self.freshness.stale(Class::Bulk).is_some() {
            return Err(self.end(active, State::Suppressed, "stale_consent"));
        }
        let (mut sent, mut spared) = (Vec::with_capacity(addresses.len()), Vec::new());
        for (address, revision) in addresses {
            match self.rule_against(job, &address) {
                Ok(None) => sent.push((address, revision)),
                Ok(Some((state, reason))) => spared.push(Spared { address, state, reason }),
                Err(error) => {
                    tracing::warn!(%error, "the suppression list cannot be read; the job is given back");
                    return Err(Stop::GiveBack(active.pulled.into(), RETRY_JETSTREAM_AFTER));
                }
            }
        }
        Ok(Agreed {
            active,
            addresses: sent,
            spared,
            times: Times {
                timezone,
                quiet_hours: preferences.quiet_hours,
            },
        })
    }

    /// Whether the recipient agrees to this job, at whichever attempt.
    fn agreement(&self, job: &Job, preferences: &Preferences) -> Ruling {
        if preferences.are_empty() {
            return Ruling::Send;
        }
        let asked = Asked {
            channel: job.channel(),
            category: job.category.as_ref(),
            kind: self.kind(job),
            topic: job.topic.as_ref(),
        };
        consent(preferences, asked, self.clock.now())
    }

    /// Lets a commercial mail wait that nobody could unsubscribe from, until an operator states where the gateways are known.
    pub(super) async fn demand_unsubscription(&self, agreed: Agreed) -> Step<Agreed> {
        let job = &agreed.active.job;
        let has_links = || self.public_url.is_some() && self.config.id_key().signs();
        if job.channel() != Channel::Email || self.kind(job) != CategoryKind::Commercial || has_links() {
            return Ok(agreed);
        }
        tracing::error!(job = %job.id, "commercial mail needs public_url, for links to unsubscribe; it waits");
        Err(Box::pin(self.postpone(agreed.active, "no_unsubscription", RETRY_WITHOUT_LINKS_AFTER)).await)
    }

    /// What the notifications of the job's category are.
    pub(super) fn kind(&self, job: &Job) -> CategoryKind {
        if job.category.is_none() {
            return CategoryKind::Default;
        }
        let tenants = self.config.tenants();
        let app = tenants.apps.get(&job.app);
        app.map_or(CategoryKind::Default, |app| app.kind(job.category.as_ref()))
    }

    /// The state and the reason of a rule that forbids to send to this address.
    ///
    /// # Errors
    /// When it is not known whether the address is suppressed.
    fn rule_against(&self, job: &Job, address: &Address) -> Result<Option<(State, &'static str)>, StoreError> {
        if !job.content.has_something_for(&address.target) {
            return Ok(Some((State::Suppressed, "nothing_for_target")));
        }
        if let Target::Webhook(receiver) = &address.target
            && receiver.disabled().is_some()
        {
            return Ok(Some((State::Suppressed, "receiver_disabled")));
        }
        if self.is_suppressed(job, address)? {
            return Ok(Some((State::Suppressed, "suppression_list")));
        }
        let opens = || {
            let tenants = self.config.tenants();
            tenants.apps.get(&job.app).is_none_or(|app| app.opens(&address.target))
        };
        Ok((job.channel() == Channel::Sms && !opens()).then_some((State::Rejected, "country_closed")))
    }

    /// Whether the address is on the app's list, for all categories or for that of the job.
    fn is_suppressed(&self, job: &Job, address: &Address) -> Result<bool, StoreError> {
        if !Suppression::applies_to(job.channel()) {
            return Ok(false);
        }
        let (ids, now) = (self.config.id_key(), self.clock.now());
        for category in [None].into_iter().chain(job.category.as_ref().map(Some)) {
            let id = SuppressionId::of(&ids, address.id, category);
            if self.suppressions.forbids(&job.app, id, now)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
