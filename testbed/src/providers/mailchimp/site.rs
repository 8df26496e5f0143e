//! How the simulator of Mailchimp Transactional answers one request (Mailchimp: "Send new message").

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, StatusCode, request::Parts};
use serde_json::{Value, json};
use shared::{address::Mailbox, provider::Provider};

use crate::providers::{
    clock::now_ms,
    log::RecordedPush,
    reply::{Reply, Site, TRACEPARENT, text, typed},
    simulator::Records,
};

/// Why a mail to one recipient is refused.
const REJECT_REASONS: [&str; 9] = [
    "hard-bounce",
    "soft-bounce",
    "spam",
    "unsub",
    "custom",
    "invalid-sender",
    "unsigned",
    "test-mode-limit",
    "rule",
];

/// Errors of a request as a whole, which come with 500 as far as they have no status of their own.
const ERRORS: [(&str, StatusCode); 6] = [
    ("Invalid_Key", StatusCode::UNAUTHORIZED),
    ("PaymentRequired", StatusCode::INTERNAL_SERVER_ERROR),
    ("Unknown_Subaccount", StatusCode::INTERNAL_SERVER_ERROR),
    ("ValidationError", StatusCode::INTERNAL_SERVER_ERROR),
    ("GeneralError", StatusCode::INTERNAL_SERVER_ERROR),
    ("ServiceUnavailable", StatusCode::SERVICE_UNAVAILABLE),
];

/// The state that all connections share.
#[derive(Debug)]
pub(crate) struct MailchimpSite {
    pub(super) api_key: String,
    pub(super) records: Arc<Records>,
}

/// Whether `reason` is one of Mailchimp's.
pub(super) fn is_reason(reason: &str) -> bool {
    REJECT_REASONS.contains(&reason) || ERRORS.iter().any(|(name, _)| *name == reason)
}

impl Site for MailchimpSite {
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
        let is_path = matches!(
            head.uri.path(),
            "/api/1.0/messages/send" | "/api/1.0/messages/send.json"
        );
        if head.method == Method::POST && is_path {
            self.send(*connection, head, &body)
        } else {
            Reply::new(StatusCode::NOT_FOUND, typed("text/html"), "<html>".into())
        }
    }
}

impl MailchimpSite {
    fn send(&self, connection: u64, head: &Parts, body: &Bytes) -> Reply {
        let request: Value = serde_json::from_slice(body).unwrap_or_default();
        let at = |pointer: &str| request.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let mut push = RecordedPush {
            at_ms: now_ms(),
            provider: Provider::Mailchimp.as_str(),
            connection,
            token: at("/message/to/0/email").unwrap_or_default(),
            topic: at("/message/from_email"),
            collapse_id: at("/message/metadata/peal_delivery"),
            traceparent: text(&head.headers, &TRACEPARENT).map(str::to_owned),
            payload: body.clone(),
            ..RecordedPush::default()
        };
        let reply = match self.check(&request) {
            Ok(()) => self.accept(&mut push),
            Err(name) => {
                push.reason = Some(name.to_owned());
                let (status, reply) = error(name, None);
                push.status = status.as_u16();
                reply
            }
        };
        let mut identity = DefaultHasher::new();
        push.collapse_id.hash(&mut identity);
        let identity = push.delivered.then(|| u128::from(identity.finish()));
        let reason = push.reason.clone();
        self.records
            .log
            .record(connection, identity, reason.as_deref(), || push);
        reply
    }

    /// Checks a request. The error is its name.
    fn check(&self, request: &Value) -> Result<(), &'static str> {
        if request["key"] != self.api_key.as_str() {
            return Err("Invalid_Key");
        }
        let mail = &request["message"];
        let is_mailbox = |value: &Value| value.as_str().is_some_and(|email| email.parse::<Mailbox>().is_ok());
        let to = mail["to"].as_array().map_or(&[][..], Vec::as_slice);
        let recipients_hold = !to.is_empty() && to.iter().all(|to| is_mailbox(&to["email"]));
        let has_content = mail["text"].is_string() || mail["html"].is_string();
        let is_file = |file: &Value| {
            let content = file["content"]
                .as_str()
                .and_then(|content| STANDARD.decode(content).ok());
            content.is_some() && file["name"].is_string() && file["type"].is_string()
        };
        let files_hold = ["attachments", "images"].iter().all(|kind| {
            let files = mail[kind].as_array().map_or(&[][..], Vec::as_slice);
            files.iter().all(is_file)
        });
        if recipients_hold && is_mailbox(&mail["from_email"]) && has_content && files_hold {
            Ok(())
        } else {
            Err("ValidationError")
        }
    }

    fn accept(&self, push: &mut RecordedPush) -> Reply {
        push.id = format!("{:032x}", rand::random::<u128>());
        let answered = |status: &str, reason: Option<&str>| {
            let body = json!([{ "email": push.token, "status": status, "_id": push.id, "reject_reason": reason }]);
            Reply::new(StatusCode::OK, typed("application/json"), body.to_string().into())
        };
        let Some(ruling) = self.records.script.rule(&push.token) else {
            let reply = answered("sent", None);
            (push.status, push.delivered) = (200, true);
            return reply;
        };
        let answer = &ruling.answer;
        let (status, reply) = match answer.reason.as_deref() {
            Some(reason) if REJECT_REASONS.contains(&reason) => (StatusCode::OK, answered("rejected", Some(reason))),
            Some(name) => error(name, answer.status),
            None => (answer.status_or(None), answered("queued", None)),
        };
        push.status = status.as_u16();
        push.reason.clone_from(&answer.reason);
        push.delivered = answer.delivers();
        reply.ruled(&ruling, push.at_ms)
    }
}

fn error(name: &str, scripted: Option<u16>) -> (StatusCode, Reply) {
    let usual = ERRORS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, status)| *status);
    let scripted = scripted.and_then(|status| StatusCode::from_u16(status).ok());
    let status = scripted.or(usual).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = json!({ "status": "error", "code": -1, "name": name, "message": "The request was refused" });
    (
        status,
        Reply::new(status, typed("application/json"), body.to_string().into()),
    )
}
