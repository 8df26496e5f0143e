//! Turns what the providers said into receipts: parks what is worth another attempt, keeps dead letters, removes
//! addresses that are gone.
//!
//! A retry or a dead letter is stored before the outcome is committed: a crash in between repeats an attempt, the other
//! order would lose it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_nats::header::NATS_MESSAGE_ID;
use jiff::{SignedDuration, Timestamp};
use opentelemetry::Context;
use shared::{
    app::Ambiguity,
    backoff::Backoff,
    failpoint::failpoint,
    id::AddressId,
    job::Job,
    nats::{
        directory::{self, Ownership},
        envelope, facts, publish, subject,
    },
    receipt::{Receipt, State},
    recipient::{FactName, RecipientKey},
    telemetry::trace as context,
};

use super::{
    Pipeline, Settlement, Step, Stop, Ticket,
    decide::receipt,
    deliver::{OneTried, Tried},
    trace,
};
use crate::{
    providers::{Outcome, Reason},
    pulled::Pulled,
};

/// What is to become of one delivery.
#[derive(Debug)]
enum Verdict {
    Final(State, Option<Reason>, Option<String>),
    Again(Reason, Timestamp, Whose),
    Gone(Reason, Option<Timestamp>),
}

/// Who is to make the next attempt.
#[derive(Debug, Clone, Copy)]
enum Whose {
    /// The region's own workers.
    Ours,
    /// Helpers first: from here no endpoint answers.
    Anyones,
}

impl Pipeline {
    pub(super) async fn conclude(&self, tried: Tried) -> Step<Settlement> {
        let Tried {
            pulled,
            job,
            reserved,
            attempts,
        } = tried;
        let verdicts: Vec<(OneTried, Verdict)> = attempts
            .into_iter()
            .map(|one| {
                let verdict = self.judge(&job, &one);
                (one, verdict)
            })
            .collect();
        let worst = verdicts
            .iter()
            .map(|(_, verdict)| verdict.state())
            .find(|state| trace::is_failure(*state));
        let span = self.process_span(&pulled, &job, worst);
        if let Some(span) = &span {
            for (one, verdict) in &verdicts {
                self.attempt_span(span, &job, one, verdict.state());
            }
        }
        let mut receipts = Vec::with_capacity(verdicts.len());
        for (one, verdict) in verdicts {
            // Seldom taken and large; every job in flight would carry its size.
            let taken = match verdict {
                Verdict::Final(state, ..) if !state.is_replayable() => Ok(()),
                _ => Box::pin(self.carry_out(&pulled, &job, &one, &verdict, span.as_ref())).await,
            };
            if let Err(error) = taken {
                // The outcome is not recorded, so the attempt will be repeated: rather twice than never.
                tracing::warn!(%error, "outcome could not be stored; job is given back");
                return Err(Stop::GiveBack(pulled.into(), Duration::from_secs(2)));
            }
            self.telemetry
                .metrics
                .delivery(Some(one.address.provider), verdict.state());
            receipts.push(Receipt {
                stale_s: self.freshness.stale(job.class),
                ..verdict.into_receipt(&job, &one, span.as_ref())
            });
        }
        let ticket = Ticket::new(pulled, Some(reserved), span);
        Ok(Settlement {
            app: job.app.clone(),
            origin: job.origin.clone(),
            receipts,
            ticket,
        })
    }

