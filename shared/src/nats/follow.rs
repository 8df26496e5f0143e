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
use tokio::time::{Instant, sleep};

use super::{
    connect, envelope,
    refusal::{is_about, unless_refused},
};

/// How often an open consumer looks whether the connection is still the one it was made on.
const LOOK: Duration = Duration::from_millis(200);

/// How often it is looked whether the end of a stream is reached.
const LOOK_WHETHER_REACHED: Duration = Duration::from_millis(10);

/// A stream that is being read and says nothing for this long is given up.
const SILENCE: Duration = Duration::from_secs(15);

/// How often in a row [`read`], and whoever else audits, tries to go on without getting any further.
pub(super) const ATTEMPTS: u32 = 3;

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
        envelope::header(&self.headers, "KV-Operation").is_some()
    }

    /// For the removal of a fact that went along when its recipient moved: from when on broadcasts are the new home's.
    pub fn moved(&self) -> Option<Timestamp> {
        let ms = envelope::header(&self.headers, envelope::MOVED)?.parse().ok()?;
        Timestamp::from_millisecond(ms).ok()
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

impl Standing {
    /// Whether whoever has followed up to `sequence` of the stream that was created then, in milliseconds since 1970, has
    /// seen all that is there. An empty stream may have given out sequences.
    pub fn is_reached(&self, sequence: u64, created_at_ms: i64) -> bool {
        self.messages == 0 || (self.created_at.as_millisecond() == created_at_ms && sequence >= self.last)
    }

    /// Waits until it is reached by whoever's sequence and time of creation `known` tells; whether it was in time.
    ///
    /// # Errors
    /// Those of `known`.
    pub async fn is_reached_within<E>(
        &self,
        patience: Duration,
        known: impl Fn() -> Result<(u64, i64), E>,
    ) -> Result<bool, E> {
        let begun = Instant::now();
        loop {
            let (sequence, created_at_ms) = known()?;
            if self.is_reached(sequence, created_at_ms) {
                return Ok(true);
            }
            if begun.elapsed() > patience {
                return Ok(false);
            }
            sleep(LOOK_WHETHER_REACHED).await;
        }
    }
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
    let (following, _) = open(js, stream, filter, from_sequence(from)).await?;
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

/// Hands every message of `stream` that fits `filter` and is there now to `each`, once and in order; returns the last
/// sequence. What interrupts it is borne as long as it advances.
///
/// # Errors
/// When three tries in a row read nothing: the server does not answer, has no such stream, or falls silent.
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
        if fruitless == ATTEMPTS {
            return Err(error);
        }
        tracing::info!(stream, last, %error, "reading was interrupted");
        if let Some(last) = last {
            policy = from_sequence(last + 1);
        }
    }
}

/// Reads until `left` messages have come, or all that wait if those are fewer.
async fn read_on(
    js: &jetstream::Context,
    stream: &str,
    filter: &str,
    policy: DeliverPolicy,
    left: &mut u64,
    mut each: impl FnMut(&Entry),
) -> Result<(), FollowError> {
    let (mut following, waiting) = open(js, stream, filter, policy).await?;
    // What others store or remove meanwhile must not make this endless.
    *left = waiting.min(*left);
    while *left > 0 {
        let next = tokio::time::timeout(SILENCE, following.next()).await;
        let next = next.map_err(|_| fail(stream, &"it fell silent"))?;
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

/// Follows `stream` from its beginning for ever and hands every message to `learn`, over lost connections too; says so
/// to `caught_up` whenever nothing more waits. For readers that keep what they learn in memory; `learn` must bear seeing
/// a message twice.
pub async fn follow_forever(
    js: &jetstream::Context,
    stream: &str,
    filter: &str,
    mut learn: impl FnMut(&Entry),
    mut caught_up: impl FnMut(),
) {
    let (mut next, mut created_at) = (1, None);
    loop {
        if let Ok(standing) = standing(js, stream).await {
            // A stream made anew counts from one again.
            if created_at.replace(standing.created_at) != Some(standing.created_at) || standing.last + 1 < next {
                next = 1;
            }
            if let Ok((mut following, waiting)) = open(js, stream, filter, from_sequence(next)).await {
                // What is empty sends nothing that could say that it is.
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_stream_is_reached_whatever_it_has_given_out() {
        let standing = |last, messages| Standing {
            last,
            created_at: Timestamp::UNIX_EPOCH,
            messages,
        };
        assert!(standing(0, 0).is_reached(0, 7) && standing(5, 0).is_reached(0, 7));
        assert!(standing(5, 1).is_reached(5, 0));
        assert!(!standing(5, 1).is_reached(4, 0) && !standing(5, 1).is_reached(5, 7));
    }
}
