//! How the simulator of `SendGrid` answers one request (`SendGrid`: Mail Send API v3).

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
    api::{Api, Refusal},
    devices::Devices,
    log::RecordedPush,
    reply::{Reply, text, typed},
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

/// An account of `SendGrid`.
#[derive(Debug)]
pub struct SendGridApi {
    pub(super) api_key: String,
    /// The domain whose mailboxes are verified senders; any if absent.
    pub(super) sender_domain: Option<String>,
}

/// A refusal: status, field and message.
type Fault = (StatusCode, &'static str, &'static str);

impl Api for SendGridApi {
    const PROVIDER: Provider = Provider::SendGrid;

    /// The body of a request.
    type Message = Value;

    fn generate() -> Self {
        Self {
            api_key: format!("SG.{:022x}.{:043x}", rand::random::<u64>(), rand::random::<u128>()),
            sender_domain: None,
        }
    }

    fn read(&self, head: &Parts, body: &Bytes) -> Result<Value, Reply> {
        if head.uri.path() != "/v3/mail/send" {
            return Err(refusal(StatusCode::NOT_FOUND, "", "not found"));
        }
        if head.method != Method::POST {
            return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, "", "method not allowed"));
        }
        Ok(serde_json::from_slice(body).unwrap_or_default())
    }

    fn describe(&self, mail: &Value) -> RecordedPush {
        let at = |pointer: &str| mail.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        RecordedPush {
            token: at("/personalizations/0/to/0/email").unwrap_or_default(),
            topic: at("/from/email"),
            collapse_id: at("/personalizations/0/custom_args/peal_delivery"),
            ..RecordedPush::default()
        }
    }

    fn check(&self, head: &Parts, mail: &Value, _: &Devices) -> Result<(), Refusal> {
        self.check_mail(head, mail)
            .map_err(|(status, field, message)| Refusal::new(message, refusal(status, field, message)))
    }

    fn new_id() -> String {
        format!("{:016x}.filter.{:08x}", rand::random::<u64>(), rand::random::<u32>())
    }

    fn accept(&self, _: &Value, id: &str, status: Option<StatusCode>) -> Reply {
        let mut headers = typed("text/plain; charset=utf-8");
        if let Ok(id) = HeaderValue::try_from(id) {
            headers.insert("x-message-id", id);
        }
        Reply::new(status.unwrap_or(StatusCode::ACCEPTED), headers, Bytes::new())
    }

    fn refuse(&self, _: &Value, _: &str, status: Option<StatusCode>) -> Reply {
        refusal(status.unwrap_or(StatusCode::BAD_REQUEST), "", "scripted")
    }
}

impl SendGridApi {
    fn check_mail(&self, head: &Parts, mail: &Value) -> Result<(), Fault> {
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
        let headers = [mail.get("headers"), mail.pointer("/personalizations/0/headers")];
        let mut headers = headers.into_iter().flatten().filter_map(Value::as_object);
        let is_reserved = |name: &String| RESERVED.contains(&name.to_ascii_lowercase().as_str());
        if headers.any(|headers| headers.keys().any(is_reserved)) {
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

fn refusal(status: StatusCode, field: &str, message: &str) -> Reply {
    let field = if field.is_empty() { Value::Null } else { field.into() };
    Reply::json(
        status,
        &json!({ "errors": [{ "message": message, "field": field, "help": null }] }),
    )
}