    fn judge(&self, job: &Job, one: &OneTried) -> Verdict {
        let after = |reason: &Reason, wait: Duration| {
            let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
            let due = self.clock.now().checked_add(wait).unwrap_or(Timestamp::MAX);
            if job.is_expired(due) {
                Verdict::Final(State::Expired, Some(reason.clone()), None)
            } else {
                Verdict::Again(reason.clone(), due, Whose::Ours)
            }
        };
        let backed_off = |reason: &Reason, attempt: u32, asked: Option<Duration>| {
            let schedule = Backoff::of(one.address.provider);
            after(reason, schedule.after(attempt, asked, &mut rand::rng()))
        };
        let again = |reason: &Reason, asked: Option<Duration>| {
            let attempt = job.counted();
            match backed_off(reason, attempt, asked) {
                Verdict::Again(reason, ..) if attempt >= self.max_attempts => {
                    Verdict::Final(State::Dead, Some(reason), None)
                }
                verdict => verdict,
            }
        };
        match &one.attempted.outcome {
            Outcome::Accepted { provider_id } => Verdict::Final(State::Delivered, None, provider_id.clone()),
            Outcome::Rejected { reason } => Verdict::Final(State::Rejected, Some(reason.clone()), None),
            Outcome::AddressGone { reason, since } => Verdict::Gone(reason.clone(), *since),
            Outcome::RetryLater { reason, not_before } => again(reason, *not_before),
            Outcome::EndpointTrouble { reason, .. } if *self.helped.borrow() => {
                Verdict::Again(reason.clone(), self.clock.now(), Whose::Anyones)
            }
            // Nothing was sent, and the notification is not to blame: it waits for as long as it is worth delivering.
            Outcome::CredentialTrouble { reason, not_before } | Outcome::EndpointTrouble { reason, not_before } => {
                backed_off(reason, job.attempt, *not_before)
            }
            Outcome::NotYet { reason, wait } => after(reason, *wait),
            // The same apns-id and collapse id make a second copy replace the first.
            Outcome::Ambiguous { reason } if self.ambiguity(job) == Ambiguity::Resend => again(reason, None),
            Outcome::Ambiguous { reason } => Verdict::Final(State::Unknown, Some(reason.clone()), None),
        }
    }

    async fn carry_out(
        &self,
        pulled: &Pulled,
        job: &Job,
        one: &OneTried,
        verdict: &Verdict,
        span: Option<&Context>,
    ) -> Result<(), publish::NotStored> {
        match verdict {
            Verdict::Again(_, due, whose) => self.park(pulled, job, one, *due, *whose, span).await,
            Verdict::Final(State::Dead | State::Unknown, reason, _) => {
                let reason = reason.clone().unwrap_or_default();
                let letter = DeadLetter::of(job, one.address.id, reason, self);
                letter.send(self, pulled).await
            }
            Verdict::Gone(_, since) => {
                self.remove_address(pulled, job, one, *since).await;
                Ok(())
            }
            Verdict::Final(..) => Ok(()),
        }
    }

    /// Lets JetStream bring the job back at `due`, for this address alone.
    async fn park(
        &self,
        pulled: &Pulled,
        job: &Job,
        one: &OneTried,
        due: Timestamp,
        whose: Whose,
        span: Option<&Context>,
    ) -> Result<(), publish::NotStored> {
        let event = envelope::event_id(&job.body, pulled.headers()).map_err(|_| publish::NotStored::Refused)?;
        let address = one.address.id;
        let mut headers = envelope::retry_headers(job, &event, one.attempted.outcome.counts(), address);
        headers.insert("Nats-Schedule", format!("@at {due}"));
        let lane = self.lane(job);
        headers.insert(
            "Nats-Schedule-Target",
            match whose {
                Whose::Anyones => lane.spill(),
                Whose::Ours => lane.due(),
            },
        );
        // The attempt is part of the id: the stream would take a second parking of the same delivery for a repetition.
        headers.insert(
            NATS_MESSAGE_ID,
            format!("{}:{}", job.delivery(address), job.next_attempt()),
        );
        // All attempts hang under the first send; what failed is traced from here on even if it was not before.
        if let Some(parent) = context::from_now_on_sampled(pulled.headers()).or_else(|| span.cloned()) {
            context::inject(&parent, &mut headers);
        }
        publish::store(&self.js, subject::schedule(job.id, address), headers, pulled.payload()).await?;
        failpoint("worker.after-park");
        Ok(())
    }

    /// Removes an address that its provider says is gone, unless the device registered again since.
    async fn remove_address(&self, pulled: &Pulled, job: &Job, one: &OneTried, since: Option<Timestamp>) {
        if since.is_some_and(|since| one.address.registered_at > since) {
            return;
        }
        if !self.brake.allows(self.clock.now()) {
            tracing::error!("a provider calls very many addresses gone; removal is stopped for this minute");
            return;
        }
        let key = RecipientKey {
            app: job.app.clone(),
            recipient: job.body.recipient.clone(),
        };
        // Said before it is removed: whoever else has the address, here or elsewhere, is to lose it too. Where the provider
        // says no time, it was gone when the job came, by the server's clock: this worker's may be wrong.
        let gone = Ownership {
            is: None,
            at: since.unwrap_or(pulled.stored_at.max(one.address.registered_at)),
            was: vec![key.recipient.clone()],
        };
        if let Err(error) = directory::put_ownership(&self.js, &self.region, &key.app, one.address.id, gone).await {
            tracing::warn!(address = %one.address.id, %error, "other regions could not be told that an address is gone");
        }
        match facts::remove_unchanged(&self.js, &key, FactName::Address(one.address.id), one.revision).await {
            Ok(_) => tracing::info!(address = %one.address.id, "address is gone and was removed"),
            Err(publish::NotStored::Refused) => {
                tracing::info!(address = %one.address.id, "address was registered again and stays")
            }
            Err(error) => {
                tracing::warn!(address = %one.address.id, %error, "address that is gone could not be removed")
            }
        }
    }
}

