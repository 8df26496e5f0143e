//! Group commit: messages that arrive while others are being stored are stored together next.
//!
//! A server that flushes its files before each acknowledgement flushes once for a whole atomic batch (ADR-50 of NATS),
//! and once for each message outside of one.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_nats::{
    HeaderMap, Request, RequestError, RequestErrorKind,
    client::{self, PublishErrorKind},
    header::{NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL, NATS_BATCH_ID, NATS_BATCH_SEQUENCE},
    jetstream::{self, publish::PublishAck, response::Response},
};
use bytes::Bytes;
use futures::future::join_all;
use tokio::{sync::oneshot, time::timeout};
use uuid::Uuid;

use super::{
    connect::ACK_TIMEOUT,
    publish::{self, NotStored, Stored},
};

/// Maximum number of messages in a batch; the server takes no more.
pub const MAX_BATCH_MESSAGES: usize = 1000;

/// Fewer messages are stored singly: staging one costs the server a dozen flushes of small files and folders.
const MIN_BATCH_MESSAGES: usize = 64;

/// Maximum bytes of payload in a batch, which the server holds until the last message.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Maximum number of batches in flight: the next one is sent while one is being stored. The server allows 50 a stream,
/// for all publishers together.
const MAX_BATCHES_IN_FLIGHT: usize = 2;

/// A message for a stream.
#[derive(Debug, Clone)]
pub struct Message {
    /// The subject to publish it under.
    pub subject: String,
    /// Its headers, including the message id.
    pub headers: HeaderMap,
    /// Its body.
    pub payload: Bytes,
}

impl Message {
    /// Publishes it singly and waits until it is stored.
    ///
    /// # Errors
    /// When the stream did not acknowledge it; see [`NotStored`].
    pub async fn store(self, js: &jetstream::Context) -> Result<Stored, NotStored> {
        publish::store(js, self.subject, self.headers, self.payload).await
    }
}

/// Stores messages in one stream, which must allow atomic batches: a few singly, many together. No message waits for
/// others: those that arrive while some are being stored form the next batch.
#[derive(Debug, Clone)]
pub struct Batcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    js: jetstream::Context,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    in_flight: usize,
}

#[derive(Debug)]
struct Waiting {
    message: Message,
    answer: oneshot::Sender<Result<Stored, NotStored>>,
}

impl Batcher {
    /// A batcher that publishes over `js`.
    pub fn new(js: jetstream::Context) -> Self {
        Self(Arc::new(Shared {
            js,
            queue: Mutex::default(),
        }))
    }

    /// Queues a message and returns a future that resolves when it is stored. Messages queued before the first future is
    /// polled can share a batch. A message whose future was dropped may be left out.
    pub fn store(&self, message: Message) -> impl Future<Output = Result<Stored, NotStored>> + Send + use<> {
        let (answer, wait) = oneshot::channel();
        self.queue().waiting.push_back(Waiting { message, answer });
        let batcher = self.clone();
        async move {
            batcher.begin();
            // The sender is dropped without an answer only when the runtime shuts down.
            wait.await.unwrap_or(Err(NotStored::NoAnswer))
        }
    }

    fn begin(&self) {
        if let Some(batch) = self.queue().next() {
            // The task ends when the queue is empty.
            drop(tokio::spawn(self.clone().work(batch)));
        }
    }

    async fn work(self, first: Vec<Waiting>) {
        let mut next = Some(first);
        while let Some(batch) = next {
            self.commit(batch).await;
            let mut queue = self.queue();
            queue.in_flight -= 1;
            next = queue.next();
        }
    }

