//! Publishing to a stream and waiting until the message is stored.

use std::future::{Future, IntoFuture};

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        context::{PublishError, PublishErrorKind},
    },
};
use bytes::Bytes;

use super::{direct::NoAnswer, refusal};

/// A stream's acknowledgement of a stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The name of the stream.
    pub stream: String,
    /// The message's sequence in it.
    pub sequence: u64,
    /// The stream already had a message with this id; nothing was added.
    pub duplicate: bool,
    /// The sum after what was added, if the stream is one of counters.
    pub value: Option<String>,
}

/// The stream did not acknowledge the message. It may be stored all the same unless the variant rules that out: publish
/// it again with the same message id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotStored {
    /// The stream is at its limit and refused. Certainly not stored.
    #[error("the stream is full")]
    Full,
    /// No stream takes this subject. Certainly not stored.
    #[error("no stream takes this subject")]
    NoStream,
    /// Larger than the server accepts. Certainly not stored.
    #[error("the message is too large for the server")]
    TooLarge,
    /// The server does not permit this process to publish there. Certainly not stored; only a change of the server's
    /// permissions or of the process's key helps.
    #[error("the server does not permit this publish")]
    Forbidden,
    /// The server did not answer in time. The message may be stored.
    #[error("the server did not answer in time")]
    NoAnswer,
    /// Refused for another reason, such as an expectation that was not met.
    #[error("the stream refused")]
    Refused,
}

/// Sends a message and returns a future of its acknowledgement, so that many messages can be in flight at once. Waits
/// only while too many are unacknowledged.
///
/// # Errors
/// When the message could not be sent.
pub async fn send(
    js: &jetstream::Context,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
) -> Result<impl Future<Output = Result<Stored, NotStored>> + Send + use<>, NotStored> {
    let this = subject.clone();
    let refused = refusal::refused(&js.client(), move |subject| refusal::is_same(subject, &this));
    let acknowledged = js.publish_with_headers(subject, headers, payload).await?;
    Ok(async move {
        let ack = tokio::select! {
            biased;
            ack = acknowledged.into_future() => ack?,
            _ = refused => return Err(NotStored::Forbidden),
        };
        Ok(Stored {
            stream: ack.stream,
            sequence: ack.sequence,
            duplicate: ack.duplicate,
            value: ack.value,
        })
    })
}

/// Sends a message and waits until it is stored.
///
/// # Errors
/// When the stream did not acknowledge it; see [`NotStored`].
pub async fn store(
    js: &jetstream::Context,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
) -> Result<Stored, NotStored> {
    send(js, subject, headers, payload).await?.await
}

/// What is written depends on what is read first.
impl From<NoAnswer> for NotStored {
    fn from(error: NoAnswer) -> Self {
        match error {
            NoAnswer::Silent => Self::NoAnswer,
            NoAnswer::Forbidden => Self::Forbidden,
        }
    }
}

impl From<PublishError> for NotStored {
    fn from(error: PublishError) -> Self {
        match error.kind() {
            PublishErrorKind::StreamNotFound => Self::NoStream,
            PublishErrorKind::MaxPayloadExceeded => Self::TooLarge,
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::MaxAckPending => {
                Self::NoAnswer
            }
            PublishErrorKind::WrongLastMessageId | PublishErrorKind::WrongLastSequence => Self::Refused,
            PublishErrorKind::Other => from_server(&error),
        }
    }
}

/// The client has no error kind for limits; the server's error code identifies them.
fn from_server(error: &PublishError) -> NotStored {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<jetstream::Error>());
    match source.map(|error| error.error_code().0) {
        // JSStreamStoreFailedF, JSInsufficientResourcesErr, JSStorageResourcesExceededErr
        Some(10_077 | 10_023 | 10_047) => NotStored::Full,
        // JSStreamMessageExceedsMaximumErr
        Some(10_054) => NotStored::TooLarge,
        Some(_) => NotStored::Refused,
        None => NotStored::NoAnswer,
    }
}
