//! How the push service answers one request.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, StatusCode};
use serde_json::json;
use shared::provider::Provider;
use uuid::Uuid;

use super::Reason;
use super::browser::Browser;
use super::inbox::{Inbox, Waiting};
use super::token::Checker;
use crate::providers::clock::now_ms;
use crate::providers::devices::Registration;
use crate::providers::log::RecordedPush;
use crate::providers::reply::{Reply, Site, TRACEPARENT, text, typed};
use crate::providers::simulator::Records;

static TTL: HeaderName = HeaderName::from_static("ttl");
static URGENCY: HeaderName = HeaderName::from_static("urgency");
static TOPIC: HeaderName = HeaderName::from_static("topic");
static APNS_ID: HeaderName = HeaderName::from_static("apns-id");

/// The longest body that push services must take, and that most of them take (RFC 8030, section 7.2).
const BODY_BYTES_MAX: usize = 4096;

/// The state that all connections of a simulator share.
#[derive(Debug)]
pub(crate) struct WebPushSite {
    /// By token, the last part of the endpoint's path.
    pub(super) browsers: RwLock<HashMap<String, Browser>>,
    /// Has every token that is not in `browsers`.
    pub(super) of_rfc: Browser,
    pub(super) tokens: Checker,
    pub(super) inbox: Inbox,
    pub(super) records: Arc<Records>,
}

/// A connection's number.
type Connection = u64;

impl Site for WebPushSite {
    const ALPN: &'static [&'static [u8]] = &[b"h2", b"http/1.1"];

    type Session = Connection;

    fn open(&self, connection: u64) -> Connection {
        connection
    }

    fn unlocked(&self, _: &Connection) -> bool {
        true
    }

    fn records(&self) -> &Arc<Records> {
        &self.records
    }

    fn answer(&self, connection: &mut Connection, head: &Parts, body: Bytes) -> Reply {
        let now_ms = now_ms();
        let header = |name: &HeaderName| text(&head.headers, name).map(str::to_owned);
        let mut push = RecordedPush {
            at_ms: now_ms,
            provider: Provider::WebPush.as_str(),
            connection: *connection,
            token: head.uri.path().strip_prefix("/push/").unwrap_or_default().to_owned(),
            collapse_id: header(&TOPIC),
            priority: header(&URGENCY),
            expiration: header(&TTL),
            traceparent: header(&TRACEPARENT),
            ..RecordedPush::default()
        };
        let reply = match self.check(&mut push, head, &body) {
            Ok(()) => self.accept(&mut push, &origin(head)),
            Err(reason) => {
                push.status = reason.http_status().as_u16();
                push.reason = Some(reason.as_str().to_owned());
                refusal(reason.http_status(), reason.as_str())
            }
        };
        let identity = push.delivered.then(|| identity(&push.token, &push.payload));
        let reason = push.reason.clone();
        self.records
            .log
            .record(*connection, identity, reason.as_deref(), || push);
        reply
    }
}

impl WebPushSite {
    /// Checks a request and decrypts its body.
    fn check(&self, push: &mut RecordedPush, head: &Parts, body: &Bytes) -> Result<(), Reason> {
        if head.method != Method::POST {
            return Err(Reason::MethodNotAllowed);
        }
        if push.token.is_empty() || push.token.contains('/') {
            return Err(Reason::NotFound);
        }
        let authorization = text(&head.headers, &AUTHORIZATION).ok_or(Reason::MissingAuthorization)?;
        let key = self.tokens.check(authorization, &origin(head), push.at_ms / 1000)?;
        push.topic = Some(key.clone());
        match self.records.devices.look_up(&push.token, &key) {
            Registration::Registered => {}
            Registration::OtherOwner => return Err(Reason::VapidPkHashMismatch),
            Registration::Unknown => return Err(Reason::NotFound),
        }
        check_headers(push, &head.headers)?;
        if body.len() > BODY_BYTES_MAX {
            return Err(Reason::PayloadTooLarge);
        }
        let browsers = self.browsers.read().unwrap_or_else(PoisonError::into_inner);
        let browser = browsers.get(&push.token).unwrap_or(&self.of_rfc);
        push.payload = browser.decrypt(body).map_err(|_| Reason::DecryptionFailed)?.into();
        Ok(())
    }

