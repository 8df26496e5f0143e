//! Records the intent to send before sending, for apps that must not send twice. If the worker is interrupted before it
//! records the outcome, a person decides ([`super::interrupted`]).
//!
//! For all other apps nothing is recorded here: an interrupted job is sent again under the same id. A provider whose final
//! answer may take minutes is the exception: [`Intent`] is recorded when it is about to take over the message, so that no
//! other worker sends the message meanwhile.

use futures::future::BoxFuture;
use shared::{
    address::Address,
    app::Ambiguity,
    job::Job,
    receipt::{Receipt, State},
};

use super::{
    attempt::AddressAttempt,
    consent::Spared,
    context::Pipeline,
    in_flight::ActiveJob,
    limit::Limited,
    receipts::receipt,
    settlement::{RETRY_JETSTREAM_AFTER, Step, Stop},
};
use crate::providers::Handover;

/// A job that may be sent now: if its app must not send twice, the intent is published.
#[derive(Debug)]
pub(super) struct Intended {
    pub(super) active: ActiveJob,
    /// Each with its revision in the bucket of recipients.
    pub(super) addresses: Vec<(Address, u64)>,
    /// Those that nothing is sent to.
    pub(super) spared: Vec<Spared>,
    /// Those that nothing is sent to now.
    pub(super) held: Vec<AddressAttempt>,
}

/// The intent to send one job to one address, which is recorded when a provider asks for it.
#[derive(Debug)]
pub(super) struct Intent<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) job: &'a Job,
    pub(super) address: &'a Address,
}

impl Handover for Intent<'_> {
    fn record(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            let Self { pipeline, job, address } = self;
            // Otherwise it was recorded before the attempt, for all addresses together.
            if pipeline.ambiguity(job) != Ambiguity::Resend {
                return true;
            }
            let intent = pipeline.intent(job, address);
            pipeline
                .publish_intent(job.app.clone(), job.origin.clone(), vec![intent])
                .await
        })
    }
}

impl Pipeline {
    /// What the app has configured for an attempt that may or may not have been sent. Nothing of a test is sent.
    pub(super) fn ambiguity(&self, job: &Job) -> Ambiguity {
        if job.trial.test {
            return Ambiguity::Resend;
        }
        let tenants = self.config.tenants();
        let app = tenants.apps.get(&job.app);
        app.map_or(Ambiguity::usual(job.channel()), |app| app.ambiguity(job.channel()))
    }

    /// Publishes the intent to send, if the app must not send twice.
    pub(super) async fn write_intent(&self, limited: Limited) -> Step<Intended> {
        let Limited {
            active,
            addresses,
            spared,
            held,
        } = limited;
        let job = &active.job;
        if !addresses.is_empty() && self.ambiguity(job) != Ambiguity::Resend {
            let intents = addresses.iter().map(|(address, _)| self.intent(job, address));
            let published = self.publish_intent(job.app.clone(), job.origin.clone(), intents.collect());
            if !Box::pin(published).await {
                return Err(Stop::GiveBack(active.pulled.into(), RETRY_JETSTREAM_AFTER));
            }
        }
        Ok(Intended {
            active,
            addresses,
            spared,
            held,
        })
    }

    /// The receipt of an attempt that is about to be made.
    fn intent(&self, job: &Job, address: &Address) -> Receipt {
        Receipt {
            address: Some(address.id),
            provider: Some(self.providers.preferred(job, address)),
            ..receipt(job, State::Attempting, self.clock.now())
        }
    }
}
