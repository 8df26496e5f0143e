//! One HTTP/2 connection, and what became of a request on it.

use std::{
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
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
            recheck: Arc::default(),
            answers: AtomicU64::new(0),
            last_answer: AtomicU64::new(0),
        }
    }

    /// Sends `request` and waits for the head of the answer.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, NoAnswer> {
        let sent = self.sender.clone().try_send_request(request);
        match sent.await {
            Ok(answer) => {
                self.last_answer.store(self.age_us(), Ordering::Relaxed);
                let answers = self.answers.fetch_add(1, Ordering::Relaxed);
                // The first answers open the connection up; see `initial_max_send_streams`.
                if answers < 4 || answers.is_multiple_of(LIMIT_CHECKED_EVERY) {
                    self.recheck.notify_one();
                }
                Ok(answer)
            }
            Err(failed) if failed.message().is_some() => Err(NoAnswer::Unsent),
            Err(failed) => {
                let why = classify(failed.error());
                if why == NoAnswer::Refused {
                    self.recheck.notify_one();
                }
                Err(why)
            }
        }
    }

    /// Whether new requests cannot be sent any more.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
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

fn classify(error: &hyper::Error) -> NoAnswer {
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    match h2 {
        // h2 gives the peer's GOAWAY as the error of exactly those streams that lie above its last stream.
        Some(h2) if h2.is_go_away() && h2.is_remote() => NoAnswer::Unsent,
        Some(h2) if h2.is_reset() && h2.is_remote() && h2.reason() == Some(h2::Reason::REFUSED_STREAM) => {
            NoAnswer::Refused
        }
        _ => NoAnswer::Broken,
    }
}