    fn accept(&self, push: &mut RecordedPush, origin: &str) -> Reply {
        push.id = Uuid::new_v4().to_string();
        let ruling = self.records.script.rule(&push.token);
        let Some(ruling) = ruling else {
            push.status = StatusCode::CREATED.as_u16();
            push.delivered = !self.keep(push);
            return created(push, origin);
        };
        let answer = &ruling.answer;
        let known = answer.reason.as_deref().and_then(Reason::parse);
        let status = match (&answer.reason, answer.status) {
            (None, None) => StatusCode::CREATED,
            _ => answer.status_or(known.map(Reason::http_status)),
        };
        push.status = status.as_u16();
        push.reason.clone_from(&answer.reason);
        push.delivered = answer.delivers();
        let reply = if let Some(reason) = &answer.reason {
            refusal(status, reason)
        } else {
            let mut reply = created(push, origin);
            *reply.response.status_mut() = status;
            reply
        };
        reply.ruled(&ruling, push.at_ms)
    }

    /// Keeps the push if its browser is away; returns whether it is.
    fn keep(&self, push: &RecordedPush) -> bool {
        let life_s: i64 = push.expiration.as_deref().and_then(|ttl| ttl.parse().ok()).unwrap_or(0);
        let waiting = Waiting {
            topic: push.collapse_id.clone(),
            expires_ms: push.at_ms.saturating_add(life_s.saturating_mul(1000)),
            payload: push.payload.clone(),
        };
        self.inbox.keep(&push.token, waiting)
    }
}

fn check_headers(push: &RecordedPush, headers: &HeaderMap) -> Result<(), Reason> {
    if push.expiration.as_deref().is_none_or(|ttl| ttl.parse::<u32>().is_err()) {
        return Err(Reason::BadTtl);
    }
    let is_urgency = |word: &str| ["very-low", "low", "normal", "high"].contains(&word);
    if push.priority.as_deref().is_some_and(|word| !is_urgency(word)) {
        return Err(Reason::BadUrgency);
    }
    let is_topic = |topic: &str| {
        let is_base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=32).contains(&topic.len()) && topic.bytes().all(is_base64url)
    };
    if push.collapse_id.as_deref().is_some_and(|topic| !is_topic(topic)) {
        return Err(Reason::BadWebPushTopic);
    }
    if text(headers, &CONTENT_ENCODING) != Some("aes128gcm") {
        return Err(Reason::BadContentEncoding);
    }
    Ok(())
}

/// The origin by which the client reached us: the authority of HTTP/2, or the host of HTTP/1.1.
fn origin(head: &Parts) -> String {
    let authority = head.uri.authority().map(Authority::as_str);
    let host = authority.or_else(|| text(&head.headers, &HOST)).unwrap_or_default();
    format!("https://{}", host.strip_suffix(":443").unwrap_or(host))
}

/// 201 with the URL of the message, which is a capability like the endpoint, and Apple's id.
fn created(push: &RecordedPush, origin: &str) -> Reply {
    let mut headers = HeaderMap::with_capacity(4);
    if let Ok(location) = HeaderValue::try_from(format!("{origin}/message/{}", Uuid::new_v4())) {
        headers.insert(LOCATION, location);
    }
    if let Ok(id) = HeaderValue::try_from(&push.id) {
        headers.insert(APNS_ID.clone(), id);
    }
    Reply::new(StatusCode::CREATED, headers, Bytes::new())
}

fn refusal(status: StatusCode, reason: &str) -> Reply {
    Reply::new(
        status,
        typed("application/json"),
        json!({ "reason": reason }).to_string().into(),
    )
}

/// The identity of a push. Requests carry no id, so equal payloads for one browser count as the same push.
fn identity(token: &str, payload: &[u8]) -> u128 {
    let mut hasher = DefaultHasher::new();
    token.hash(&mut hasher);
    payload.hash(&mut hasher);
    u128::from(hasher.finish())
}
