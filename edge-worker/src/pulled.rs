//! One piece of work that must be settled: a pulled message, or one member of a slice that was pulled as a whole. Dropping
//! it gives it back, so that no early return can lose it.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_nats::{
    HeaderMap, Subject,
    jetstream::{AckKind, Message},
};
use bytes::Bytes;
use jiff::Timestamp;
use shared::{
    id::JobId,
    job::Job,
    nats::follow,
    receipt::{Receipt, State},
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Work under way through the pipeline, and the permit under which it was taken.
#[derive(Debug)]
pub struct Pulled {
    from: Option<From>,
    _permit: OwnedSemaphorePermit,
    /// When the stream stored it.
    pub stored_at: Timestamp,
    /// Its place in its stream.
    pub sequence: u64,
    /// How many times the server has handed it out, this time included.
    pub tries: i64,
    /// When this worker received it.
    pub pulled_at: Timestamp,
}

/// Where it came from, and who is told of its end. Boxed, because a delivery is handed on from stage to stage.
#[derive(Debug)]
enum From {
    Message(Box<Message>, Returns),
    Slice(Box<Member>),
}

#[derive(Debug)]
struct Member {
    envelope: Arc<Envelope>,
    job: Arc<Job>,
    states: Vec<State>,
    told: mpsc::UnboundedSender<Ended>,
}

/// What the members of a slice have in common.
#[derive(Debug)]
pub struct Envelope {
    /// Where each would have come.
    pub subject: Subject,
    /// The headers each would have.
    pub headers: HeaderMap,
    /// The body for APNs, rendered when the first needs it.
    pub apns: Arc<OnceLock<Bytes>>,
}

/// How the work on one member of a slice ended.
#[derive(Debug)]
pub enum Ended {
    /// It is settled; with what its receipts said, if it was not settled before.
    Settled(JobId, Vec<State>),
    /// It could not be done; to be tried again after this time.
    GivenBack(Duration),
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

impl Pulled {
    /// Takes responsibility for `message`. `None` if it did not come from a consumer.
    pub fn new(message: Message, permit: OwnedSemaphorePermit, returns: Returns, now: Timestamp) -> Option<Self> {
        let info = message.info().ok()?;
        let (stored_at, sequence, tries) = (
            follow::timestamp(info.published.unix_timestamp_nanos()),
            info.stream_sequence,
            info.delivered,
        );
        Some(Self {
            from: Some(From::Message(message.into(), returns)),
            _permit: permit,
            stored_at,
            sequence,
            tries,
            pulled_at: now,
        })
    }

    /// The job of one member of the slice that this is. How it ends is told to `told`.
    #[must_use]
    pub fn member(
        &self,
        envelope: Arc<Envelope>,
        job: Arc<Job>,
        permit: OwnedSemaphorePermit,
        told: mpsc::UnboundedSender<Ended>,
        now: Timestamp,
    ) -> Self {
        let member = Member {
            envelope,
            job,
            states: Vec::new(),
            told,
        };
        Self {
            from: Some(From::Slice(member.into())),
            _permit: permit,
            stored_at: self.stored_at,
            sequence: self.sequence,
            tries: self.tries,
            pulled_at: now,
        }
    }

    /// Where the message came.
    pub fn subject(&self) -> &Subject {
        match self.from() {
            From::Message(message, _) => &message.subject,
            From::Slice(member) => &member.envelope.subject,
        }
    }

    /// Its headers.
    pub fn headers(&self) -> &HeaderMap {
        static NONE: std::sync::LazyLock<HeaderMap> = std::sync::LazyLock::new(HeaderMap::new);
        match self.from() {
            From::Message(message, _) => message.headers.as_ref().unwrap_or(&NONE),
            From::Slice(member) => &member.envelope.headers,
        }
    }

    /// Its body.
    pub fn payload(&self) -> Bytes {
        match self.from() {
            From::Message(message, _) => message.payload.clone(),
            From::Slice(member) => serde_json::to_vec(&member.job.body)
                .expect("bodies always serialize")
                .into(),
        }
    }

    /// Where the body for APNs is rendered: for all members of a slice at one place.
    pub fn apns(&self) -> Arc<OnceLock<Bytes>> {
        match self.from() {
            From::Message(..) => Arc::default(),
            From::Slice(member) => member.envelope.apns.clone(),
        }
    }

    /// Remembers what is said of a member, for its slice.
    pub fn note(&mut self, receipts: &[Receipt]) {
        if let Some(From::Slice(member)) = &mut self.from {
            let outcomes = receipts.iter().map(|receipt| receipt.state);
            member
                .states
                .extend(outcomes.filter(|state| *state != State::Attempting));
        }
    }

    /// Keeps the server from giving the message to somebody else for another while.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn keep(&self) -> Result<(), async_nats::Error> {
        match self.from() {
            From::Message(message, _) => message.ack_with(AckKind::Progress).await,
            From::Slice(_) => Ok(()),
        }
    }

    /// Says that the work is done. Not confirmed by the server: if it is lost, the ledger makes the redelivery harmless.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn ack(mut self) -> Result<(), async_nats::Error> {
        match self.from.take() {
            Some(From::Message(message, _)) => message.ack().await,
            Some(From::Slice(member)) => {
                member.end(Ended::Settled(member.job.id, member.states.clone()));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Gives the message back, to be delivered again after `wait`.
    pub fn give_back(mut self, wait: Duration) {
        self.return_after(wait);
    }

    fn from(&self) -> &From {
        self.from
            .as_ref()
            .expect("only ack and drop take it, and both end the pulled")
    }

    fn return_after(&mut self, wait: Duration) {
        match self.from.take() {
            // The task that receives ends only when the runtime does; then the server's own time-out returns it.
            Some(From::Message(message, returns)) => drop(returns.0.send((message, wait))),
            Some(From::Slice(member)) => member.end(Ended::GivenBack(wait)),
            None => {}
        }
    }
}

impl Member {
    fn end(&self, ended: Ended) {
        // Whoever works on the slice waits for all of its members, unless the process ends.
        drop(self.told.send(ended));
    }
}

impl Drop for Pulled {
    fn drop(&mut self) {
        self.return_after(RETURN_AFTER);
    }
}
