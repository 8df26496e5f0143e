//! For apps that must not send twice: records what is about to be sent before it is sent. If the worker is interrupted
//! before the outcome is recorded, a person decides ([`super::interrupted`]).
//!
//! For all other apps such a job is sent again under the same id, and nothing is recorded here.

use std::time::Duration;

use shared::{
    address::Address,
    app::Ambiguity,
    job::Job,
    receipt::{Receipt, State},
};

use super::{
    Pipeline,
    consent::Agreed,
    in_flight::ActiveJob,
    settlement::{Step, Stop, receipt},
};

/// A job that may be sent now: if its app must not send twice, the intent is published.
#[derive(Debug)]
pub(super) struct Intended {
    pub(super) active: ActiveJob,
    /// Each with its revision in the bucket of recipients.
    pub(super) addresses: Vec<(Address, u64)>,
}

impl Pipeline {
    /// What the app wants if it is unknown whether an attempt was sent.
    pub(super) fn ambiguity(&self, job: &Job) -> Ambiguity {
        let tenants = self.config.tenants();
        let app = tenants.apps.get(&job.app);
        app.map_or(Ambiguity::usual(job.channel()), |app| app.ambiguity(job.channel()))
    }

    /// Records what is about to be sent, if the app must not send twice.
    pub(super) async fn write_intent(&self, agreed: Agreed) -> Step<Intended> {
        let Agreed { active, addresses } = agreed;
        let job = &active.job;
        if self.ambiguity(job) != Ambiguity::Resend {
            let intents = addresses.iter().map(|(address, _)| Receipt {
                address: Some(address.id),
                provider: Some(address.provider()),
                ..receipt(job, State::Attempting, self.clock.now())
            });
            let published = self.publish_intent(job.app.clone(), job.origin.clone(), intents.collect());
            if !Box::pin(published).await {
                return Err(Stop::GiveBack(active.pulled.into(), Duration::from_secs(2)));
            }
        }
        Ok(Intended { active, addresses })
    }
}
