//! A message pulled from a lane, or one member of a pulled slice. It must be settled or given back; dropping it gives it
//! back, so that no early return can lose it.

use std::{sync::Arc, time::Duration};

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

use crate::{cache::Position, providers::Renditions};

/// One unit of work in the pipeline, with the permit that it occupies.
#[derive(Debug)]
pub struct Pulled {
    source: Option<Source>,
    _permit: OwnedSemaphorePermit,
    /// When the stream stored it.
    pub stored_at: Timestamp,
    /// Its sequence in its stream.
    pub sequence: u64,
    /// How many times the server has sent it to a worker, including this time.
    pub tries: i64,
    /// When this worker received it.
    pub pulled_at: Timestamp,
    /// The position that facts about its recipients must have reached. At first one that no copy reaches.
    pub facts: Position,
}

/// Where the work came from, and what receives its end. The parts are boxed, because the work moves from stage to stage.
#[derive(Debug)]
enum Source {
    Message(Box<Message>, ReturnQueue),
    Slice(Box<Member>),
}

#[derive(Debug)]
struct Member {
    envelope: Arc<SliceEnvelope>,
    job: Arc<Job>,
    outcomes: Vec<State>,
    ends: mpsc::UnboundedSender<MemberEnd>,
}

/// The parts that the jobs of all members of a slice share.
#[derive(Debug)]
pub struct SliceEnvelope {
    /// The subject that each would have as a message of its own.
    pub subject: Subject,
    /// The headers that each would have as a message of its own, without a proof.
    pub headers: HeaderMap,
    /// Whether the slice's message has the proof that a gateway accepted the broadcast.
    pub is_proven: bool,
    /// The shared content in the providers' formats.
    pub renditions: Renditions,
}

/// How the work on one member of a slice ended.
#[derive(Debug)]
pub enum MemberEnd {
    /// The job is settled, with these outcomes; none if it had been settled before.
    Settled(JobId, Vec<State>),
    /// The job could not be processed and must be retried after this time.
    GivenBack(Duration),
    /// The job waits with its slice until this time.
    Held(Timestamp),
}

/// Gives messages back to the server in the background. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ReturnQueue(mpsc::UnboundedSender<(Box<Message>, Duration)>);

/// How long a dropped message stays with the server: the cause rarely disappears immediately.
const RETURN_AFTER: Duration = Duration::from_secs(1);

impl ReturnQueue {
    /// Starts the task that gives messages back. It ends when every clone of the queue is dropped.
    pub fn start() -> Self {
        let (sender, mut receiver) = mpsc::unbounded_channel::<(Box<Message>, Duration)>();
        tokio::spawn(async move {
            while let Some((message, after)) = receiver.recv().await {
                if let Err(error) = message.ack_with(AckKind::Nak(Some(after))).await {
                    tracing::warn!(%error, "message could not be given back; the server redelivers it after its acknowledgement time-out");
                }
            }
        });
        Self(sender)
    }
}

impl Pulled {
    /// Takes responsibility for `message`. `None` if it did not come from a consumer.
    pub fn new(message: Message, permit: OwnedSemaphorePermit, returns: ReturnQueue, now: Timestamp) -> Option<Self> {
        let info = message.info().ok()?;
        let (stored_at, sequence, tries) = (
            follow::timestamp(info.published.unix_timestamp_nanos()),
            info.stream_sequence,
            info.delivered,
        );
        Some(Self {
            source: Some(Source::Message(message.into(), returns)),
            _permit: permit,
            stored_at,
            sequence,
            tries,
            pulled_at: now,
            facts: Position::default(),
        })
    }

    /// The job of one member of this slice. How it ends is sent to `ends`.
    #[must_use]
    pub fn member(
        &self,
        envelope: Arc<SliceEnvelope>,
        job: Arc<Job>,
        permit: OwnedSemaphorePermit,
        ends: mpsc::UnboundedSender<MemberEnd>,
        now: Timestamp,
    ) -> Self {
        let member = Member {
            envelope,
            job,
            outcomes: Vec::new(),
            ends,
        };
        Self {
            source: Some(Source::Slice(member.into())),
            _permit: permit,
            stored_at: self.stored_at,
            sequence: self.sequence,
            tries: self.tries,
            pulled_at: now,
            facts: self.facts,
        }
    }

