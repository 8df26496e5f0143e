//! Reading a stream in order from a known sequence, once or forever.

use std::time::Duration;

use async_nats::{
    Client, HeaderMap,
    jetstream::{
        self, Message,
        consumer::{DeliverPolicy, ReplayPolicy, push},
        context::GetStreamErrorKind,
    },
};
use bytes::Bytes;
use futures::{
    FutureExt, Stream, StreamExt,
    future::{BoxFuture, Fuse},
    stream,
};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::{
    connect, envelope,
    refusal::{Forbidden, is_about, unless_refused},
    restore::Former,
    topology,
};

/// How often a consumer checks whether its connection was replaced.
const CONNECTION_CHECKED_EVERY: Duration = Duration::from_millis(200);

/// How often to check whether a stream that is followed was deleted.
const STREAM_CHECKED_EVERY: Duration = Duration::from_secs(1);

/// How often to check whether the end of a stream is reached.
const END_CHECKED_EVERY: Duration = Duration::from_millis(10);

/// How long [`read`] waits for the next message before it tries again.
const MESSAGE_WITHIN: Duration = Duration::from_secs(15);

/// How many attempts in a row without progress [`read`] and the audit make before they give up.
pub(super) const MAX_FRUITLESS_ATTEMPTS: u32 = 3;

/// One message of a followed stream.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The subject under which it was published.
    pub subject: String,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When the stream stored it.
    pub stored_at: Timestamp,
    /// How many later messages the stream held when it sent this one; zero: the reader has caught up.
    pub pending: u64,
    /// Its headers, as the publisher set them.
    pub headers: HeaderMap,
    /// Its body; empty in a marker that its key was removed.
    pub payload: Bytes,
}

impl Entry {
    /// Whether the entry is a marker that its key was removed.
    pub fn is_removal(&self) -> bool {
        envelope::header(&self.headers, "KV-Operation").is_some()
    }

    /// For the removal of a fact that moved with its recipient: the time from which on the new home delivers broadcasts.
    pub fn moved(&self) -> Option<Timestamp> {
        let ms = envelope::header(&self.headers, envelope::MOVED)?.parse().ok()?;
        Timestamp::from_millisecond(ms).ok()
    }
}

/// Why a stream could not be read, or no further.
#[derive(Debug, thiserror::Error)]
#[error("cannot follow {stream}: {error}")]
pub struct FollowError {
    stream: String,
    error: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The stream does not exist, or was deleted and created again.
    Gone,
    /// The server does not permit it.
    Forbidden,
    /// The server does not answer now.
    Interrupted,
}

impl FollowError {
    /// Whether the stream does not exist, or was deleted and created again.
    pub fn is_gone(&self) -> bool {
        self.kind == Kind::Gone
    }

    /// Whether it may work later without a change of anything.
    pub fn may_pass(&self) -> bool {
        self.kind == Kind::Interrupted
    }
}

/// The state of a stream at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    /// The last sequence it assigned.
    pub last: u64,
    /// When it was created: a recreated stream counts from one again.
    pub created_at: Timestamp,
    /// Number of messages in it.
    pub messages: u64,
    /// For a bucket of recipients that was deleted and created again: the former one.
    pub former: Option<Former>,
}

impl StreamState {
    /// Whether a reader that has followed the stream created at `created_at_ms` (milliseconds since 1970) up to
    /// `sequence` has seen every message in it. An empty stream may have assigned sequences.
    pub fn is_reached(&self, sequence: u64, created_at_ms: i64) -> bool {
        self.messages == 0 || (self.created_at.as_millisecond() == created_at_ms && sequence >= self.last)
    }

    /// Waits until the reader has reached it, whose sequence and stream creation time `known` returns; `false` if that
    /// takes longer than `patience`.
    ///
    /// # Errors
    /// Those of `known`.
    pub async fn is_reached_within<E>(
        &self,
        patience: Duration,
        known: impl Fn() -> Result<(u64, i64), E>,
    ) -> Result<bool, E> {
        let started = Instant::now();
        loop {
            let (sequence, created_at_ms) = known()?;
            if self.is_reached(sequence, created_at_ms) {
                return Ok(true);
            }
            if started.elapsed() > patience {
                return Ok(false);
            }
            sleep(END_CHECKED_EVERY).await;
        }
    }
}

/// Asks the leader of `stream` for its current state.
///
/// # Errors
/// When the server does not answer, or has no such stream, or the stream has no leader.
pub async fn stream_state(js: &jetstream::Context, stream: &str) -> Result<StreamState, FollowError> {
    let found = unless_refused(&js.client(), concerns("INFO", stream), js.get_stream(stream))
        .await
        .map_err(|error| forbidden(stream, &error))?
        .map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(kind) if kind.code() == 404 => gone_with(stream, &error),
            _ => fail(stream, &error),
        })?;
    let info = found.cached_info();
    // Without a leader any server answers, and may lag.
    if info.cluster.as_ref().is_some_and(|cluster| cluster.leader.is_none()) {
        return Err(fail(stream, &"it has no leader"));
    }
    Ok(StreamState {
        last: info.state.last_sequence,
        created_at: timestamp(info.created.unix_timestamp_nanos()),
        messages: info.state.messages,
        former: info
            .config
            .metadata
            .get(topology::FORMER_KEY)
            .map(|text| Former::parse(text)),
    })
}

