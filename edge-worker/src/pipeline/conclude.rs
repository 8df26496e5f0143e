//! Turns the outcomes of attempts into receipts: parks deliveries that will be retried, stores dead letters, removes addresses
//! that are gone, and has receivers disabled that want no more.
//!
//! A retry or a dead letter is stored before the outcome is committed: a crash in between repeats an attempt, while the
//! other order would lose it.

use std::time::Duration;

use async_nats::header::NATS_MESSAGE_ID;
use jiff::{SignedDuration, Timestamp};
use opentelemetry::Context;
use shared::{
    address::Target,
    app::Ambiguity,
    failpoint::failpoint,
    job::Job,
    nats::{
        directory::{self, Ownership},
        envelope, facts, publish,
        subject::{self, Tier},
    },
    receipt::{Receipt, State},
    recipient::{FactName, RecipientKey},
    telemetry::trace as context,
};

use super::{
    attempt::AddressAttempt,
    consent::Spared,
    context::Pipeline,
    deliver::Tried,
    in_flight::ActiveJob,
    letter::DeadLetter,
    receipts::receipt,
    settlement::{RETRY_JETSTREAM_AFTER, Settlement, Step, Stop},
    trace,
};
use crate::{
    providers::{Outcome, Reason},
    pulled::Pulled,
};

/// What happens next to one delivery.
#[derive(Debug)]
enum Conclusion {
    /// The delivery ends in this state.
    Final {
        state: State,
        reason: Option<Reason>,
        provider_id: Option<String>,
    },
    /// The delivery is retried.
    Retry {
        reason: Reason,
        due: Timestamp,
        by: NextWorker,
    },
    /// The delivery ends as rejected, and the address is removed; a receiver of webhooks is disabled.
    AddressGone {
        reason: Reason,
        /// When the provider found the address gone, if it reports that.
        since: Option<Timestamp>,
    },
}

/// Which worker makes the next attempt.
#[derive(Debug, Clone, Copy)]
enum NextWorker {
    /// One of the region's own workers.
    Own,
    /// A helper, because no endpoint answers this region's workers.
    Helper,
}

impl Pipeline {
    pub(super) async fn conclude(&self, tried: Tried) -> Step<Settlement> {
        let Tried {
            active,
            attempts,
            spared,
        } = tried;
        let ActiveJob { pulled, job, .. } = &active;
        let is_tried = !attempts.is_empty();
        let concluded: Vec<(AddressAttempt, Conclusion)> = attempts
            .into_iter()
            .map(|attempt| {
                let conclusion = self.judge(job, &attempt);
                (attempt, conclusion)
            })
            .collect();
        let failure = concluded
            .iter()
            .map(|(_, conclusion)| conclusion.state())
            .find(|state| trace::is_failure(*state));
        let span = self.process_span(pulled, job, failure);
        if let Some(span) = &span {
            for (attempt, conclusion) in &concluded {
                self.attempt_span(span, job, attempt, conclusion.state());
            }
        }
        let mut receipts: Vec<Receipt> = {
            let trace = span.as_ref().and_then(context::trace_id);
            let each = |spared| Receipt {
                trace: trace.clone(),
                ..self.of_spared(job, spared)
            };
            spared.iter().map(each).collect()
        };
        for (attempt, conclusion) in concluded {
            // Rare and large, so boxed: otherwise every job in flight would carry its size.
            let carried_out = match conclusion {
                Conclusion::Final { state, .. } if !state.is_replayable() => Ok(()),
                _ => Box::pin(self.carry_out(&active, &attempt, &conclusion, span.as_ref())).await,
            };
            if let Err(error) = carried_out {
                // The outcome is not recorded, so the attempt will be repeated: at-least-once is the better failure.
                tracing::warn!(%error, "outcome could not be stored; the job is given back");
                return Err(Stop::GiveBack(active.pulled.into(), RETRY_JETSTREAM_AFTER));
            }
            if !matches!(conclusion, Conclusion::AddressGone { .. }) {
                self.observe(job, &attempt);
            }
            if conclusion.state() == State::Delivered {
                self.follow_report(job, &attempt);
            }
            let metrics = &self.telemetry.metrics;
            metrics.delivery(Some(attempt.attempted.provider), conclusion.state());
            receipts.push(Receipt {
                stale_s: self.freshness.stale(job.class),
                ..conclusion.into_receipt(job, &attempt, span.as_ref())
            });
        }
        Ok(Settlement {
            is_tried,
            ..Settlement::of(active, receipts, span)
        })
    }

