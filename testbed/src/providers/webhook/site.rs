//! How a receiver answers one request.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

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

use crate::providers::api::{Api, Refusal, digest};
use crate::providers::clock::now_ms;
use crate::providers::devices::Devices;
use crate::providers::log::RecordedPush;
use crate::providers::reply::{Reply, text, typed};

/// A receiver refuses what was signed longer ago than this, or is dated further ahead, in seconds.
const TOLERANCE_S: i64 = 300;

/// The receivers: every path is one.
#[derive(Debug, Default)]
pub struct ReceiverApi {
    /// The key of each path that has one.
    secrets: RwLock<HashMap<String, hmac::Key>>,
}

/// A request to a receiver.
#[derive(Debug)]
pub struct Message {
    path: String,
    /// `webhook-id`; empty for chats.
    id: String,
    signature: Option<String>,
    timestamp: Option<String>,
    body: Bytes,
}

impl Api for ReceiverApi {
    const PROVIDER: Provider = Provider::Webhook;

    type Message = Message;

    fn generate() -> Self {
        Self::default()
    }

    fn read(&self, head: &Parts, body: &Bytes) -> Result<Message, Reply> {
        let header = |name: &'static str| text(&head.headers, &HeaderName::from_static(name)).map(str::to_owned);
        Ok(Message {
            path: head.uri.path().to_owned(),
            id: header("webhook-id").unwrap_or_default(),
            signature: header("webhook-signature"),
            timestamp: header("webhook-timestamp"),
            body: body.clone(),
        })
    }

    fn describe(&self, message: &Message) -> RecordedPush {
        RecordedPush {
            token: message.path.clone(),
            id: message.id.clone(),
            topic: message.signature.clone(),
            expiration: message.timestamp.clone(),
            ..RecordedPush::default()
        }
    }

    /// The id at this receiver; the text of a chat has none, so equal texts count as the same.
    fn identity(&self, Message { path, id, body, .. }: &Message, _: &RecordedPush) -> u128 {
        if id.is_empty() {
            digest((path, body))
        } else {
            digest((path, id))
        }
    }

    fn check(&self, head: &Parts, message: &Message, _: &Devices) -> Result<(), Refusal> {
        self.check_event(head, message, now_ms()).map_err(|(status, reason)| {
            Refusal::new(
                reason,
                Reply::new(status, typed("text/plain"), reason.to_owned().into()),
            )
        })
    }

    fn new_id() -> String {
        String::new()
    }

    fn accept(&self, _: &Message, _: &str, status: Option<StatusCode>) -> Reply {
        match status {
            None => Reply::new(StatusCode::NO_CONTENT, http::HeaderMap::new(), Bytes::new()),
            Some(status) => Reply::new(status, typed("text/plain"), Bytes::new()),
        }
    }

    fn refuse(&self, message: &Message, _: &str, status: Option<StatusCode>) -> Reply {
        self.accept(message, "", status.or(Some(StatusCode::OK)))
    }
}

impl ReceiverApi {
    pub(super) fn expect(&self, path: &str, secret: &str) -> anyhow::Result<()> {
        let bytes = secret.strip_prefix("whsec_").context("a secret begins with whsec_")?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(bytes)?);
        let mut secrets = self.secrets.write().unwrap_or_else(PoisonError::into_inner);
        secrets.insert(path.to_owned(), key);
        Ok(())
    }

    fn check_event(&self, head: &Parts, message: &Message, now_ms: i64) -> Result<(), (StatusCode, &'static str)> {
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
        let Ok(Value::Object(document)) = serde_json::from_slice(&message.body) else {
            return bad("not_json");
        };
        let secrets = self.secrets.read().unwrap_or_else(PoisonError::into_inner);
        let key = secrets.get(&message.path);
        if key.is_none() && message.signature.is_none() {
            let is_chat = document.get("text").is_some_and(Value::is_string);
            return if is_chat { Ok(()) } else { bad("no_text") };
        }
        let (id, Some(time), Some(signatures)) = (&message.id, &message.timestamp, &message.signature) else {
            return bad("not_signed");
        };
        if id.is_empty() {
            return bad("not_signed");
        }
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
        let signed = [format!("{id}.{time}.").as_bytes(), &message.body].concat();
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
}