    /// Stores a batch and answers each caller. A refused batch is tried in halves: that isolates a duplicate, or uses
    /// the last space in the stream, while the rest still shares batches.
    async fn commit(&self, batch: Vec<Waiting>) {
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            if part.len() < MIN_BATCH_MESSAGES {
                self.commit_singly(part).await;
                continue;
            }
            match timeout(ACK_TIMEOUT, self.publish(&part)).await {
                Ok(Ok(ack)) => {
                    // A batch is stored contiguously, and its acknowledgement carries the last sequence.
                    let first = (ack.sequence + 1).saturating_sub(part.len() as u64);
                    for (waiting, sequence) in part.into_iter().zip(first..) {
                        waiting.answer(Ok(Stored {
                            stream: ack.stream.clone(),
                            sequence,
                            duplicate: false,
                            value: None,
                        }));
                    }
                }
                // The batch may be stored, now or later; callers repeat it under the same message ids. The remaining
                // parts are not sent.
                Err(_) | Ok(Err(Failed::NoAnswer)) => {
                    for waiting in part.into_iter().chain(parts.drain(..).flatten()) {
                        waiting.answer(Err(NotStored::NoAnswer));
                    }
                }
                Ok(Err(Failed::Refused(why))) => {
                    tracing::debug!(%why, messages = part.len(), "batch refused");
                    let half = part.split_off(part.len() / 2);
                    parts.extend([half, part]);
                }
            }
        }
    }

    async fn commit_singly(&self, batch: Vec<Waiting>) {
        join_all(batch.into_iter().map(async |waiting| {
            let stored = waiting.message.clone().store(&self.0.js).await;
            waiting.answer(stored);
        }))
        .await;
    }

    /// Publishes all messages as one batch.
    ///
    /// # Errors
    /// When the batch is not known to be stored as a whole.
    async fn publish(&self, batch: &[Waiting]) -> Result<PublishAck, Failed> {
        let messages = batch.iter().map(|waiting| waiting.message.clone());
        publish_together(&self.0.js, messages).await
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn publish_together(
    js: &jetstream::Context,
    messages: impl ExactSizeIterator<Item = Message>,
) -> Result<PublishAck, Failed> {
    let client = js.client();
    let id = Uuid::new_v4().simple().to_string();
    let count = messages.len();
    for (number, message) in (1..).zip(messages) {
        let Message {
            subject,
            mut headers,
            payload,
        } = message;
        headers.insert(NATS_BATCH_ID, id.as_str());
        headers.insert(NATS_BATCH_SEQUENCE, number.to_string());
        if number < count {
            // Without a reply subject the server acknowledges only the last message.
            client.publish_with_headers(subject, headers, payload).await?;
            continue;
        }
        headers.insert(NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL);
        let request = Request::new().headers(headers).payload(payload).timeout(None);
        let answer = client.send_request(subject, request).await?;
        return read(&answer.payload, count);
    }
    Err(Failed::Refused("the batch is empty".to_owned()))
}

/// Stores all of `messages` in their stream, which must allow atomic batches, or none. At most [`MAX_BATCH_MESSAGES`].
///
/// # Errors
/// [`NotStored::Refused`] if the stream refused them all, for example because an expected sequence did not match.
pub async fn store_together(js: &jetstream::Context, messages: Vec<Message>) -> Result<(), NotStored> {
    match timeout(ACK_TIMEOUT, publish_together(js, messages.into_iter())).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(Failed::Refused(why))) => {
            tracing::debug!(%why, "batch refused");
            Err(NotStored::Refused)
        }
        Err(_) | Ok(Err(Failed::NoAnswer)) => Err(NotStored::NoAnswer),
    }
}

impl Queue {
    /// The next batch to store, if there is one. While one is being stored, another is sent only if it is full; smaller
    /// ones would only cost more flushes.
    fn next(&mut self) -> Option<Vec<Waiting>> {
        if self.in_flight == MAX_BATCHES_IN_FLIGHT || self.in_flight > 0 && self.waiting.len() < MAX_BATCH_MESSAGES {
            return None;
        }
        self.waiting.retain(|waiting| !waiting.answer.is_closed());
        if self.waiting.is_empty() {
            return None;
        }
        let mut bytes = 0;
        let first = self.waiting.iter().take(MAX_BATCH_MESSAGES);
        let fitting = first.take_while(|waiting| {
            bytes += waiting.message.payload.len();
            bytes <= MAX_BATCH_BYTES
        });
        let count = fitting.count().max(1);
        self.in_flight += 1;
        Some(self.waiting.drain(..count).collect())
    }
}

impl Waiting {
    fn answer(self, stored: Result<Stored, NotStored>) {
        // A caller that no longer waits repeats under the same message id.
        drop(self.answer.send(stored));
    }
}

/// Why a batch is not known to be stored.
#[derive(Debug)]
enum Failed {
    /// Not stored as a batch: the server refused it, with this reason, or does not support batches. Message ids protect
    /// against storing a message twice.
    Refused(String),
    /// The server did not answer; the batch may be stored.
    NoAnswer,
}

/// Reads the answer to the last of `count` messages.
fn read(answer: &[u8], count: usize) -> Result<PublishAck, Failed> {
    match serde_json::from_slice::<Response<PublishAck>>(answer) {
        Ok(Response::Ok(ack)) if ack.batch_size == Some(count as u64) => Ok(ack),
        // A server without batches stores the last message as a single one.
        Ok(Response::Ok(_)) => Err(Failed::Refused("the server does not support batches".to_owned())),
        Ok(Response::Err { error }) => Err(Failed::Refused(error.to_string())),
        Err(_) => Err(Failed::NoAnswer),
    }
}

impl From<client::PublishError> for Failed {
    fn from(error: client::PublishError) -> Self {
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::InvalidSubject => Self::Refused(error.to_string()),
            PublishErrorKind::Send => Self::NoAnswer,
        }
    }
}

impl From<RequestError> for Failed {
    fn from(error: RequestError) -> Self {
        match error.kind() {
            RequestErrorKind::NoResponders
            | RequestErrorKind::InvalidSubject
            | RequestErrorKind::MaxPayloadExceeded => Self::Refused(error.to_string()),
            RequestErrorKind::TimedOut | RequestErrorKind::Other => Self::NoAnswer,
        }
    }
}
