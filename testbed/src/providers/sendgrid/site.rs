//! How the simulator of `SendGrid` answers one request (`SendGrid`: Mail Send API v3).

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderValue, Method, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
    request::Parts,
};
use serde_json::{Value, json};
use shared::{address::Mailbox, provider::Provider};

use crate::providers::{
    clock::now_ms,
    log::RecordedPush,
    reply::{Reply, Site, TRACEPARENT, text, typed},
    simulator::Records,
};

/// Headers that a mail may not set.
const RESERVED: [&str; 11] = [
    "x-sg-id",
    "x-sg-eid",
    "received",
    "dkim-signature",
    "content-type",
    "content-transfer-encoding",
    "to",
    "from",
    "subject",
    "reply-to",
    "bcc",
];

/// The state that all connections share.
#[derive(Debug)]
pub(crate) struct SendGridSite {
    pub(super) api_key: String,
    pub(super) sender_domain: Option<String>,
    pub(super) records: Arc<Records>,
}

/// A refusal: status, field and message.
type Fault = (StatusCode, &'static str, &'static str);

impl Site for SendGridSite {
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
        if head.uri.path() != "/v3/mail/send" {
            return refusal((StatusCode::NOT_FOUND, "", "not found"));
        }
        if head.method != Method::POST {
            return refusal((StatusCode::METHOD_NOT_ALLOWED, "", "method not allowed"));
        }
        self.send(*connection, head, &body)
    }
}

