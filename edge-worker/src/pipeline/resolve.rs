//! Finds the addresses of the recipient.

use std::time::Duration;

use shared::{
    address::Address,
    id::AddressId,
    job::{Addressee, Job},
    nats::{directory, facts},
    preferences::Preferences,
    receipt::State,
    recipient::{Recipient, RecipientKey},
};

use super::{
    border::UNPROVEN,
    context::Pipeline,
    in_flight::ActiveJob,
    settlement::{RETRY_JETSTREAM_AFTER, RETRY_NEWER_AFTER, Step, Stop},
    turn::InTurn,
};
use crate::ledger::History;

/// How long a job waits for the facts of a recipient whose home is here by the directory. Jobs and facts from another region
/// travel in different streams.
const FACTS_ARRIVE_WITHIN: Duration = Duration::from_mins(1);

/// A job whose recipient is known and can be reached.
#[derive(Debug)]
pub(super) struct Addressed {
    pub(super) active: ActiveJob,
    /// Each with its revision in the bucket of recipients.
    pub(super) addresses: Vec<(Address, u64)>,
    pub(super) preferences: Preferences,
    /// The recipient's time zone.
    pub(super) timezone: Option<String>,
}

impl Pipeline {
    pub(super) async fn resolve(&self, turn: InTurn) -> Step<Addressed> {
        let InTurn { active, history } = turn;
        let job = &active.job;
        if self.needs_proof(&active.pulled)
            && !self.is_proven(
                job.proof.as_ref(),
                &job.claims(&active.pulled.payload()),
                job.accepted_at,
            )
        {
            tracing::error!(job = %job.id, origin = %job.origin, "a job came from another region without a proof; it is not sent");
            return Err(self.end(active, State::Suppressed, UNPROVEN));
        }
        let recipient = match &job.to {
            Addressee::Recipient(recipient) => recipient.clone(),
            Addressee::Address(address) => {
                let address = Address::clone(address);
                return self.direct(address, active, &history);
            }
        };
        let key = RecipientKey {
            app: job.app.clone(),
            recipient,
        };
        let mut recipient = match self.cache.recipient(&key, active.pulled.facts) {
            Ok(recipient) => recipient,
            Err(_) => match Box::pin(facts::read(&self.js, &self.border, &key)).await {
                Ok(recipient) => recipient,
                Err(error) => {
                    tracing::warn!(%error, "recipient cannot be read; the job waits");
                    return Err(Box::pin(self.postpone(active, "recipient_unreadable", RETRY_JETSTREAM_AFTER)).await);
                }
            },
        };
        if let Some(home) = recipient.moved_to(&self.region).cloned() {
            return Err(Box::pin(self.forward(active, &home)).await);
        }
        let known = recipient.is_known();
        if !known {
            match Box::pin(directory::home(&self.js, &self.border, &key)).await {
                Ok(Some(home)) if home != self.region => return Err(Box::pin(self.forward(active, &home)).await),
                // Another region registered the recipient, and its facts are on their way.
                Ok(Some(_)) if self.clock.since(active.pulled.stored_at) < FACTS_ARRIVE_WITHIN => {
                    return Err(Stop::GiveBack(active.pulled.into(), RETRY_JETSTREAM_AFTER));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the recipient's home cannot be read; the job waits");
                    return Err(Stop::GiveBack(active.pulled.into(), RETRY_JETSTREAM_AFTER));
                }
            }
        }
        recipient.addresses.retain(|(address, _)| takes(address, job));
        let reachable = !recipient.addresses.is_empty();
        recipient
            .addresses
            .retain(|(address, _)| !history.is_done(address.id, job.attempt));
        if reachable && recipient.addresses.is_empty() {
            return Err(self.drop_duplicate(active));
        }
        let Recipient {
            addresses,
            preferences,
            profile,
            is_incomplete: recipient_is_incomplete,
        } = recipient;
        if addresses.is_empty() && recipient_is_incomplete {
            tracing::warn!(job = %job.id, "addresses of a newer version cannot be read; the job waits for a newer worker");
            return Err(Box::pin(self.postpone(active, "recipient_unreadable", RETRY_NEWER_AFTER)).await);
        }
        if addresses.is_empty() {
            let is_retry = job.remaining.is_some();
            let reason = match (is_retry, known) {
                (true, _) => "address_removed",
                (false, true) => "no_address",
                (false, false) => "unknown_recipient",
            };
            return Err(self.end(active, State::Suppressed, reason));
        }
        Ok(Addressed {
            active,
            addresses,
            preferences,
            timezone: profile.and_then(|profile| profile.timezone),
        })
    }
}

impl Pipeline {
    /// A job for an address that the request named: nobody is looked up, and there are no preferences.
    fn direct(&self, address: Address, active: ActiveJob, history: &History) -> Step<Addressed> {
        if !takes(&address, &active.job) {
            return Err(self.end(active, State::Suppressed, "no_address"));
        }
        if history.is_done(address.id, active.job.attempt) {
            return Err(self.drop_duplicate(active));
        }
        Ok(Addressed {
            addresses: vec![(address, 0)],
            preferences: Preferences::default(),
            timezone: None,
            active,
        })
    }
}

/// Whether this job is for this address: a retry names its address, and content reaches only targets of its kind.
fn takes(address: &Address, job: &Job) -> bool {
    let is_meant = |remaining: &[AddressId]| remaining.contains(&address.id);
    // A token may have been registered for another use while the retry waited.
    job.remaining.as_deref().is_none_or(is_meant) && job.content.reaches(&address.target)
}