/// Every message of `stream` whose subject matches `filter`, from sequence `from` (1 for all), in order and without gaps;
/// then the future ones. Ends with an error after a reconnect, and within about a second after the stream was deleted: ask for
/// its state, and follow again from the last sequence.
///
/// # Errors
/// When the server does not answer or has no such stream.
pub async fn follow(
    js: &jetstream::Context,
    stream: &str,
    filter: &str,
    from: u64,
) -> Result<impl Stream<Item = Result<Entry, FollowError>> + Unpin + use<>, FollowError> {
    Ok(follow_and_count(js, stream, filter, from).await?.0)
}

/// As [`follow`], with the number of messages that the stream holds now; if there is none, no message will tell that the end
/// is reached.
///
/// # Errors
/// Those of [`follow`].
pub async fn follow_and_count(
    js: &jetstream::Context,
    stream: &str,
    filter: &str,
    from: u64,
) -> Result<(impl Stream<Item = Result<Entry, FollowError>> + Unpin + use<>, u64), FollowError> {
    let (following, waiting) = open(js, stream, filter, from_sequence(from)).await?;
    let following = Box::pin(stream::unfold(following, async |mut following| {
        let next = following.next().await;
        Some((next?, following))
    }));
    Ok((following, waiting))
}

/// Where [`read`] begins.
#[derive(Debug, Clone, Copy)]
pub enum Start {
    /// At this sequence; 1 for all.
    Sequence(u64),
    /// At the first message stored at this time or later.
    Time(Timestamp),
}

/// Passes every message that `stream` holds now and that matches `filter` to `each`, once and in order; returns the last
/// sequence. Interruptions are tolerated as long as reading advances.
///
/// # Errors
/// When three attempts in a row read nothing: the server does not answer, has no such stream, or sends nothing more.
pub async fn read(
    js: &jetstream::Context,
    stream: &str,
    filter: &str,
    start: Start,
    mut each: impl FnMut(&Entry),
) -> Result<Option<u64>, FollowError> {
    let mut policy = match start {
        Start::Sequence(sequence) => from_sequence(sequence),
        Start::Time(time) => DeliverPolicy::ByStartTime {
            start_time: async_nats::datetime::from_nanos(time.as_nanosecond()).map_err(|error| fail(stream, &error))?,
        },
    };
    let (mut last, mut left, mut fruitless) = (None, u64::MAX, 0);
    loop {
        let before = last;
        let reading = read_on(js, stream, filter, policy, &mut left, |entry| {
            last = Some(entry.sequence);
            each(entry);
        });
        let Err(error) = reading.await else { return Ok(last) };
        fruitless = if last == before { fruitless + 1 } else { 0 };
        if fruitless == MAX_FRUITLESS_ATTEMPTS {
            return Err(error);
        }
        tracing::info!(stream, last, %error, "reading was interrupted");
        if let Some(last) = last {
            policy = from_sequence(last + 1);
        }
    }
}

/// Reads `left` messages, or all that the stream holds if those are fewer.
async fn read_on(
    js: &jetstream::Context,
    stream: &str,
    filter: &str,
    policy: DeliverPolicy,
    left: &mut u64,
    mut each: impl FnMut(&Entry),
) -> Result<(), FollowError> {
    let (mut following, waiting) = open(js, stream, filter, policy).await?;
    // Messages stored or removed meanwhile must not make this endless.
    *left = waiting.min(*left);
    while *left > 0 {
        let next = tokio::time::timeout(MESSAGE_WITHIN, following.next()).await;
        let next = next.map_err(|_| fail(stream, &"no message within 15 seconds"))?;
        let entry = next.ok_or_else(|| fail(stream, &"it ended"))??;
        *left = (*left - 1).min(entry.pending);
        each(&entry);
    }
    Ok(())
}

fn from_sequence(sequence: u64) -> DeliverPolicy {
    DeliverPolicy::ByStartSequence {
        start_sequence: sequence.max(1),
    }
}

/// Matches refused subjects that are a request of this kind about `stream`.
fn concerns(request: &str, stream: &str) -> impl Fn(&str) -> bool {
    move |subject| is_about(subject, request) && is_about(subject, stream)
}

/// Opens an ordered consumer; returns it and the number of messages that it will receive at once.
async fn open(
    js: &jetstream::Context,
    stream: &str,
    filter: &str,
    deliver_policy: DeliverPolicy,
) -> Result<(Following, u64), FollowError> {
    let before = stream_state(js, stream).await?;
    let found = js
        .get_stream_no_info(stream)
        .await
        .map_err(|error| fail(stream, &error))?;
    let creating = found.create_consumer(push::OrderedConfig {
        deliver_subject: js.client().new_inbox(),
        filter_subject: filter.to_owned(),
        deliver_policy,
        replay_policy: ReplayPolicy::Instant,
        ..push::OrderedConfig::default()
    });
    let consumer = unless_refused(&js.client(), concerns("CREATE", stream), creating)
        .await
        .map_err(|error| forbidden(stream, &error))?
        .map_err(|error| fail(stream, &error))?;
    let waiting = consumer.cached_info().num_pending;
    let messages = consumer.messages().await.map_err(|error| fail(stream, &error))?;
    let following = Following {
        messages,
        name: stream.to_owned(),
        connected: connect::connects(&js.client()),
        client: js.client(),
        connection_check: tokio::time::interval(CONNECTION_CHECKED_EVERY),
        gone: gone(js.clone(), stream.to_owned(), before.created_at).boxed().fuse(),
    };
    Ok((following, waiting))
}