    /// The receipt of an address that nothing is sent to.
    fn of_spared(&self, job: &Job, spared: &Spared) -> Receipt {
        let Spared { address, state, reason } = spared;
        let provider = self.providers.preferred(job, address);
        self.telemetry.metrics.delivery(Some(provider), *state);
        Receipt {
            address: Some(address.id),
            provider: Some(provider),
            reason: Some((*reason).into()),
            stale_s: self.freshness.stale(job.class),
            ..receipt(job, *state, self.clock.now())
        }
    }

    fn judge(&self, job: &Job, attempt: &AddressAttempt) -> Conclusion {
        let after = |reason: &Reason, wait: Duration| {
            let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
            let due = self.clock.now().checked_add(wait).unwrap_or(Timestamp::MAX);
            if job.is_expired(due) {
                Conclusion::ended(State::Expired, reason)
            } else {
                Conclusion::Retry {
                    reason: reason.clone(),
                    due,
                    by: NextWorker::Own,
                }
            }
        };
        let backed_off = |reason: &Reason, number: u32, asked: Option<Duration>| {
            let schedule = attempt.attempted.provider.backoff();
            after(reason, schedule.after(number, asked, &mut rand::rng()))
        };
        let counted = |reason: &Reason, asked: Option<Duration>| {
            let number = job.counted();
            match backed_off(reason, number, asked) {
                Conclusion::Retry { reason, .. } if number >= self.max_attempts => {
                    Conclusion::ended(State::Dead, &reason)
                }
                conclusion => conclusion,
            }
        };
        match &attempt.attempted.outcome {
            Outcome::Accepted { provider_id } => Conclusion::Final {
                state: State::Delivered,
                reason: None,
                provider_id: provider_id.clone(),
            },
            Outcome::Rejected { reason } => Conclusion::ended(State::Rejected, reason),
            Outcome::AddressGone { reason, since } => Conclusion::AddressGone {
                reason: reason.clone(),
                since: *since,
            },
            Outcome::RetryLater { reason, not_before } => counted(reason, *not_before),
            Outcome::EndpointTrouble { reason, .. } if *self.helped.borrow() => Conclusion::Retry {
                reason: reason.clone(),
                due: self.clock.now(),
                by: NextWorker::Helper,
            },
            // Nothing was sent, and the notification is not the cause, so it is retried until it expires.
            Outcome::CredentialTrouble { reason, not_before } | Outcome::EndpointTrouble { reason, not_before } => {
                backed_off(reason, job.attempt, *not_before)
            }
            Outcome::NotYet { reason, wait } => after(reason, *wait),
            // A second copy replaces the first on the device, because it has the same apns-id and collapse id.
            Outcome::Ambiguous { reason } if self.ambiguity(job) == Ambiguity::Resend => counted(reason, None),
            Outcome::Ambiguous { reason } => Conclusion::ended(State::Unknown, reason),
        }
    }

    async fn carry_out(
        &self,
        active: &ActiveJob,
        attempt: &AddressAttempt,
        conclusion: &Conclusion,
        span: Option<&Context>,
    ) -> Result<(), publish::NotStored> {
        let ActiveJob { pulled, job, .. } = active;
        match conclusion {
            Conclusion::Retry { due, by, .. } => {
                let lane = self.lane(job);
                let target = match by {
                    NextWorker::Helper => lane.spill(),
                    NextWorker::Own => self.tier_of_retry(pulled, job).subject(&lane.due()),
                };
                self.park(active, attempt, *due, target, span).await
            }
            Conclusion::Final {
                state: State::Dead | State::Unknown,
                reason,
                ..
            } => {
                let reason = reason.clone().unwrap_or_default();
                let letter = DeadLetter::of(job, attempt.address.id, reason, self);
                letter.store(self, pulled).await
            }
            Conclusion::AddressGone { .. } if matches!(attempt.address.target, Target::Webhook(_)) => {
                self.disable(job, attempt).await;
                Ok(())
            }
            Conclusion::AddressGone { since, .. } => {
                self.remove_address(pulled, job, attempt, *since).await;
                Ok(())
            }
            Conclusion::Final { .. } => Ok(()),
        }
    }

    /// The tier in which a job comes back, for another attempt or after it has waited as a whole. It stays in the overflow if it
    /// came from there.
    pub(super) fn tier_of_retry(&self, pulled: &Pulled, job: &Job) -> Tier {
        match Tier::of(pulled.subject()) {
            Tier::Main if self.config.tenants().is_upgraded() => self.shares.of_retry(&job.app),
            Tier::Main => Tier::Main,
            Tier::Overflow => Tier::Overflow,
        }
    }

