//! Group commit: messages that come while others are being stored are then stored together.
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

/// Most messages of a batch; the server takes no more.
pub const MOST_MESSAGES: usize = 1000;

/// From this many on a batch is worth it: staging one costs the server a dozen flushes of small files and folders.
const FEWEST_MESSAGES: usize = 64;

/// Most bytes of the payloads of a batch, which the server holds until the last message.
const MOST_BYTES: usize = 4 << 20;

/// Batches under way at one time: the next is on its way while one is being stored. The server allows 50 a stream, for
/// all publishers together.
const UNDER_WAY: usize = 2;

/// A message for a stream.
#[derive(Debug, Clone)]
pub struct Message {
    /// Where it goes.
    pub subject: String,
    /// Its headers, the message id among them.
    pub headers: HeaderMap,
    /// What it says.
    pub payload: Bytes,
}

impl Message {
    /// Publishes it by itself and waits until it is stored.
    ///
    /// # Errors
    /// When that is not certain.
    pub async fn store(self, js: &jetstream::Context) -> Result<Stored, NotStored> {
        publish::store(js, self.subject, self.headers, self.payload).await
    }
}

/// Stores the messages of one stream, which must allow atomic batches: a few each by itself, many together. Nothing waits
/// for company: what comes while others are being stored goes with the next.
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
    under_way: usize,
}

#[derive(Debug)]
struct Waiting {
    message: Message,
    answer: oneshot::Sender<Result<Stored, NotStored>>,
}

impl Batcher {
    /// Publishes over `js`.
    pub fn new(js: jetstream::Context) -> Self {
        Self(Arc::new(Shared {
            js,
            queue: Mutex::default(),
        }))
    }

    /// Queues a message and returns the wait until it is stored. All that is queued before the first wait begins can be
    /// in one batch. A message that nobody waits for any more may be left out.
    pub fn store(&self, message: Message) -> impl Future<Output = Result<Stored, NotStored>> + Send + use<> {
        let (answer, wait) = oneshot::channel();
        self.queue().waiting.push_back(Waiting { message, answer });
        let batcher = self.clone();
        async move {
            batcher.begin();
            // No answer means that the runtime ends.
            wait.await.unwrap_or(Err(NotStored::NoAnswer))
        }
    }

    fn begin(&self) {
        if let Some(batch) = self.queue().next() {
            // It ends when there is nothing left for it to do.
            drop(tokio::spawn(self.clone().work(batch)));
        }
    }

    async fn work(self, first: Vec<Waiting>) {
        let mut next = Some(first);
        while let Some(batch) = next {
            self.commit(batch).await;
            let mut queue = self.queue();
            queue.under_way -= 1;
            next = queue.next();
        }
    }

    /// Stores them and tells each. What is refused together is tried in halves: a message that the stream has already, or
    /// the last room in it, is found without giving up the others' batch.
    async fn commit(&self, batch: Vec<Waiting>) {
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            if part.len() < FEWEST_MESSAGES {
                self.commit_singly(part).await;
                continue;
            }
            match timeout(ACK_TIMEOUT, self.publish(&part)).await {
                Ok(Ok(ack)) => {
                    // A batch lies in one piece, and its acknowledgement names the last.
                    let first = (ack.sequence + 1).saturating_sub(part.len() as u64);
                    for (waiting, sequence) in part.into_iter().zip(first..) {
                        waiting.answer(Ok(Stored {
                            stream: ack.stream.clone(),
                            sequence,
                            duplicate: false,
                        }));
                    }
                }
                // It may be stored, now or in a moment; whoever repeats it uses the same message ids. The server is not
                // asked for the rest.
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

    /// Publishes all as one batch.
    ///
    /// # Errors
    /// When it is not known to be stored as a whole.
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
            // Without a reply subject the server is silent about all but the last.
            client.publish_with_headers(subject, headers, payload).await?;
            continue;
        }
        headers.insert(NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL);
        let request = Request::new().headers(headers).payload(payload).timeout(None);
        let answer = client.send_request(subject, request).await?;
        return read(&answer.payload, count);
    }
    Err(Failed::Refused("there is nothing in it".to_owned()))
}

/// Stores all of `messages` in their stream, which must allow atomic batches, or none. At most [`MOST_MESSAGES`].
///
/// # Errors
/// [`NotStored::Refused`] if the stream refused them all, as for an expectation that was not met.
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
    /// What is to be stored now, if anything. Another batch goes on its way while one is being stored only if it is full;
    /// smaller ones would only cost more flushes.
    fn next(&mut self) -> Option<Vec<Waiting>> {
        if self.under_way == UNDER_WAY || self.under_way > 0 && self.waiting.len() < MOST_MESSAGES {
            return None;
        }
        self.waiting.retain(|waiting| !waiting.answer.is_closed());
        if self.waiting.is_empty() {
            return None;
        }
        let mut bytes = 0;
        let first = self.waiting.iter().take(MOST_MESSAGES);
        let fitting = first.take_while(|waiting| {
            bytes += waiting.message.payload.len();
            bytes <= MOST_BYTES
        });
        let count = fitting.count().max(1);
        self.under_way += 1;
        Some(self.waiting.drain(..count).collect())
    }
}

impl Waiting {
    fn answer(self, stored: Result<Stored, NotStored>) {
        // Whoever does not wait any more repeats.
        drop(self.answer.send(stored));
    }
}

/// Why a batch is not known to be stored.
#[derive(Debug)]
enum Failed {
    /// Not as a batch: the server says why, or did not understand it as one. A message id tells what is stored all the same.
    Refused(String),
    /// Nobody knows.
    NoAnswer,
}

/// Reads the answer to the last of `count` messages.
fn read(answer: &[u8], count: usize) -> Result<PublishAck, Failed> {
    match serde_json::from_slice::<Response<PublishAck>>(answer) {
        Ok(Response::Ok(ack)) if ack.batch_size == Some(count as u64) => Ok(ack),
        // A server that does not know batches takes the last message for one by itself.
        Ok(Response::Ok(_)) => Err(Failed::Refused("the server knows no batches".to_owned())),
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