/// An open ordered consumer, and the connection that it was made on.
struct Following {
    messages: push::Ordered,
    name: String,
    client: Client,
    connected: u64,
    connection_check: tokio::time::Interval,
    /// Resolves when the stream is not the one that was opened. Fused, because readers that take several entries at once ask on
    /// after an error.
    gone: Fuse<BoxFuture<'static, FollowError>>,
}

/// Resolves when the stream that was created at `created_at` no longer exists. The client itself would go on in the next
/// stream of this name without a word.
async fn gone(js: jetstream::Context, stream: String, created_at: Timestamp) -> FollowError {
    loop {
        sleep(STREAM_CHECKED_EVERY).await;
        match stream_state(&js, &stream).await {
            Ok(state) if state.created_at == created_at => {}
            Ok(_) => return gone_with(&stream, &"it was deleted and created again"),
            Err(error) if error.is_gone() => return error,
            // A server that does not answer has not deleted anything.
            Err(_) => {}
        }
    }
}

impl Following {
    async fn next(&mut self) -> Option<Result<Entry, FollowError>> {
        loop {
            tokio::select! {
                biased;
                message = self.messages.next() => return Some(self.entry(message?)),
                // A restarted server has lost this consumer; missed heartbeats would reveal that only later.
                _ = self.connection_check.tick() => if connect::connects(&self.client) != self.connected {
                    return Some(Err(fail(&self.name, &"the client reconnected")));
                },
                error = &mut self.gone => return Some(Err(error)),
            }
        }
    }

    fn entry(&self, message: Result<Message, push::OrderedError>) -> Result<Entry, FollowError> {
        let message = message.map_err(|error| fail(&self.name, &error))?;
        let info = message.info().map_err(|error| fail(&self.name, &error))?;
        Ok(Entry {
            sequence: info.stream_sequence,
            stored_at: timestamp(info.published.unix_timestamp_nanos()),
            pending: info.pending,
            subject: message.subject.to_string(),
            headers: message.message.headers.unwrap_or_default(),
            payload: message.message.payload,
        })
    }
}

/// Follows `stream` from its beginning forever, across reconnects, and passes every message to `learn`. Calls `caught_up`
/// whenever no further message waits. For readers that keep their state in memory; `learn` may get a message twice.
pub async fn follow_forever(
    js: &jetstream::Context,
    stream: &str,
    filter: &str,
    mut learn: impl FnMut(&Entry),
    mut caught_up: impl FnMut(),
) {
    let (mut next, mut created_at) = (1, None);
    loop {
        if let Ok(state) = stream_state(js, stream).await {
            // A recreated stream counts from one again.
            if created_at.replace(state.created_at) != Some(state.created_at) || state.last + 1 < next {
                next = 1;
            }
            if let Ok((mut following, waiting)) = open(js, stream, filter, from_sequence(next)).await {
                // An empty stream sends no message that could report zero pending.
                if waiting == 0 {
                    caught_up();
                }
                while let Some(Ok(entry)) = following.next().await {
                    next = entry.sequence + 1;
                    learn(&entry);
                    if entry.pending == 0 {
                        caught_up();
                    }
                }
            }
        }
        tracing::info!(stream, next, "following was interrupted");
        sleep(Duration::from_millis(200)).await;
    }
}

/// A time stamp from nanoseconds since 1970.
pub fn timestamp(nanoseconds: i128) -> Timestamp {
    Timestamp::from_nanosecond(nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn fail(stream: &str, error: &dyn std::fmt::Display) -> FollowError {
    FollowError {
        stream: stream.to_owned(),
        error: error.to_string(),
        kind: Kind::Interrupted,
    }
}

fn forbidden(stream: &str, error: &Forbidden) -> FollowError {
    FollowError {
        kind: Kind::Forbidden,
        ..fail(stream, error)
    }
}

fn gone_with(stream: &str, error: &dyn std::fmt::Display) -> FollowError {
    FollowError {
        kind: Kind::Gone,
        ..fail(stream, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_stream_is_reached_whatever_sequences_it_assigned() {
        let state = |last, messages| StreamState {
            last,
            created_at: Timestamp::UNIX_EPOCH,
            messages,
            former: None,
        };
        assert!(state(0, 0).is_reached(0, 7) && state(5, 0).is_reached(0, 7));
        assert!(state(5, 1).is_reached(5, 0));
        assert!(!state(5, 1).is_reached(4, 0) && !state(5, 1).is_reached(5, 7));
    }
}
