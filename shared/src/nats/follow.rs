//! Reading a stream in order from a known place, for ever.

use std::time::Duration;

use async_nats::{
    Client, HeaderMap,
    jetstream::{
        self, Message,
        consumer::{DeliverPolicy, ReplayPolicy, push},
    },
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;

use super::{
    connect,
    refusal::{is_about, unless_refused},
};

/// How often an open consumer looks whether the connection is still the one it was made on.
const LOOK: Duration = Duration::from_millis(200);

/// A stream that is being read and says nothing for this long is given up.
const SILENCE: Duration = Duration::from_secs(15);

/// One message of a followed stream.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it was published.
    pub subject: String,
    /// Its place in the stream.
    pub sequence: u64,
    /// When the stream stored it.
    pub stored_at: Timestamp,
    /// How many more the stream held behind it when it was sent; zero means caught up.
    pub pending: u64,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub payload: Bytes,
}

impl Entry {
    /// Whether the entry is a marker that its key was removed.
    pub fn is_removal(&self) -> bool {
        super::envelope::header(&self.headers, "KV-Operation").is_some()
    }
}

/// Why following ended.
#[derive(Debug, thiserror::Error)]
#[error("cannot follow {stream}: {error}")]
pub struct FollowError {
    stream: String,
    error: String,
}

/// How a stream stands at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The last sequence it gave out.
    pub last: u64,
    /// When it was created: a stream made anew counts from one again.
    pub created_at: Timestamp,
    /// Messages in it.
    pub messages: u64,
}

/// How `stream` stands.
///
/// # Errors
/// When the server does not answer or has no such stream.
pub async fn standing(js: &jetstream::Context, stream: &str) -> Result<Standing, FollowError> {
    let found = unless_refused(&js.client(), concerns("INFO", stream), js.get_stream(stream))
        .await
        .map_err(|error| fail(stream, &error))?
        .map_err(|error| fail(stream, &error))?;
    let info = found.cached_info();
    Ok(Standing {
        last: info.state.last_sequence,
        created_at: timestamp(info.created.unix_timestamp_nanos()),
        messages: info.state.messages,
    })
}

/// Every message of `stream` that fits `filter`, from sequence `from` (1 for all), in order and without gaps; then
/// those to come. Ends with an error when the connection was lost and made anew: follow again from the last sequence.
///
/// # Errors
/// When the server does not answer or has no such stream.
pub async fn follow(
    js: &jetstream::Context,
    stream: &str,
    filter: &str,
    from: u64,
) -> Result<impl Stream<Item = Result<Entry, FollowError>> + Unpin + use<>, FollowError> {
    let (following, _) = open(
        js,
        stream,
        filter,
        DeliverPolicy::ByStartSequence {
            start_sequence: from.max(1),
        },
    )
    .await?;
    Ok(Box::pin(stream::unfold(following, async |mut following| {
        let next = following.next().await;
        Some((next?, following))
    })))
}

/// Where [`read`] begins.
#[derive(Debug, Clone, Copy)]
pub enum Start {
    /// At this sequence; 1 for all.
    Sequence(u64),
    /// At what was stored then.
    Time(Timestamp),
}

/// Hands every message of `stream` that fits `filter` and is there now to `each`, in order; returns the last sequence.
///
/// # Errors
/// When the server does not answer, has no such stream, falls silent, or the connection was made anew.
pub async fn read(
    js: &jetstream::Context,
    stream: &str,
    filter: &str,
    start: Start,
    mut each: impl FnMut(&Entry),
) -> Result<Option<u64>, FollowError> {
    let policy = match start {
        Start::Sequence(sequence) => DeliverPolicy::ByStartSequence {
            start_sequence: sequence.max(1),
        },
        Start::Time(time) => DeliverPolicy::ByStartTime {
            start_time: async_nats::datetime::from_nanos(time.as_nanosecond()).map_err(|error| fail(stream, &error))?,
        },
    };
    let (mut following, mut left) = open(js, stream, filter, policy).await?;
    let mut last = None;
    while left > 0 {
        let next = tokio::time::timeout(SILENCE, following.next()).await;
        let Ok(Some(entry)) = next.map_err(|_| fail(stream, &"it fell silent"))?.transpose() else {
            return Err(fail(stream, &"it ended"));
        };
        // What others store or remove meanwhile must not make this endless.
        left = (left - 1).min(entry.pending);
        last = Some(entry.sequence);
        each(&entry);
    }
    Ok(last)
}

/// Whether a refused subject is a request of this kind about `stream`.
fn concerns(request: &str, stream: &str) -> impl Fn(&str) -> bool {
    move |subject| is_about(subject, request) && is_about(subject, stream)
}

/// An ordered consumer, and how many messages wait for it.
async fn open(
    js: &jetstream::Context,
    stream: &str,
    filter: &str,
    deliver_policy: DeliverPolicy,
) -> Result<(Following, u64), FollowError> {
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
        .map_err(|error| fail(stream, &error))?
        .map_err(|error| fail(stream, &error))?;
    let waiting = consumer.cached_info().num_pending;
    let messages = consumer.messages().await.map_err(|error| fail(stream, &error))?;
    let following = Following {
        messages,
        name: stream.to_owned(),
        connected: connect::connects(&js.client()),
        client: js.client(),
        look: tokio::time::interval(LOOK),
    };
    Ok((following, waiting))
}

/// An open ordered consumer.
struct Following {
    messages: push::Ordered,
    name: String,
    client: Client,
    connected: u64,
    look: tokio::time::Interval,
}

impl Following {
    async fn next(&mut self) -> Option<Result<Entry, FollowError>> {
        loop {
            tokio::select! {
                biased;
                message = self.messages.next() => return Some(self.entry(message?)),
                // A server that was away knows nothing of this consumer; it would take missed heartbeats to notice.
                _ = self.look.tick() => if connect::connects(&self.client) != self.connected {
                    return Some(Err(fail(&self.name, &"the connection was renewed")));
                },
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

/// Follows `stream` from its beginning for ever and hands every message to `learn`, over lost connections too. For
/// readers that keep what they learn in memory; `learn` must bear seeing a message twice.
pub async fn follow_forever(js: &jetstream::Context, stream: &str, filter: &str, mut learn: impl FnMut(&Entry)) {
    let (mut next, mut created_at) = (1, None);
    loop {
        if let Ok(standing) = standing(js, stream).await {
            // A stream made anew counts from one again.
            if created_at.replace(standing.created_at) != Some(standing.created_at) || standing.last + 1 < next {
                next = 1;
            }
            if let Ok(mut entries) = follow(js, stream, filter, next).await {
                while let Some(Ok(entry)) = entries.next().await {
                    next = entry.sequence + 1;
                    learn(&entry);
                }
            }
        }
        tracing::info!(stream, next, "following was interrupted");
        tokio::time::sleep(Duration::from_millis(200)).await;
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
    }
}
