//! Publishes the jobs whose recipients moved for their new homes. Workers hand them over; they may not publish for other
//! regions themselves.
//!
//! A job keeps its id and its proof. So one that is handed over or published twice, because a worker or a gateway ended
//! between two steps, is recognized by the streams and by the ledger of the new home.

use std::{sync::Arc, time::Duration};

use async_nats::{
    header::NATS_MESSAGE_ID,
    jetstream::{AckKind, Message, consumer::PullConsumer},
};
use futures::StreamExt;
use shared::{
    failpoint::failpoint,
    nats::{
        envelope, publish,
        subject::{Lane, Tier},
        topology::{MOVED_CONSUMER, SCHEDULE},
    },
};
use tokio::time::sleep;

use super::budget::Budgets;
use crate::context::Context;

/// Jobs that are published at the same time.
const IN_FLIGHT_MAX: usize = 256;

/// When a job that could not be published is tried again.
const RETRY_PUBLISH_AFTER: Duration = Duration::from_secs(2);

/// The pause before jobs are pulled again after an interruption.
const RETRY_PULL_AFTER: Duration = Duration::from_secs(1);

/// Publishes what workers hand over until the process ends.
pub(crate) async fn run(context: Arc<Context>, budgets: Arc<Budgets>) {
    loop {
        let consumer: Result<PullConsumer, _> = context.js.get_consumer_from_stream(MOVED_CONSUMER, SCHEDULE).await;
        if let Ok(consumer) = consumer
            && let Ok(messages) = consumer.stream().max_messages_per_batch(IN_FLIGHT_MAX).messages().await
        {
            messages
                .take_while(|message| std::future::ready(message.is_ok()))
                .for_each_concurrent(IN_FLIGHT_MAX, |message| forward(&context, &budgets, message.ok()))
                .await;
        }
        sleep(RETRY_PULL_AFTER).await;
    }
}

/// Publishes one job and acknowledges it; nothing after the last one of an interrupted stream.
async fn forward(context: &Context, budgets: &Budgets, message: Option<Message>) {
    let Some(message) = message else { return };
    let Ok(lane) = Lane::parse(&message.subject) else {
        tracing::error!(subject = %message.subject, "a worker handed over a job whose subject names no lane; it waits");
        return;
    };
    let of_job = message.headers.clone().unwrap_or_default();
    let mut headers = envelope::kept(&of_job);
    if let Some(id) = envelope::header(&of_job, NATS_MESSAGE_ID.as_ref()) {
        headers.insert(NATS_MESSAGE_ID, id);
    }
    // It takes its part of the app's share of the lane like a new job.
    let tenants = context.config.tenants();
    let tier = tenants
        .apps
        .get(&lane.app)
        .map_or(Tier::Main, |app| budgets.tier(app, &lane));
    let subject = tier.subject(&lane.notify());
    let stored = publish::store(&context.js, subject, headers, message.payload.clone()).await;
    failpoint("gateway.after-forward");
    let acknowledged = match stored {
        Ok(_) => message.double_ack().await,
        Err(error) => {
            tracing::warn!(home = %lane.region, %error, "a job could not be published for its new home; retrying");
            message.ack_with(AckKind::Nak(Some(RETRY_PUBLISH_AFTER))).await
        }
    };
    if let Err(error) = acknowledged {
        tracing::debug!(%error, "the server gives the job to a gateway again");
    }
}
