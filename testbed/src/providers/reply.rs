//! How a simulator answers one request, independent of the protocol version.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::request::Parts;
use http::{Response, StatusCode};
use serde_json::Value;

use super::script::{Act, Answer, RetryAfter, Ruling};
use super::simulator::Records;

/// The W3C Trace Context header.
pub(crate) static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The behaviour of one provider behind a listener.
pub(crate) trait Site: Send + Sync + 'static {
    /// The ALPN protocols it offers, the preferred one first. A client that negotiates none gets the last: Apple answers
    /// HTTP/2 to those, and not every client asks.
    const ALPN: &'static [&'static [u8]];

    /// The state of one connection.
    type Session: Send + 'static;

    /// Returns the state of a new connection, whose number counts from 1.
    fn open(&self, connection: u64) -> Self::Session;

    /// Answers a request that has arrived completely.
    fn answer(&self, session: &mut Self::Session, head: &Parts, body: Bytes) -> Reply;

    /// Whether this connection may open its full number of streams.
    fn unlocked(&self, session: &Self::Session) -> bool;

    /// The devices, script and log that all connections share.
    fn records(&self) -> &Arc<Records>;
}

/// The response, its delay, and what happens to the connection.
#[derive(Debug)]
pub struct Reply {
    pub(crate) response: Response<Bytes>,
    pub(crate) delay: Duration,
    pub(crate) act: Act,
}

impl Reply {
    pub(crate) fn new(status: StatusCode, headers: HeaderMap, body: Bytes) -> Self {
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Self {
            response,
            delay: Duration::ZERO,
            act: Act::Respond,
        }
    }

    /// An answer in JSON.
    pub(crate) fn json(status: StatusCode, body: &Value) -> Self {
        Self::new(status, typed("application/json"), body.to_string().into())
    }

    /// The answer to a path that is none of the API's.
    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, typed("text/html"), "<html>".into())
    }

    /// Applies a scripted answer, except its status and reason: headers, body, delay and act.
    pub(crate) fn ruled(mut self, ruling: &Ruling, now_ms: i64) -> Self {
        let answer: &Answer = &ruling.answer;
        if let Some(retry_after) = answer.retry_after {
            self.response
                .headers_mut()
                .insert(RETRY_AFTER, retry_after_value(retry_after, now_ms));
        }
        if let Some(body) = &answer.body {
            *self.response.body_mut() = Bytes::copy_from_slice(body.as_bytes());
        }
        self.delay = Duration::from_millis(ruling.delay_ms);
        self.act = answer.act.clone();
        self
    }
}

/// Headers with a content type and room for a few more.
pub(crate) fn typed(content_type: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers
}

/// Whether a header has this user and password (RFC 7617).
pub(crate) fn is_basic(headers: &HeaderMap, user: &str, password: &str) -> bool {
    let given = text(headers, &AUTHORIZATION)
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
        .and_then(|(_, text)| STANDARD.decode(text.trim()).ok());
    given.is_some_and(|given| given == format!("{user}:{password}").into_bytes())
}

/// The value of a header, if it is present and is text.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn retry_after_value(retry_after: RetryAfter, now_ms: i64) -> HeaderValue {
    match retry_after {
        RetryAfter::Seconds(seconds) => HeaderValue::from(seconds),
        RetryAfter::DateIn(seconds) => {
            // The date has whole seconds. It is rounded up so that a client that obeys it does not retry early.
            let at = now_ms.saturating_add(999) / 1000 + i64::try_from(seconds).unwrap_or(i64::MAX / 2);
            jiff::Timestamp::from_second(at)
                .ok()
                .and_then(|at| {
                    jiff::fmt::rfc2822::DateTimePrinter::new()
                        .timestamp_to_rfc9110_string(&at)
                        .ok()
                })
                .and_then(|date| HeaderValue::try_from(date).ok())
                .unwrap_or_else(|| HeaderValue::from(seconds))
        }
    }
}
