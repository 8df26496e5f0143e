//! For apps that must not send twice: records what is about to be sent before it is sent. A job that is interrupted in
//! between is left to a person ([`super::interrupted`]).
//!
//! All other apps send again under the same id and do not pay for this.

use std::{sync::Arc, time::Duration};

use shared::{
    app::Ambiguity,
    job::Job,
    receipt::{Receipt, State},
    recipient::Address,
};

use super::{Pipeline, Step, Stop, decide::Ready, dedupe::Reserved};
use crate::{providers::Message, pulled::Pulled};

/// A job that may be sent: the intent is recorded, if its app wants that.
#[derive(Debug)]
pub(super) struct Intended {
    pub(super) pulled: Pulled,
    pub(super) job: Arc<Job>,
    pub(super) reserved: Reserved,
    pub(super) addresses: Vec<(Address, u64)>,
    pub(super) message: Message,
}

impl Pipeline {
    /// What the app wants when it is unknown whether an attempt was sent.
    pub(super) fn ambiguity(&self, job: &Job) -> Ambiguity {
        let tenants = self.config.tenants();
        let app = tenants.apps.get(&job.app);
        app.map_or(Ambiguity::usual(job.channel), |app| app.ambiguity(job.channel))
    }

    /// Records what is about to be sent, if the app must not send twice.
    pub(super) async fn write_intent(&self, ready: Ready) -> Step<Intended> {
        if self.ambiguity(&ready.job) == Ambiguity::Resend {
            return Ok(ready.into());
        }
        let job = &ready.job;
        let intents = ready.addresses.iter().map(|(address, _)| Receipt {
            state: State::Attempting,
            provider: Some(address.provider),
            ..self.of_address(job, address.id)
        });
        let written = self.announce_intent(job.app.clone(), job.origin.clone(), intents.collect());
        if Box::pin(written).await {
            Ok(ready.into())
        } else {
            Err(Stop::GiveBack(ready.pulled.into(), Duration::from_secs(2)))
        }
    }
}

impl From<Ready> for Intended {
    fn from(ready: Ready) -> Self {
        let Ready {
            pulled,
            job,
            reserved,
            addresses,
            message,
        } = ready;
        Self {
            pulled,
            job,
            reserved,
            addresses,
            message,
        }
    }
}