impl Verdict {
    const fn state(&self) -> State {
        match self {
            Self::Final(state, ..) => *state,
            Self::Again(..) => State::Parked,
            Self::Gone(..) => State::Rejected,
        }
    }

    fn into_receipt(self, job: &Job, one: &OneTried, span: Option<&Context>) -> Receipt {
        let state = self.state();
        let (reason, provider_id, next_at) = match self {
            Self::Final(_, reason, provider_id) => (reason, provider_id, None),
            Self::Again(reason, due, _) => (Some(reason), None, Some(due)),
            Self::Gone(reason, _) => (Some(reason), None, None),
        };
        Receipt {
            address: Some(one.address.id),
            provider: Some(one.address.provider),
            state,
            reason,
            provider_id,
            next_at,
            took_us: u32::try_from(one.attempted.took.as_micros()).ok(),
            trace: span.and_then(trace::id),
            ..receipt(job, one.attempted.ended_at)
        }
    }
}

/// A message that will not be tried again.
#[derive(Debug)]
pub(super) struct DeadLetter {
    pub(super) subject: String,
    /// Names the letter, so that it is kept once.
    pub(super) id: String,
    pub(super) reason: Reason,
    /// What is wrong, for people.
    pub(super) detail: Option<String>,
    pub(super) address: Option<AddressId>,
    pub(super) attempt: u32,
}

impl DeadLetter {
    /// The letter of a delivery that will not be tried again.
    pub(super) fn of(job: &Job, address: AddressId, reason: Reason, pipeline: &Pipeline) -> Self {
        Self {
            subject: pipeline.lane(job).dead(),
            id: format!("{}:{}", job.delivery(address), job.attempt),
            reason,
            detail: None,
            address: Some(address),
            attempt: job.attempt,
        }
    }

    /// Keeps the message as it came, with why it died.
    pub(super) async fn send(self, pipeline: &Pipeline, pulled: &Pulled) -> Result<(), publish::NotStored> {
        let mut headers = envelope::kept(pulled.headers());
        headers.insert(NATS_MESSAGE_ID, self.id);
        headers.insert(envelope::SUBJECT, pulled.subject().as_str());
        headers.insert(envelope::REASON, &*self.reason);
        headers.insert(envelope::ATTEMPT, self.attempt.to_string());
        if let Some(detail) = self.detail {
            headers.insert(envelope::DETAIL, detail);
        }
        if let Some(address) = self.address {
            headers.insert(envelope::ADDRESS, address.to_string());
        }
        let channel = subject::parse_dead(&self.subject).map(|subject| subject.channel);
        publish::store(&pipeline.js, self.subject, headers, pulled.payload()).await?;
        let metrics = &pipeline.telemetry.metrics;
        metrics.dead_letter(&channel.unwrap_or_default(), &self.reason);
        Ok(())
    }
}

/// Stops the removal of addresses when there is too much of it: a provider, or our use of it, may be at fault.
#[derive(Debug)]
pub struct Brake {
    most_per_minute: u32,
    minute: Mutex<(i64, u32)>,
}

impl Brake {
    /// Lets `most_per_minute` removals through.
    pub fn new(most_per_minute: u32) -> Self {
        Self {
            most_per_minute,
            minute: Mutex::new((0, 0)),
        }
    }

    fn allows(&self, now: Timestamp) -> bool {
        let minute = now.as_second() / 60;
        let mut counted = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.0 != minute {
            *counted = (minute, 0);
        }
        counted.1 += 1;
        counted.1 <= self.most_per_minute
    }
}
