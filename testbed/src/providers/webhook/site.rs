//! How a receiver answers one request.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context as _;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::Value;
use shared::provider::Provider;

use crate::providers::clock::now_ms;
use crate::providers::log::RecordedPush;
use crate::providers::reply::{Reply, Site, TRACEPARENT, text, typed};
use crate::providers::simulator::Records;

/// A receiver refuses what was signed longer ago than this, or is dated further ahead, in seconds.
const TOLERANCE_S: i64 = 300;

/// The state that all connections share.
#[derive(Debug)]
pub(crate) struct ReceiverSite {
    /// The key of each path that has one.
    pub(super) secrets: RwLock<HashMap<String, hmac::Key>>,
    pub(super) records: Arc<Records>,
}

impl Site for ReceiverSite {
    const ALPN: &'static [&'static [u8]] = &[b"h2", b"http/1.1"];

    /// The number of the connection.
    type Session = u64;

    fn open(&self, connection: u64) -> u64 {
        connection
    }

    fn unlocked(&self, _: &u64) -> bool {
        true
    }

    fn records(&self) -> &Arc<Records> {
        &self.records
    }

    fn answer(&self, connection: &mut u64, head: &Parts, body: Bytes) -> Reply {
        let header = |name: &'static str| text(&head.headers, &HeaderName::from_static(name));
        let id = header("webhook-id").unwrap_or_default();
        let path = head.uri.path();
        let mut push = RecordedPush {
            at_ms: now_ms(),
            provider: Provider::Webhook.as_str(),
            connection: *connection,
            token: path.to_owned(),
            id: id.to_owned(),
            topic: header("webhook-signature").map(str::to_owned),
            expiration: header("webhook-timestamp").map(str::to_owned),
            traceparent: text(&head.headers, &TRACEPARENT).map(str::to_owned),
            payload: body.clone(),
            ..RecordedPush::default()
        };
        let reply = match self.check(head, &body, push.at_ms) {
            Ok(()) => self.accept(&mut push),
            Err((status, reason)) => {
                push.status = status.as_u16();
                push.reason = Some(reason.to_owned());
                Reply::new(status, typed("text/plain"), reason.into())
            }
        };
        let identity = push.delivered.then(|| identity(path, id, &body));
        let reason = push.reason.clone();
        self.records
            .log
            .record(*connection, identity, reason.as_deref(), || push);
        reply
    }
}

impl ReceiverSite {
    pub(super) fn expect(&self, path: &str, secret: &str) -> anyhow::Result<()> {
        let bytes = secret.strip_prefix("whsec_").context("a secret begins with whsec_")?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(bytes)?);
        let mut secrets = self.secrets.write().unwrap_or_else(PoisonError::into_inner);
        secrets.insert(path.to_owned(), key);
        Ok(())
    }

    fn check(&self, head: &Parts, body: &[u8], now_ms: i64) -> Result<(), (StatusCode, &'static str)> {
        let bad = |reason| Err((StatusCode::BAD_REQUEST, reason));
        if head.method != Method::POST {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "method"));
        }
        if head
            .headers
            .get(CONTENT_TYPE)
            .is_none_or(|kind| kind != "application/json")
        {
            return bad("content_type");
        }
        let Ok(Value::Object(document)) = serde_json::from_slice(body) else {
            return bad("not_json");
        };
        let secrets = self.secrets.read().unwrap_or_else(PoisonError::into_inner);
        let key = secrets.get(head.uri.path());
        if key.is_none() && !head.headers.contains_key("webhook-signature") {
            let is_chat = document.get("text").is_some_and(Value::is_string);
            return if is_chat { Ok(()) } else { bad("no_text") };
        }
        let header = |name: &'static str| text(&head.headers, &HeaderName::from_static(name));
        let (Some(id), Some(time), Some(signatures)) = (
            header("webhook-id"),
            header("webhook-timestamp"),
            header("webhook-signature"),
        ) else {
            return bad("not_signed");
        };
        let age = time.parse().map(|time: i64| now_ms / 1000 - time);
        if !age.is_ok_and(|age| age.abs() <= TOLERANCE_S) {
            return bad("timestamp");
        }
        let is_event = document.get("type").is_some_and(Value::is_string)
            && document.get("timestamp").is_some_and(Value::is_string)
            && document.get("data").is_some_and(Value::is_object);
        if !is_event {
            return bad("not_an_event");
        }
        let Some(key) = key else { return Ok(()) };
        let signed = [format!("{id}.{time}.").as_bytes(), body].concat();
        let is_ours = |signature: &str| {
            let bytes = signature
                .strip_prefix("v1,")
                .and_then(|text| STANDARD.decode(text).ok());
            bytes.is_some_and(|bytes| hmac::verify(key, &signed, &bytes).is_ok())
        };
        if signatures.split(' ').any(is_ours) {
            Ok(())
        } else {
            Err((StatusCode::UNAUTHORIZED, "signature"))
        }
    }

    fn accept(&self, push: &mut RecordedPush) -> Reply {
        let Some(ruling) = self.records.script.rule(&push.token) else {
            (push.status, push.delivered) = (204, true);
            return Reply::new(StatusCode::NO_CONTENT, http::HeaderMap::new(), Bytes::new());
        };
        let answer = &ruling.answer;
        let status = answer.status_or(None);
        push.status = status.as_u16();
        push.delivered = answer.delivers();
        if !status.is_success() {
            push.reason = Some(status.as_str().to_owned());
        }
        Reply::new(status, typed("text/plain"), Bytes::new()).ruled(&ruling, push.at_ms)
    }
}

/// The identity of a webhook: its id at this receiver; the text of a chat has none, so equal texts count as the same.
fn identity(path: &str, id: &str, body: &[u8]) -> u128 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    if id.is_empty() {
        body.hash(&mut hasher);
    } else {
        id.hash(&mut hasher);
    }
    u128::from(hasher.finish())
}