    /// The subject on which the message arrived.
    pub fn subject(&self) -> &Subject {
        match self.source() {
            Source::Message(message, _) => &message.subject,
            Source::Slice(member) => &member.envelope.subject,
        }
    }

    /// The headers of the message; those of the slice for a member.
    pub fn headers(&self) -> &HeaderMap {
        static NONE: std::sync::LazyLock<HeaderMap> = std::sync::LazyLock::new(HeaderMap::new);
        match self.source() {
            Source::Message(message, _) => message.headers.as_ref().unwrap_or(&NONE),
            Source::Slice(member) => &member.envelope.headers,
        }
    }

    /// The body of the message as JSON; of a member, the body that its job would have.
    pub fn payload(&self) -> Bytes {
        match self.source() {
            Source::Message(message, _) => message.payload.clone(),
            Source::Slice(member) => serde_json::to_vec(&member.job.body())
                .expect("bodies always serialize")
                .into(),
        }
    }

    /// The job, if this is a member of a slice that has a proof.
    pub fn proven_member(&self) -> Option<&Job> {
        match self.source() {
            Source::Slice(member) if member.envelope.is_proven => Some(&member.job),
            Source::Slice(_) | Source::Message(..) => None,
        }
    }

    /// The store of its content in the providers' formats, which all members of a slice share.
    pub fn renditions(&self) -> Renditions {
        match self.source() {
            Source::Message(..) => Renditions::default(),
            Source::Slice(member) => member.envelope.renditions.clone(),
        }
    }

    /// Remembers the outcomes in `receipts`, which the slice of this member counts. Does nothing for a message.
    pub fn record_outcomes(&mut self, receipts: &[Receipt]) {
        if let Some(Source::Slice(member)) = &mut self.source {
            let states = receipts.iter().map(|receipt| receipt.state);
            member.outcomes.extend(states.filter(|state| state.is_outcome()));
        }
    }

    /// Restarts the acknowledgement time-out, so that the server does not hand the message to another worker.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn report_progress(&self) -> Result<(), async_nats::Error> {
        match self.source() {
            Source::Message(message, _) => message.ack_with(AckKind::Progress).await,
            Source::Slice(_) => Ok(()),
        }
    }

    /// Acknowledges the work. The server does not confirm it: if it is lost, the ledger makes the redelivery harmless.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn ack(mut self) -> Result<(), async_nats::Error> {
        match self.source.take() {
            Some(Source::Message(message, _)) => message.ack().await,
            Some(Source::Slice(member)) => {
                member.end(MemberEnd::Settled(member.job.id, member.outcomes.clone()));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Gives the message back to the server, which redelivers it after `wait`.
    pub fn give_back(mut self, wait: Duration) {
        self.return_after(wait);
    }

    /// Lets a member of a slice wait with it until this time. A message is given back.
    pub fn hold_member(mut self, until: Timestamp) {
        match self.source.take() {
            Some(Source::Slice(member)) => member.end(MemberEnd::Held(until)),
            source => {
                self.source = source;
                self.return_after(RETURN_AFTER);
            }
        }
    }

    fn source(&self) -> &Source {
        self.source
            .as_ref()
            .expect("only ack, give_back and drop take it, and each consumes the work")
    }

    fn return_after(&mut self, wait: Duration) {
        match self.source.take() {
            // The queue's task ends only with the runtime; then the server's own time-out returns the message.
            Some(Source::Message(message, returns)) => drop(returns.0.send((message, wait))),
            Some(Source::Slice(member)) => member.end(MemberEnd::GivenBack(wait)),
            None => {}
        }
    }
}

impl Member {
    fn end(&self, end: MemberEnd) {
        // The work on the slice waits for all members, unless the process ends.
        drop(self.ends.send(end));
    }
}

impl Drop for Pulled {
    fn drop(&mut self) {
        self.return_after(RETURN_AFTER);
    }
}
