//! Pulling from the intakes of many apps, or what is due of many apps, over one subscription: an idle app costs no subscription,
//! and a long pull costs the server next to nothing.

use std::time::Duration;

use async_nats::{
    Message, StatusCode, Subscriber,
    jetstream::{self, AckKind},
};
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::json;

use super::{
    follow,
    topology::{self, Domain, INTAKE_CONSUMER, PLANNED},
};
use crate::id::AppId;

/// The server ends an idle pull after this time.
pub const PULL_EXPIRES_AFTER: Duration = Duration::from_secs(30);

/// What is pulled from: a consumer for each app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The intake of each app.
    Intakes,
    /// What is due in [`PLANNED`] of each app.
    Planned,
}

impl Source {
    /// The stream of an app's messages, and its consumer.
    fn consumer(self, app: &AppId) -> (String, String) {
        match self {
            Self::Intakes => (topology::intake(app), INTAKE_CONSUMER.to_owned()),
            Self::Planned => (PLANNED.to_owned(), topology::planned_consumer(app)),
        }
    }

    /// The app whose messages these are.
    fn app_of(self, stream: &str, consumer: &str) -> Option<AppId> {
        match self {
            Self::Intakes => topology::app_of_intake(stream),
            Self::Planned => topology::app_of_planned(consumer),
        }
    }
}

/// Where the messages of every app arrive.
#[derive(Debug)]
pub struct Inbox {
    js: jetstream::Context,
    source: Source,
    prefix: String,
    arrivals: Subscriber,
}

/// What arrives in an [`Inbox`].
#[derive(Debug)]
pub enum Arrival {
    /// A message.
    Published(Box<Published>),
    /// The pull of this app's messages has ended. It may be `lost`: the stream or the consumer does not answer.
    PullEnded {
        /// The app.
        app: AppId,
        /// Whether to wait before the next pull.
        lost: bool,
    },
    /// Something that is no part of a pull.
    Other,
}

/// A message that is to be acknowledged: what a service published, or what is due.
#[derive(Debug)]
pub struct Published {
    /// The app whose message it is.
    pub app: AppId,
    /// Its sequence there.
    pub sequence: u64,
    /// When it was stored there.
    pub stored_at: Timestamp,
    /// How often it was delivered, from 1.
    pub tries: i64,
    message: jetstream::Message,
}

impl Inbox {
    /// Subscribes below `prefix`, which this role may subscribe to and nobody else uses.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn open(
        js: jetstream::Context,
        source: Source,
        prefix: String,
    ) -> Result<Self, async_nats::SubscribeError> {
        let arrivals = js.client().subscribe(format!("{prefix}.*")).await?;
        Ok(Self {
            js,
            source,
            prefix,
            arrivals,
        })
    }

    /// Asks for at most `messages` messages of `app` and `bytes` bytes.
    ///
    /// # Errors
    /// When the request cannot be sent.
    pub async fn pull(&self, app: &AppId, messages: usize, bytes: usize) -> Result<(), async_nats::PublishError> {
        let request = json!({
            "batch": messages,
            "max_bytes": bytes,
            "expires": u64::try_from(PULL_EXPIRES_AFTER.as_nanos()).unwrap_or(u64::MAX),
        });
        let (stream, consumer) = self.source.consumer(app);
        let subject = format!("{}.CONSUMER.MSG.NEXT.{stream}.{consumer}", Domain::Here.api());
        let reply = format!("{}.{app}", self.prefix);
        let client = self.js.client();
        client
            .publish_with_reply(subject, reply, request.to_string().into())
            .await
    }

    /// What arrives next; `None` if the connection is closed.
    pub async fn next(&mut self) -> Option<Arrival> {
        let message = self.arrivals.next().await?;
        Some(self.arrival(message))
    }

    /// Ends the subscription. The server then ends the pulls.
    pub async fn close(mut self) {
        if let Err(error) = self.arrivals.unsubscribe().await {
            tracing::debug!(%error, "the connection is closed already");
        }
    }

    fn arrival(&self, message: Message) -> Arrival {
        if let Some(status) = message.status {
            let app = message
                .subject
                .strip_prefix(&*self.prefix)
                .and_then(|rest| rest.strip_prefix('.'));
            let Some(app) = app.and_then(|app| app.parse().ok()) else {
                return Arrival::Other;
            };
            let says = |words| message.description.as_ref().is_some_and(|text| text.contains(words));
            // Who counts the messages of a pull knows that it is complete, before the server says so.
            if status == StatusCode::IDLE_HEARTBEAT || says("Batch Completed") {
                return Arrival::Other;
            }
            // A pull ends when it expires, and when the next message is larger than what remains of its bytes.
            let is_usual = status == StatusCode::TIMEOUT || says("MaxBytes");
            return Arrival::PullEnded { app, lost: !is_usual };
        }
        let message = jetstream::Message {
            message,
            context: self.js.clone(),
        };
        let published = message.info().ok().and_then(|info| {
            Some((
                self.source.app_of(info.stream, info.consumer)?,
                info.stream_sequence,
                follow::timestamp(info.published.unix_timestamp_nanos()),
                info.delivered,
            ))
        });
        match published {
            Some((app, sequence, stored_at, tries)) => Arrival::Published(Box::new(Published {
                app,
                sequence,
                stored_at,
                tries,
                message,
            })),
            None => Arrival::Other,
        }
    }
}

impl Published {
    /// The message as it came.
    pub fn message(&self) -> &Message {
        &self.message.message
    }

    /// Tells the server that it was worked off.
    pub async fn acknowledge(&self) {
        self.answer(AckKind::Ack).await;
    }

    /// Gives it back, to be delivered again after `delay`.
    pub async fn give_back(&self, delay: Duration) {
        self.answer(AckKind::Nak((!delay.is_zero()).then_some(delay))).await;
    }

    async fn answer(&self, kind: AckKind) {
        if let Err(error) = self.message.ack_with(kind).await {
            tracing::debug!(%error, "an answer to an intake is lost; its message is delivered again");
        }
    }
}

/// Removes from the intake of `app` what its consumer has acknowledged up to `sequence` at most. Returns up to where the
/// consumer has acknowledged everything.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn trim(js: &jetstream::Context, app: &AppId, sequence: Option<u64>) -> Result<u64, async_nats::Error> {
    let name = topology::intake(app);
    let consumer: jetstream::consumer::PullConsumer = js.get_consumer_from_stream(INTAKE_CONSUMER, &name).await?;
    let done = consumer.cached_info().ack_floor.stream_sequence;
    if let Some(sequence) = sequence
        .map(|sequence| sequence.min(done))
        .filter(|sequence| *sequence > 0)
    {
        let stream = js.get_stream_no_info(&name).await?;
        stream.purge().sequence(sequence + 1).await?;
    }
    Ok(done)
}
