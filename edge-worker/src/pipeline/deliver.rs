//! Hands the message to the providers, all addresses of the recipient at once.

use std::sync::Arc;

use futures::future::join_all;
use shared::{failpoint::failpoint, job::Job, recipient::Address};

use super::{Pipeline, dedupe::Reserved, intend::Intended};
use crate::{
    providers::{Attempt, Attempted},
    pulled::Pulled,
};

/// A job after one attempt at each of its addresses.
#[derive(Debug)]
pub(super) struct Tried {
    pub(super) pulled: Pulled,
    pub(super) job: Arc<Job>,
    pub(super) reserved: Reserved,
    pub(super) attempts: Vec<OneTried>,
}

/// One attempt.
#[derive(Debug)]
pub(super) struct OneTried {
    pub(super) address: Address,
    /// The revision of the address in the bucket.
    pub(super) revision: u64,
    pub(super) attempted: Attempted,
}

impl Pipeline {
    pub(super) async fn deliver(&self, intended: Intended) -> Tried {
        let Intended {
            pulled,
            job,
            reserved,
            addresses,
            message,
        } = intended;
        let expires_at = job.expires_at();
        let one = async |(address, revision): (Address, u64)| {
            let attempt = Attempt {
                app: &job.app,
                address: &address,
                delivery: job.delivery(address.id),
                message: &message,
                expires_at,
            };
            failpoint("worker.before-send");
            let attempted = self.providers.deliver(attempt).await;
            failpoint("worker.after-send");
            self.telemetry
                .metrics
                .attempt(attempted.provider, attempted.outcome.as_str(), attempted.took);
            OneTried {
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
            pulled,
            job,
            reserved,
            attempts,
        }
    }
}
