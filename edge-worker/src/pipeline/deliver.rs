//! Asks the providers to deliver the message to all addresses of the recipient at the same time.

use std::{pin::pin, sync::Arc};

use futures::future::join_all;
use shared::{address::Address, channel::Channel, failpoint::failpoint, policy::category::CategoryKind};
use tokio::time::{Instant, interval_at};

use super::{
    attempt::AddressAttempt,
    consent::Spared,
    context::Pipeline,
    in_flight::ActiveJob,
    intend::{Intended, Intent},
};
use crate::{
    limits::REPORT_PROGRESS_EVERY,
    providers::{Attempt, Message, Tracking},
    pulled::Pulled,
};

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
            held,
        } = intended;
        let ActiveJob { pulled, job, .. } = &active;
        let message = Message::new(job.clone(), pulled.renditions()).tracked(Tracking {
            ids: Arc::clone(&self.config.id_key()),
            home: self.region.clone(),
            public_url: self.public_url.clone(),
            kind: if job.channel() == Channel::Email {
                self.kind(job)
            } else {
                CategoryKind::Default
            },
            sent_at: self.clock.now(),
        });
        let expires_at = job.expires_at();
        let one = async |(address, revision): (Address, u64)| {
            let intent = Intent {
                pipeline: self,
                job,
                address: &address,
            };
            let attempt = Attempt {
                app: &job.app,
                address: &address,
                delivery: job.delivery(address.id),
                number: job.attempt,
                message: &message,
                expires_at,
                handover: &intent,
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
        let all = async {
            match <[_; 1]>::try_from(addresses) {
                Ok([only]) => vec![one(only).await],
                Err(several) => Box::pin(join_all(several.into_iter().map(one))).await,
            }
        };
        let mut attempts = if self.providers.final_answer(job.channel()).is_some() {
            Box::pin(keeping(pulled, all)).await
        } else {
            all.await
        };
        attempts.extend(held);
        Tried {
            active,
            attempts,
            spared,
        }
    }
}

/// Waits for `work`, however long it takes, and tells the server meanwhile that `pulled` is in progress.
async fn keeping<T>(pulled: &Pulled, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut progress = interval_at(Instant::now() + REPORT_PROGRESS_EVERY, REPORT_PROGRESS_EVERY);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = progress.tick() => if let Err(error) = pulled.report_progress().await {
                tracing::warn!(%error, "progress of an attempt could not be reported");
            },
        }
    }
}
