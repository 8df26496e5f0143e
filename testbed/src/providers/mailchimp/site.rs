//! How the simulator of Mailchimp Transactional answers one request (Mailchimp: "Send new message").

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, StatusCode, request::Parts};
use serde_json::{Value, json};
use shared::{address::Mailbox, provider::Provider};

use crate::providers::{
    api::{Api, Refusal},
    devices::Devices,
    log::RecordedPush,
    reply::Reply,
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

/// An account of Mailchimp Transactional.
#[derive(Debug)]
pub struct MailchimpApi {
    pub(super) api_key: String,
}

impl Api for MailchimpApi {
    const PROVIDER: Provider = Provider::Mailchimp;

    /// The body of a request.
    type Message = Value;

    fn generate() -> Self {
        Self {
            api_key: format!("md-{:022x}", rand::random::<u64>()),
        }
    }

    fn is_reason(reason: &str) -> bool {
        REJECT_REASONS.contains(&reason) || ERRORS.iter().any(|(name, _)| *name == reason)
    }

    fn read(&self, head: &Parts, body: &Bytes) -> Result<Value, Reply> {
        let is_path = matches!(
            head.uri.path(),
            "/api/1.0/messages/send" | "/api/1.0/messages/send.json"
        );
        if head.method == Method::POST && is_path {
            Ok(serde_json::from_slice(body).unwrap_or_default())
        } else {
            Err(Reply::not_found())
        }
    }

    fn describe(&self, request: &Value) -> RecordedPush {
        let at = |pointer: &str| request.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        RecordedPush {
            token: at("/message/to/0/email").unwrap_or_default(),
            topic: at("/message/from_email"),
            collapse_id: at("/message/metadata/peal_delivery"),
            ..RecordedPush::default()
        }
    }

    fn check(&self, _: &Parts, request: &Value, _: &Devices) -> Result<(), Refusal> {
        self.check_mail(request)
            .map_err(|name| Refusal::new(name, self.refuse(request, name, None)))
    }

    fn new_id() -> String {
        format!("{:032x}", rand::random::<u128>())
    }

    fn accept(&self, request: &Value, id: &str, status: Option<StatusCode>) -> Reply {
        Reply::json(status.unwrap_or(StatusCode::OK), &answer(request, "sent", id, None))
    }

    fn refuse(&self, request: &Value, reason: &str, status: Option<StatusCode>) -> Reply {
        if REJECT_REASONS.contains(&reason) {
            return Reply::json(
                StatusCode::OK,
                &answer(request, "rejected", &Self::new_id(), Some(reason)),
            );
        }
        let usual = ERRORS
            .iter()
            .find(|(known, _)| *known == reason)
            .map(|(_, status)| *status);
        let status = status.or(usual).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = json!({ "status": "error", "code": -1, "name": reason, "message": "The request was refused" });
        Reply::json(status, &body)
    }
}

impl MailchimpApi {
    /// Checks a request. The error is its name.
    fn check_mail(&self, request: &Value) -> Result<(), &'static str> {
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
}

/// What became of the mail to its recipient.
fn answer(request: &Value, status: &str, id: &str, reason: Option<&str>) -> Value {
    json!([{ "email": request["message"]["to"][0]["email"], "status": status, "_id": id, "reject_reason": reason }])
}