    /// Schedules the job for this address only: JetStream publishes it on `target` at `due`.
    async fn park(
        &self,
        active: &ActiveJob,
        attempt: &AddressAttempt,
        due: Timestamp,
        target: String,
        span: Option<&Context>,
    ) -> Result<(), publish::NotStored> {
        let ActiveJob { pulled, job, .. } = active;
        let address = attempt.address.id;
        let mut headers = envelope::retry_headers(job, attempt.attempted.outcome.counts(), address);
        envelope::schedule(&mut headers, due, target);
        let payload = pulled.payload();
        if let Some(proof) = self.proof_of_member(pulled, &payload) {
            headers.insert(envelope::PROOF, proof.to_string());
        }
        // The attempt is part of the id; otherwise the stream would drop the second retry of a delivery as a duplicate.
        headers.insert(
            NATS_MESSAGE_ID,
            format!("{}:{}", job.delivery(address), job.next_attempt()),
        );
        // All attempts are children of the first send. A failed delivery is traced from now on, even if it was not before.
        if let Some(parent) = context::from_now_on_sampled(pulled.headers()).or_else(|| span.cloned()) {
            context::inject(&parent, &mut headers);
        }
        publish::store(&self.js, subject::schedule(job.id, address), headers, payload).await?;
        failpoint("worker.after-park");
        Ok(())
    }

    /// Removes an address that its provider reports gone, unless the device has registered again since.
    async fn remove_address(&self, pulled: &Pulled, job: &Job, attempt: &AddressAttempt, since: Option<Timestamp>) {
        let AddressAttempt { address, revision, .. } = attempt;
        // Nothing is known of an address that a request named.
        let Some(recipient) = job.recipient() else { return };
        if since.is_some_and(|since| address.registered_at > since) {
            return;
        }
        if !self.brake.allows(self.clock.now()) {
            tracing::error!("a provider reports too many addresses gone; no more are removed in this minute");
            return;
        }
        let key = RecipientKey {
            app: job.app.clone(),
            recipient: recipient.clone(),
        };
        // The directory first: every other recipient with the address, in any region, must lose it too. If the provider
        // reports no time, use the time when the job was stored, by the server's clock, because this worker's may be wrong.
        let gone = Ownership {
            is: None,
            at: since.unwrap_or(pulled.stored_at.max(address.registered_at)),
            was: vec![key.recipient.clone()],
        };
        if let Err(error) =
            directory::put_ownership(&self.js, &self.border, &self.region, &key.app, address.id, gone).await
        {
            tracing::warn!(address = %address.id, %error, "directory could not be updated for an address that is gone");
        }
        match facts::remove_unchanged(&self.js, &key, FactName::Address(address.id), *revision).await {
            Ok(_) => tracing::info!(address = %address.id, "address is gone and was removed"),
            Err(publish::NotStored::Refused) => {
                tracing::info!(address = %address.id, "address was registered again and stays")
            }
            Err(error) => {
                tracing::warn!(address = %address.id, %error, "address that is gone could not be removed")
            }
        }
    }
}

impl Conclusion {
    fn ended(state: State, reason: &Reason) -> Self {
        Self::Final {
            state,
            reason: Some(reason.clone()),
            provider_id: None,
        }
    }

    const fn state(&self) -> State {
        match self {
            Self::Final { state, .. } => *state,
            Self::Retry { .. } => State::Parked,
            Self::AddressGone { .. } => State::Rejected,
        }
    }

    fn into_receipt(self, job: &Job, attempt: &AddressAttempt, span: Option<&Context>) -> Receipt {
        let state = self.state();
        let (reason, provider_id, next_at) = match self {
            Self::Final {
                reason, provider_id, ..
            } => (reason, provider_id, None),
            Self::Retry { reason, due, .. } => (Some(reason), None, Some(due)),
            Self::AddressGone { reason, .. } => (Some(reason), None, None),
        };
        Receipt {
            address: Some(attempt.address.id),
            provider: Some(attempt.attempted.provider),
            reason,
            provider_id,
            next_at,
            took_us: u32::try_from(attempt.attempted.took.as_micros()).ok(),
            trace: span.and_then(context::trace_id),
            ..receipt(job, state, attempt.attempted.ended_at)
        }
    }
}
