//! Forwards jobs whose recipient has moved to another region: hands them to a gateway of this region, which publishes
//! them for the new home. A worker has no permission to publish for other regions.

use std::time::Duration;

use async_nats::header::NATS_MESSAGE_ID;
use shared::{
    failpoint::failpoint,
    id::Region,
    nats::{
        envelope,
        publish::{self, NotStored},
        subject::Lane,
    },
};

use super::{
    context::Pipeline,
    in_flight::ActiveJob,
    settlement::{RETRY_JETSTREAM_AFTER, Stop},
};

/// After this many forwards, two regions must each believe that the recipient lives in the other.
const MAX_FORWARDS: u32 = 8;

/// When a job that was forwarded too often is retried.
const RETRY_CIRCULAR_FORWARD_AFTER: Duration = Duration::from_secs(5);

impl Pipeline {
    /// Sends the job to the region to which its recipient moved. It keeps its id, and its outcome is recorded there.
    pub(super) async fn forward(&self, active: ActiveJob, home: &Region) -> Stop {
        let ActiveJob { pulled, job, .. } = &active;
        let forwards = envelope::forwards(pulled.headers()).saturating_add(1);
        if forwards > MAX_FORWARDS {
            tracing::error!(job = %job.id, %home, "job is forwarded in a circle; it waits until the recipient's home is repaired");
            return self
                .postpone(active, "circular_home", RETRY_CIRCULAR_FORWARD_AFTER)
                .await;
        }
        let mut headers = envelope::kept(pulled.headers());
        headers.insert(envelope::FORWARDED, forwards.to_string());
        headers.insert(envelope::ACCEPTED_AT, job.accepted_at.as_millisecond().to_string());
        headers.insert(envelope::ORIGIN, job.origin.as_str());
        if job.place.as_ref().is_some_and(|place| place.open_until.is_some()) {
            // It has waited for the steps before it here, where their outcomes are known.
            headers.insert(envelope::OPEN_UNTIL, "0");
        }
        let id = match job.remaining.as_deref() {
            Some([address, ..]) => format!("{}:{}:to:{home}", job.delivery(*address), job.attempt),
            _ => job.id.to_string(),
        };
        headers.insert(NATS_MESSAGE_ID, id);
        let payload = pulled.payload();
        if let Some(proof) = self.proof_of_member(pulled, &payload) {
            headers.insert(envelope::PROOF, proof.to_string());
        }
        let lane = Lane {
            region: home.clone(),
            ..self.lane(job)
        };
        let mut stored = publish::store(&self.js, lane.moved(), headers.clone(), payload.clone()).await;
        if stored == Err(NotStored::NoStream) {
            // No gateway newer than 0.1 has run in this region. Beside gateways of 0.1, workers may publish for other regions.
            stored = publish::store(&self.js, lane.notify(), headers, payload).await;
        }
        match stored {
            Ok(_) => {
                failpoint("worker.after-forward");
                tracing::info!(job = %job.id, %home, "job handed to a gateway for the recipient's new home");
                Stop::silently(active)
            }
            Err(error) => {
                tracing::warn!(job = %job.id, %error, "job could not be forwarded; it is given back");
                Stop::GiveBack(active.pulled.into(), RETRY_JETSTREAM_AFTER)
            }
        }
    }
}
