//! How the FCM simulator answers one request.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use shared::provider::Provider;

use super::ErrorCode;
use super::error::{error_body, scripted_body};
use super::message::{self, Message};
use super::oauth::{Grant, OAuth};
use crate::providers::clock::now_ms;
use crate::providers::devices::Registration;
use crate::providers::log::RecordedPush;
use crate::providers::reply::{Reply, Site, TRACEPARENT, text, typed};
use crate::providers::simulator::Records;

/// The state that all connections of an FCM simulator share.
#[derive(Debug)]
pub(crate) struct FcmSite {
    pub(super) oauth: OAuth,
    pub(super) authenticate: bool,
    pub(super) refuses_tokens: AtomicBool,
    pub(super) token_life: Duration,
    pub(super) records: Arc<Records>,
}

/// A connection's number.
type Connection = u64;

impl Site for FcmSite {
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
        let path = head.uri.path();
        let project = path
            .strip_prefix("/v1/projects/")
            .and_then(|rest| rest.strip_suffix("/messages:send"))
            .filter(|project| !project.is_empty() && !project.contains('/'));
        match (&head.method, path, project) {
            (&Method::POST, "/token" | "/oauth2/v4/token", _) => self.token(&body),
            (&Method::POST, _, Some(project)) => self.send(*connection, project, head, &body),
            _ => {
                let message = "The requested URL was not found on this server.";
                json_reply(
                    StatusCode::NOT_FOUND,
                    &error_body(StatusCode::NOT_FOUND, "NOT_FOUND", message, json!([])),
                )
            }
        }
    }
}

impl FcmSite {
    fn token(&self, form: &[u8]) -> Reply {
        if self.refuses_tokens.load(Ordering::Relaxed) {
            let body = json!({ "error": "temporarily_unavailable" });
            return json_reply(StatusCode::SERVICE_UNAVAILABLE, &body);
        }
        match self.oauth.grant(form, now_ms()) {
            Ok(token) => {
                self.records.log.access_token();
                let body = json!({
                    "access_token": token,
                    "expires_in": self.token_life.as_secs(),
                    "token_type": "Bearer",
                });
                json_reply(StatusCode::OK, &body)
            }
            Err(refused) => {
                let body = json!({ "error": refused.error, "error_description": refused.description });
                json_reply(StatusCode::BAD_REQUEST, &body)
            }
        }
    }

    fn send(&self, connection: u64, project: &str, head: &Parts, body: &Bytes) -> Reply {
        let now_ms = now_ms();
        let mut push = RecordedPush {
            at_ms: now_ms,
            provider: Provider::Fcm.as_str(),
            connection,
            topic: Some(project.to_owned()),
            traceparent: text(&head.headers, &TRACEPARENT).map(str::to_owned),
            payload: body.clone(),
            ..RecordedPush::default()
        };
        let reply = match self.check(project, head, body, now_ms) {
            Ok(message) => self.accept(project, message, &mut push),
            Err(refusal) => {
                push.status = refusal.status.as_u16();
                push.reason = Some(refusal.code.to_owned());
                push.token = refusal.target;
                json_reply(refusal.status, &refusal.body)
            }
        };
        let identity = push.delivered.then(|| identity(project, body));
        let reason = push.reason.clone();
        self.records
            .log
            .record(connection, identity, reason.as_deref(), || push);
        reply
    }

    /// Checks a request: authorization, message and registration, in Google's order.
    fn check(&self, project: &str, head: &Parts, body: &[u8], now_ms: i64) -> Result<Message, Refusal> {
        self.authorize(project, head, now_ms)?;
        let message = message::read(body).map_err(|body| Refusal {
            status: StatusCode::BAD_REQUEST,
            code: ErrorCode::InvalidArgument.as_str(),
            body,
            target: String::new(),
        })?;
        if message.target_kind == "token" || message.target_kind == "fid" {
            match self.records.devices.look_up(&message.target, project) {
                Registration::Registered => {}
                Registration::OtherOwner => return Err(Refusal::to(ErrorCode::SenderIdMismatch, message.target)),
                Registration::Unknown => return Err(Refusal::to(ErrorCode::Unregistered, message.target)),
            }
        }
        Ok(message)
    }

    fn authorize(&self, project: &str, head: &Parts, now_ms: i64) -> Result<(), Refusal> {
        if !self.authenticate {
            return Ok(());
        }
        let token = text(&head.headers, &AUTHORIZATION)
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        match token.map(|token| self.oauth.check(token, project, now_ms)) {
            Some(Grant::Yes) => Ok(()),
            Some(Grant::OtherProject) => Err(Refusal::new(ErrorCode::PermissionDenied)),
            Some(Grant::No) | None => Err(Refusal::new(ErrorCode::Unauthenticated)),
        }
    }

    fn accept(&self, project: &str, message: Message, push: &mut RecordedPush) -> Reply {
        push.collapse_id = message.collapse_key;
        push.priority = message.priority;
        push.expiration = message.ttl;
        if message.validate_only {
            push.token = message.target;
            push.status = 200;
            push.id = format!("projects/{project}/messages/fake_message_id");
            return json_reply(StatusCode::OK, &json!({ "name": push.id }));
        }
        let ruling = self.records.script.rule(&message.target);
        push.token = message.target;
        push.id = format!(
            "projects/{project}/messages/0:{:016}%{:016x}",
            push.at_ms * 1000,
            rand::random::<u64>()
        );
        let Some(ruling) = ruling else {
            push.status = 200;
            push.delivered = true;
            return json_reply(StatusCode::OK, &json!({ "name": push.id }));
        };
        let answer = &ruling.answer;
        let known = answer.reason.as_deref().and_then(ErrorCode::parse);
        let status = answer.status_or(known.map(ErrorCode::http_status));
        push.status = status.as_u16();
        push.reason.clone_from(&answer.reason);
        push.delivered = answer.delivers();
        let body = match &answer.reason {
            Some(reason) => scripted_body(reason, status),
            None => json!({ "name": push.id }),
        };
        json_reply(status, &body).ruled(&ruling, push.at_ms)
    }
}

/// A refusal that does not come from the script.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    body: Value,
    target: String,
}

impl Refusal {
    fn new(code: ErrorCode) -> Self {
        Self::to(code, String::new())
    }

    fn to(code: ErrorCode, target: String) -> Self {
        Self {
            status: code.http_status(),
            code: code.as_str(),
            body: code.body(),
            target,
        }
    }
}

fn json_reply(status: StatusCode, body: &Value) -> Reply {
    Reply::new(
        status,
        typed("application/json; charset=UTF-8"),
        body.to_string().into(),
    )
}

/// The identity of a push. Requests to FCM carry no id, so equal messages to one project count as the same push.
fn identity(project: &str, body: &[u8]) -> u128 {
    let mut hasher = DefaultHasher::new();
    project.hash(&mut hasher);
    body.hash(&mut hasher);
    u128::from(hasher.finish())
}
