//! Tells the gateways what attempts showed of receivers of webhooks, if that changes what is known of them: the first failure, the
//! first success after it, and failures after which the app is alerted or the receiver is disabled.

use shared::{
    address::{Seen, Target, Trouble},
    job::Job,
    nats::receivers::Observation,
};

use super::{attempt::AddressAttempt, context::Pipeline};
use crate::providers::{BREAKER_OPEN, Outcome};

impl Pipeline {
    /// Tells a gateway, without waiting for it.
    pub(super) fn observe(&self, job: &Job, attempt: &AddressAttempt) {
        let (Some(observation), Some(regions)) = (self.observation(job, attempt), self.regions.clone()) else {
            return;
        };
        // What is lost is seen again at the next attempt.
        self.lifecycle.spawn_job(async move {
            if let Err(error) = regions.observed(observation).await {
                tracing::warn!(%error, "what is known of a receiver could not be changed");
            }
        });
    }

    /// Has a gateway disable a receiver that wants no more, before the outcome is recorded.
    pub(super) async fn disable(&self, job: &Job, attempt: &AddressAttempt) {
        let (Some(observation), Some(regions)) = (self.observation(job, attempt), &self.regions) else {
            return;
        };
        if !self.brake.allows(self.clock.now()) {
            tracing::error!("too many receivers want no more; no more are disabled in this minute");
        } else if let Err(error) = regions.observed(observation).await {
            tracing::warn!(%error, "a receiver that wants no more could not be disabled");
        }
    }

    fn observation(&self, job: &Job, attempt: &AddressAttempt) -> Option<Observation> {
        // Nothing is known of an address that a request named.
        let recipient = job.recipient()?;
        let Target::Webhook(receiver) = &attempt.address.target else {
            return None;
        };
        let at = self.clock.now();
        let (seen, reason) = seen(&attempt.attempted.outcome)?;
        let known = receiver.trouble.as_ref();
        // The mishap of a moment, which the next attempt mends.
        if seen == Seen::Failure && known.is_none() && job.attempt == 1 {
            return None;
        }
        Trouble::after(known, seen, at, reason)?;
        Some(Observation {
            app: job.app.clone(),
            recipient: recipient.clone(),
            address: attempt.address.id,
            registered_at: attempt.address.registered_at,
            seen,
            at,
            reason: reason.to_owned(),
        })
    }
}

/// What an outcome shows of the receiver, with its reason; `None` if it shows nothing.
fn seen(outcome: &Outcome) -> Option<(Seen, &str)> {
    match outcome {
        Outcome::Accepted { .. } => Some((Seen::Success, "")),
        Outcome::AddressGone { reason, .. } => Some((Seen::Gone, reason)),
        // Nothing was tried.
        Outcome::EndpointTrouble { reason, .. } if reason == BREAKER_OPEN => None,
        Outcome::RetryLater { reason, .. }
        | Outcome::EndpointTrouble { reason, .. }
        | Outcome::Ambiguous { reason } => Some((Seen::Failure, reason)),
        Outcome::Rejected { .. } | Outcome::CredentialTrouble { .. } | Outcome::NotYet { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_tried_tells_something_of_the_receiver() {
        let (reason, not_before) = (|text: &'static str| text.into(), None);
        for (outcome, expected) in [
            (Outcome::Accepted { provider_id: None }, Some(Seen::Success)),
            (
                Outcome::AddressGone {
                    reason: reason("http_410"),
                    since: None,
                },
                Some(Seen::Gone),
            ),
            (
                Outcome::RetryLater {
                    reason: reason("http_503"),
                    not_before,
                },
                Some(Seen::Failure),
            ),
            (
                Outcome::EndpointTrouble {
                    reason: reason("refused"),
                    not_before,
                },
                Some(Seen::Failure),
            ),
            (
                Outcome::EndpointTrouble {
                    reason: reason(BREAKER_OPEN),
                    not_before,
                },
                None,
            ),
            (
                Outcome::Rejected {
                    reason: reason("forbidden_address"),
                },
                None,
            ),
        ] {
            assert_eq!(seen(&outcome).map(|(seen, _)| seen), expected, "{outcome:?}");
        }
    }
}
