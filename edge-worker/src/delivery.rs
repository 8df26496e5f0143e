//! One pulled message that must be settled. Dropping it gives it back, so that no early return can lose it.

use std::time::Duration;

use async_nats::{
    HeaderMap, Subject,
    jetstream::{AckKind, Message},
};
use bytes::Bytes;
use jiff::Timestamp;
use shared::nats::follow;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// A message under way through the pipeline, and the permit under which it was pulled.
#[derive(Debug)]
pub struct Delivery {
    /// Boxed, because a delivery is handed on from stage to stage and a message is large.
    message: Option<Box<Message>>,
    returns: Returns,
    _permit: OwnedSemaphorePermit,
    /// When the stream stored it.
    pub stored_at: Timestamp,
    /// Its place in its stream.
    pub sequence: u64,
    /// How often the server has delivered it, this time included.
    pub delivered: i64,
    /// When this worker received it.
    pub pulled_at: Timestamp,
}

/// Where dropped deliveries are given back from.
#[derive(Debug, Clone)]
pub struct Returns(mpsc::UnboundedSender<(Box<Message>, Duration)>);

/// Waits this long before the server gives out a message that was dropped: its cause is rarely gone at once.
const RETURN_AFTER: Duration = Duration::from_secs(1);

impl Returns {
    /// Gives messages back in the background for as long as anyone can return one.
    pub fn start() -> Self {
        let (sender, mut receiver) = mpsc::unbounded_channel::<(Box<Message>, Duration)>();
        tokio::spawn(async move {
            while let Some((message, after)) = receiver.recv().await {
                if let Err(error) = message.ack_with(AckKind::Nak(Some(after))).await {
                    tracing::warn!(%error, "message could not be given back; the server will by itself");
                }
            }
        });
        Self(sender)
    }
}

impl Delivery {
    /// Takes responsibility for `message`. `None` if it did not come from a consumer.
    pub fn new(message: Message, permit: OwnedSemaphorePermit, returns: Returns, now: Timestamp) -> Option<Self> {
        let info = message.info().ok()?;
        let (stored_at, sequence, delivered) = (
            follow::timestamp(info.published.unix_timestamp_nanos()),
            info.stream_sequence,
            info.delivered,
        );
        Some(Self {
            message: Some(message.into()),
            returns,
            _permit: permit,
            stored_at,
            sequence,
            delivered,
            pulled_at: now,
        })
    }

    /// Where the message came.
    pub fn subject(&self) -> &Subject {
        &self.message().subject
    }

    /// Its headers.
    pub fn headers(&self) -> &HeaderMap {
        static NONE: std::sync::LazyLock<HeaderMap> = std::sync::LazyLock::new(HeaderMap::new);
        self.message().headers.as_ref().unwrap_or(&NONE)
    }

    /// Its body.
    pub fn payload(&self) -> &Bytes {
        &self.message().payload
    }

    /// Says that the work is done. Not confirmed by the server: if it is lost, the ledger makes the redelivery harmless.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn ack(mut self) -> Result<(), async_nats::Error> {
        match self.message.take() {
            Some(message) => message.ack().await,
            None => Ok(()),
        }
    }

    /// Gives the message back, to be delivered again after `wait`.
    pub fn give_back(mut self, wait: Duration) {
        self.return_after(wait);
    }

    fn message(&self) -> &Message {
        self.message
            .as_ref()
            .expect("only ack and drop take the message, and both end the delivery")
    }

    fn return_after(&mut self, wait: Duration) {
        if let Some(message) = self.message.take() {
            // The task that receives ends only when the runtime does; then the server's own time-out returns it.
            drop(self.returns.0.send((message, wait)));
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.return_after(RETURN_AFTER);
    }
}
