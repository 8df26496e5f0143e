//! Sends on what came for a recipient who moved to another region meanwhile.

use std::{sync::Arc, time::Duration};

use async_nats::header::NATS_MESSAGE_ID;
use shared::{
    id::Region,
    job::Job,
    nats::{
        envelope, publish,
        subject::{self, Lane},
    },
};

use super::{Pipeline, Stop, dedupe::Reserved};
use crate::pulled::Pulled;

/// How often a job may be sent on. More often, and two regions each believe that the recipient lives in the other.
const MOST: u32 = 8;

impl Pipeline {
    /// Hands the job to the region to which its recipient moved. It is the same job there, under the same id, and what
    /// becomes of it is said there.
    pub(super) async fn forward(&self, pulled: Pulled, job: &Arc<Job>, reserved: Reserved, home: &Region) -> Stop {
        let times = envelope::header(pulled.headers(), envelope::FORWARDED)
            .and_then(|times| times.parse().ok())
            .unwrap_or(0)
            + 1;
        if times > MOST {
            tracing::error!(job = %job.id, %home, "a job goes in circles; it waits until the homes are mended");
            return Stop::GiveBack(pulled.into(), Duration::from_mins(1));
        }
        let mut headers = envelope::kept(pulled.headers());
        headers.insert(envelope::FORWARDED, times.to_string());
        headers.insert(envelope::ACCEPTED_AT, job.accepted_at.as_millisecond().to_string());
        headers.insert(envelope::ORIGIN, job.origin.as_str());
        let id = match job.remaining.as_deref() {
            Some([address, ..]) => format!("{}:{}:to:{home}", job.delivery(*address), job.attempt),
            _ => job.id.to_string(),
        };
        headers.insert(NATS_MESSAGE_ID, id);
        let lane = Lane {
            region: home.clone(),
            ..self.lane(job)
        };
        match publish::store(&self.js, lane.notify(), headers, pulled.payload()).await {
            Ok(_) => {
                tracing::info!(job = %job.id, %home, "sent on to where the recipient moved");
                Stop::silently(pulled, job, reserved)
            }
            Err(error) => {
                tracing::warn!(job = %job.id, %error, "could not be sent on; job is given back");
                Stop::GiveBack(pulled.into(), Duration::from_secs(2))
            }
        }
    }

    /// The lane on which `job` is worked on here.
    pub(super) fn lane(&self, job: &Job) -> subject::Lane {
        Lane {
            channel: job.channel,
            region: self.region.clone(),
            class: job.class,
            app: job.app.clone(),
        }
    }
}
