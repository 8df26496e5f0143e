//! For apps that must not send twice: what is about to be sent is written down first, and what was interrupted between
//! that and its outcome is left to a person.
//!
//! Everybody else sends again under the same id and does not pay for this.

use std::time::Duration;

use shared::{
    app::Ambiguity,
    id::AddressId,
    job::Job,
    receipt::{Receipt, State},
};

use super::{
    Pipeline, Settlement, Step, Stop, Ticket,
    conclude::DeadLetter,
    decide::{Ready, receipt},
    dedupe::Fresh,
};

/// A sibling may still wait for the provider's answer; longer than a provider's time-out.
const ANSWER_DUE: Duration = Duration::from_secs(15);

impl Pipeline {
    /// What the app wants in doubt.
    pub(super) fn ambiguity(&self, job: &Job) -> Ambiguity {
        let tenants = self.config.tenants();
        let app = tenants.apps.get(&job.app);
        app.map_or(Ambiguity::usual(job.channel), |app| app.ambiguity(job.channel))
    }

    /// Ends a job that was about to be sent when its worker was interrupted.
    pub(super) async fn end_interrupted(&self, fresh: Fresh) -> Step<Fresh> {
        let in_doubt = fresh.history.in_doubt(fresh.job.attempt);
        if in_doubt.is_empty() {
            return Ok(fresh);
        }
        let Fresh {
            pulled,
            job,
            reserved,
            history: _,
        } = fresh;
        if pulled.tries < 2 {
            return Err(Stop::GiveBack(pulled.into(), ANSWER_DUE));
        }
        let span = self.process_span(&pulled, &job, Some(State::Unknown));
        let mut receipts = Vec::with_capacity(in_doubt.len());
        for address in in_doubt {
            if let Err(error) = DeadLetter::of(&job, address, "interrupted".into(), self)
                .send(self, &pulled)
                .await
            {
                tracing::warn!(%error, "dead letter could not be kept; job is given back");
                return Err(Stop::GiveBack(pulled.into(), Duration::from_secs(2)));
            }
            self.telemetry.metrics.delivery(None, State::Unknown);
            receipts.push(Receipt {
                state: State::Unknown,
                reason: Some("interrupted".into()),
                trace: span.as_ref().and_then(super::trace::id),
                ..self.of_address(&job, address)
            });
        }
        Err(Stop::Settle(Box::new(Settlement {
            app: job.app.clone(),
            origin: job.origin.clone(),
            receipts,
            ticket: Ticket::new(pulled, Some(reserved), span),
        })))
    }

    /// Writes down what is about to be sent, if the app must know.
    pub(super) async fn write_intent(&self, ready: Ready) -> Step<Ready> {
        if self.ambiguity(&ready.job) == Ambiguity::Resend {
            return Ok(ready);
        }
        let job = &ready.job;
        let intents = ready.addresses.iter().map(|(address, _)| Receipt {
            state: State::Attempting,
            provider: Some(address.provider),
            ..self.of_address(job, address.id)
        });
        let written = self.announce_intent(job.app.clone(), job.origin.clone(), intents.collect());
        if Box::pin(written).await {
            Ok(ready)
        } else {
            Err(Stop::GiveBack(ready.pulled.into(), Duration::from_secs(2)))
        }
    }

    fn of_address(&self, job: &Job, address: AddressId) -> Receipt {
        Receipt {
            address: Some(address),
            ..receipt(job, self.clock.now())
        }
    }
}
