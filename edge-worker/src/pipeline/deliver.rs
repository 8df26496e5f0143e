//! Asks the providers to deliver the message to all addresses of the recipient at the same time.

use futures::future::join_all;
use shared::{address::Address, failpoint::failpoint};

use super::{attempt::AddressAttempt, consent::Spared, context::Pipeline, in_flight::ActiveJob, intend::Intended};
use crate::providers::{Attempt, Message};

/// A job after one attempt at each of its addresses.
#[derive(Debug)]
pub(super) struct Tried {
    pub(super) active: ActiveJob,
    pub(super) attempts: Vec<AddressAttempt>,
    /// The addresses that nothing is sent to.
    pub(super) spared: Vec<Spared>,
}

impl Pipeline {
    pub(super) async fn deliver(&self, intended: Intended) -> Tried {
        let Intended {
            active,
            addresses,
            spared,
        } = intended;
        let ActiveJob { pulled, job, .. } = &active;
        let message = Message::new(job.clone(), pulled.renditions());
        let expires_at = job.expires_at();
        let one = async |(address, revision): (Address, u64)| {
            let attempt = Attempt {
                app: &job.app,
                address: &address,
                delivery: job.delivery(address.id),
                number: job.attempt,
                message: &message,
                expires_at,
            };
            failpoint("worker.before-send");
            let attempted = self.providers.deliver(attempt).await;
            failpoint("worker.after-send");
            self.telemetry
                .metrics
                .attempt(attempted.provider, attempted.outcome.as_str(), attempted.took);
            AddressAttempt {
                address,
                revision,
                attempted,
            }
        };
        let attempts = match <[_; 1]>::try_from(addresses) {
            Ok([only]) => vec![one(only).await],
            Err(several) => Box::pin(join_all(several.into_iter().map(one))).await,
        };
        Tried {
            active,
            attempts,
            spared,
        }
    }
}
