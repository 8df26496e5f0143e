//! One HTTP/2 connection, and what became of a request on it.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::{Request, Response};
use tokio::{sync::Notify, time::Instant};

use super::dial::{Host, SendRequest};

/// Ask for the peer's limit anew after this many answers; it may change at any time.
const LIMIT_CHECKED_EVERY: u64 = 64;

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) host: Arc<Host>,
    pub(super) opened: Instant,
    sender: SendRequest,
    closed: AtomicBool,
    /// Tells the driver to look at the peer's limit.
    pub(super) recheck: Arc<Notify>,
    answers: AtomicU64,
    /// Microseconds after `opened`.
    last_answer: AtomicU64,
}

/// Why no answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The peer refused the stream, so did not look at it (RFC 9113, section 8.7).
    Refused,
    /// The connection ended before the request was processed: never sent, or above the last stream of a GOAWAY
    /// (RFC 9113, section 6.8).
    Unsent,
    /// The connection or the stream broke after sending.
    Broken,
}

impl Connection {
    pub(super) fn new(id: u64, host: Arc<Host>, sender: SendRequest) -> Self {
        Self {
            id,
            host,
            opened: Instant::now(),
            sender,
            closed: AtomicBool::new(false),
            recheck: Arc::default(),
            answers: AtomicU64::new(0),
            last_answer: AtomicU64::new(0),
        }
    }

    /// Sends `request` and waits for the head of the answer.
    pub(super) async fn send(&self, request: Request<Bytes>) -> Result<Response<RecvStream>, NoAnswer> {
        match self.exchange(request).await {
            Ok(answer) => {
                self.last_answer.store(self.age_us(), Ordering::Relaxed);
                let answers = self.answers.fetch_add(1, Ordering::Relaxed);
                // The first answers open the connection up; see `initial_max_send_streams`.
                if answers < 4 || answers.is_multiple_of(LIMIT_CHECKED_EVERY) {
                    self.recheck.notify_one();
                }
                Ok(answer)
            }
            Err(why) => {
                if why == NoAnswer::Refused {
                    self.recheck.notify_one();
                }
                Err(why)
            }
        }
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<RecvStream>, NoAnswer> {
        let mut sender = self.sender.clone();
        let (head, body) = request.into_parts();
        let sent = match poll_fn(|context| sender.poll_ready(context)).await {
            Ok(()) => sender.send_request(Request::from_parts(head, ()), false),
            Err(error) => Err(error),
        };
        // What h2 does not take, it does not send: the connection has ended, or the peer has said that it will.
        let (answer, mut stream) = sent.map_err(|_| {
            self.close();
            NoAnswer::Unsent
        })?;
        // If the stream has ended meanwhile, its answer says why.
        let (Ok(()) | Err(_)) = stream.send_data(body, true);
        answer.await.map_err(|error| classify(&error))
    }

    /// Says that new requests cannot be sent any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether new requests cannot be sent any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Whether nothing at all was answered since `then`.
    pub(super) fn silent_since(&self, then: Instant) -> bool {
        let then = u64::try_from(then.duration_since(self.opened).as_micros()).unwrap_or(u64::MAX);
        self.last_answer.load(Ordering::Relaxed) <= then
    }

    fn age_us(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

fn classify(error: &h2::Error) -> NoAnswer {
    if error.is_go_away() && error.is_remote() {
        // h2 gives the peer's GOAWAY as the error of exactly those streams that lie above its last stream.
        NoAnswer::Unsent
    } else if error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM) {
        NoAnswer::Refused
    } else {
        NoAnswer::Broken
    }
}

/// The body of an answer; `None` if it breaks off or has more than `most` bytes.
pub(super) async fn read(mut body: RecvStream, most: usize) -> Option<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece.ok()?;
        body.flow_control().release_capacity(piece.len()).ok()?;
        if whole.len() + piece.len() > most {
            return None;
        }
        whole.extend_from_slice(&piece);
    }
    Some(whole.freeze())
}
