//! How the simulator of Twilio answers one request (Twilio: Messages resource; Error and warning dictionary).

use std::collections::BTreeMap;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::json;
use shared::content::segments::Segments;
use shared::provider::Provider;

use crate::providers::api::{Api, Refusal, digest};
use crate::providers::devices::{Devices, Registration};
use crate::providers::form;
use crate::providers::log::RecordedPush;
use crate::providers::reply::{Reply, is_basic};

/// Longest body in characters that Twilio takes.
const BODY_CHARACTERS_MAX: usize = 1600;

/// Seconds that a message may wait in Twilio's queue.
const VALIDITY_S: std::ops::RangeInclusive<u32> = 1..=36_000;

/// An account of Twilio.
#[derive(Debug)]
pub struct TwilioApi {
    pub(super) account_sid: String,
    pub(super) auth_token: String,
    pub(super) api_key_sid: String,
    pub(super) api_key_secret: String,
    pub(super) messaging_service_sid: String,
}

/// The HTTP status with which Twilio returns an error code.
fn status_of(code: &str) -> StatusCode {
    match code {
        "20003" => StatusCode::UNAUTHORIZED,
        "20005" | "20006" | "20008" | "20403" => StatusCode::FORBIDDEN,
        "20404" => StatusCode::NOT_FOUND,
        "14107" | "20429" | "63017" | "63038" => StatusCode::TOO_MANY_REQUESTS,
        "20500" => StatusCode::INTERNAL_SERVER_ERROR,
        "20503" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// A request to send a message.
#[derive(Debug)]
pub struct Message {
    /// The account in the path.
    account: String,
    form: BTreeMap<String, String>,
}

impl Api for TwilioApi {
    const PROVIDER: Provider = Provider::Twilio;

    type Message = Message;

    fn generate() -> Self {
        let digits = || format!("{:032x}", rand::random::<u128>());
        Self {
            account_sid: format!("AC{}", digits()),
            auth_token: digits(),
            api_key_sid: format!("SK{}", digits()),
            api_key_secret: digits(),
            messaging_service_sid: format!("MG{}", digits()),
        }
    }

    /// An error code: five digits.
    fn is_reason(reason: &str) -> bool {
        reason.len() == 5 && reason.bytes().all(|byte| byte.is_ascii_digit())
    }

    fn read(&self, head: &Parts, body: &Bytes) -> Result<Message, Reply> {
        let path = head.uri.path().strip_prefix("/2010-04-01/Accounts/");
        let account = path.and_then(|rest| rest.strip_suffix("/Messages.json"));
        match account {
            Some(account) if head.method == Method::POST => Ok(Message {
                account: account.to_owned(),
                form: form::read(body),
            }),
            _ => Err(refusal("20404", None)),
        }
    }

    fn describe(&self, Message { form, .. }: &Message) -> RecordedPush {
        RecordedPush {
            token: form.get("To").cloned().unwrap_or_default(),
            topic: form.get("From").or(form.get("MessagingServiceSid")).cloned(),
            expiration: form.get("ValidityPeriod").cloned(),
            ..RecordedPush::default()
        }
    }

    /// Requests carry no id, so equal texts to one number count as the same.
    fn identity(&self, Message { form, .. }: &Message, _: &RecordedPush) -> u128 {
        digest((form.get("To"), form.get("Body")))
    }

    fn check(&self, head: &Parts, message: &Message, devices: &Devices) -> Result<(), Refusal> {
        self.check_message(head, message, devices)
            .map_err(|code| Refusal::new(code, refusal(code, None)))
    }

    fn new_id() -> String {
        format!("SM{:032x}", rand::random::<u128>())
    }

    /// The message as Twilio returns it.
    fn accept(&self, Message { form, .. }: &Message, sid: &str, status: Option<StatusCode>) -> Reply {
        let field = |name: &str| form.get(name);
        let text = form.get("Body").map_or("", String::as_str);
        let message = json!({
            "sid": sid,
            "account_sid": self.account_sid,
            "api_version": "2010-04-01",
            "to": field("To"),
            "from": field("From"),
            "messaging_service_sid": field("MessagingServiceSid"),
            "body": text,
            "num_segments": Segments::of(text).count.to_string(),
            "num_media": "0",
            "direction": "outbound-api",
            "status": if form.contains_key("From") { "queued" } else { "accepted" },
            "date_created": "Thu, 26 Nov 2026 08:00:00 +0000",
            "date_updated": "Thu, 26 Nov 2026 08:00:00 +0000",
            "date_sent": null,
            "error_code": null,
            "error_message": null,
            "price": null,
            "price_unit": "USD",
            "uri": format!("/2010-04-01/Accounts/{}/Messages/{sid}.json", self.account_sid),
            "subresource_uris": {},
        });
        Reply::json(status.unwrap_or(StatusCode::CREATED), &message)
    }

    fn refuse(&self, _: &Message, code: &str, status: Option<StatusCode>) -> Reply {
        refusal(code, status)
    }
}

impl TwilioApi {
    /// Checks a request. The error is Twilio's code.
    fn check_message(&self, head: &Parts, message: &Message, devices: &Devices) -> Result<(), &'static str> {
        let Message { account, form } = message;
        let is_signed_in = is_basic(&head.headers, &self.account_sid, &self.auth_token)
            || is_basic(&head.headers, &self.api_key_sid, &self.api_key_secret);
        if !is_signed_in {
            return Err("20003");
        }
        if *account != self.account_sid {
            return Err("20404");
        }
        let field = |name: &str| form.get(name).map(String::as_str).filter(|text| !text.is_empty());
        let to = field("To").ok_or("21604")?;
        if !to.strip_prefix('+').is_some_and(form::is_number) {
            return Err("21211");
        }
        match (field("From"), field("MessagingServiceSid")) {
            (None, None) => return Err("21603"),
            (_, Some(service)) if service != self.messaging_service_sid => return Err("21705"),
            (Some(from), _) if from.starts_with('+') && !from.strip_prefix('+').is_some_and(form::is_number) => {
                return Err("21212");
            }
            _ => {}
        }
        let text = field("Body").ok_or("21602")?;
        if text.chars().count() > BODY_CHARACTERS_MAX {
            return Err("21617");
        }
        let is_validity = |text: &str| text.parse().is_ok_and(|seconds: u32| VALIDITY_S.contains(&seconds));
        if !field("ValidityPeriod").is_none_or(is_validity) {
            return Err("21604");
        }
        match devices.look_up(to, &self.account_sid) {
            Registration::Registered => Ok(()),
            Registration::OtherOwner | Registration::Unknown => Err("21211"),
        }
    }
}

/// A refusal, with the status that is usual for its code if no other is given.
fn refusal(code: &str, status: Option<StatusCode>) -> Reply {
    let status = status.unwrap_or_else(|| status_of(code));
    let body = json!({
        "code": code.parse::<u32>().unwrap_or_default(),
        "message": "The request was refused.",
        "more_info": format!("https://www.twilio.com/docs/errors/{code}"),
        "status": status.as_u16(),
    });
    Reply::json(status, &body)
}