impl SendGridSite {
    fn send(&self, connection: u64, head: &Parts, body: &Bytes) -> Reply {
        let mail: Value = serde_json::from_slice(body).unwrap_or_default();
        let at = |pointer: &str| mail.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let mut push = RecordedPush {
            at_ms: now_ms(),
            provider: Provider::SendGrid.as_str(),
            connection,
            token: at("/personalizations/0/to/0/email").unwrap_or_default(),
            topic: at("/from/email"),
            collapse_id: at("/personalizations/0/custom_args/peal_delivery"),
            traceparent: text(&head.headers, &TRACEPARENT).map(str::to_owned),
            payload: body.clone(),
            ..RecordedPush::default()
        };
        let reply = match self.check(head, &mail) {
            Ok(()) => self.accept(&mut push),
            Err(fault) => {
                push.status = fault.0.as_u16();
                push.reason = Some(fault.2.to_owned());
                refusal(fault)
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

    fn check(&self, head: &Parts, mail: &Value) -> Result<(), Fault> {
        let bad = |field: &'static str, message: &'static str| (StatusCode::BAD_REQUEST, field, message);
        let bearer = text(&head.headers, &AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        if bearer != Some(&self.api_key) {
            let message = "The provided authorization grant is invalid, expired, or revoked";
            return Err((StatusCode::UNAUTHORIZED, "", message));
        }
        if text(&head.headers, &CONTENT_TYPE) != Some("application/json") {
            return Err((
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "",
                "Content-Type should be application/json.",
            ));
        }
        if !mail.is_object() {
            return Err(bad("", "Bad Request"));
        }
        let is_mailbox = |value: &Value| {
            let mailbox = value.get("email").and_then(Value::as_str).map(str::parse::<Mailbox>);
            matches!(mailbox, Some(Ok(_)))
        };
        let personalizations = mail["personalizations"].as_array().map_or(&[][..], Vec::as_slice);
        let has_recipients = |one: &Value| {
            let to = one["to"].as_array();
            to.is_some_and(|to| !to.is_empty() && to.iter().all(is_mailbox))
        };
        if personalizations.is_empty() || !personalizations.iter().all(has_recipients) {
            return Err(bad("personalizations", "Does not contain a valid address."));
        }
        if !is_mailbox(&mail["from"]) {
            return Err(bad("from.email", "The from email does not contain a valid address."));
        }
        if mail.get("reply_to").is_some_and(|reply_to| !is_mailbox(reply_to)) {
            return Err(bad("reply_to", "The reply_to email does not contain a valid address."));
        }
        if mail["subject"].as_str().is_none_or(str::is_empty) {
            return Err(bad("subject", "The subject is required."));
        }
        check_content(&mail["content"])?;
        check_attachments(&mail["attachments"])?;
        let headers = mail["headers"].as_object();
        let is_reserved = |name: &String| RESERVED.contains(&name.to_ascii_lowercase().as_str());
        if headers.is_some_and(|headers| headers.keys().any(is_reserved)) {
            return Err(bad("headers", "The header is reserved."));
        }
        let sender = mail["from"]["email"].as_str().and_then(|email| email.split_once('@'));
        match (&self.sender_domain, sender) {
            (Some(domain), Some((_, given))) if domain != given => {
                let message = "The from address does not match a verified Sender Identity.";
                Err((StatusCode::FORBIDDEN, "from", message))
            }
            _ => Ok(()),
        }
    }

    fn accept(&self, push: &mut RecordedPush) -> Reply {
        push.id = format!("{:016x}.filter.{:08x}", rand::random::<u64>(), rand::random::<u32>());
        let accepted = |status: StatusCode| {
            let mut headers = typed("text/plain; charset=utf-8");
            if let Ok(id) = HeaderValue::try_from(&push.id) {
                headers.insert("x-message-id", id);
            }
            Reply::new(status, headers, Bytes::new())
        };
        let Some(ruling) = self.records.script.rule(&push.token) else {
            let reply = accepted(StatusCode::ACCEPTED);
            (push.status, push.delivered) = (202, true);
            return reply;
        };
        let answer = &ruling.answer;
        let status = answer.status_or(Some(StatusCode::ACCEPTED));
        let reply = match &answer.reason {
            Some(_) => refusal((status, "", "scripted")),
            None => accepted(status),
        };
        push.status = status.as_u16();
        push.reason.clone_from(&answer.reason);
        push.delivered = answer.delivers();
        reply.ruled(&ruling, push.at_ms)
    }
}

fn check_content(content: &Value) -> Result<(), Fault> {
    let parts = content.as_array().map_or(&[][..], Vec::as_slice);
    let bad = (
        StatusCode::BAD_REQUEST,
        "content",
        "The content value must be a string at least one character in length.",
    );
    let has_value = |part: &Value| part["value"].as_str().is_some_and(|value| !value.is_empty());
    if parts.is_empty() || !parts.iter().all(has_value) {
        return Err(bad);
    }
    let text = parts.iter().position(|part| part["type"] == "text/plain");
    if text.is_some_and(|at| at > 0) {
        let message = "If present, text/plain and text/html must be the first two, in this order.";
        return Err((StatusCode::BAD_REQUEST, "content", message));
    }
    Ok(())
}

fn check_attachments(attachments: &Value) -> Result<(), Fault> {
    let files = attachments.as_array().map_or(&[][..], Vec::as_slice);
    let is_whole = |file: &Value| {
        let content = file["content"]
            .as_str()
            .and_then(|content| STANDARD.decode(content).ok());
        let is_placed = match file["disposition"].as_str() {
            Some("inline") => file["content_id"].is_string(),
            Some("attachment") => true,
            _ => false,
        };
        content.is_some() && is_placed && file["filename"].as_str().is_some_and(|name| !name.is_empty())
    };
    if files.iter().all(is_whole) {
        Ok(())
    } else {
        Err((
            StatusCode::BAD_REQUEST,
            "attachments",
            "The attachment is not complete.",
        ))
    }
}

fn refusal((status, field, message): Fault) -> Reply {
    let field = if field.is_empty() { Value::Null } else { field.into() };
    let body = json!({ "errors": [{ "message": message, "field": field, "help": null }] });
    Reply::new(status, typed("application/json"), body.to_string().into())
}
