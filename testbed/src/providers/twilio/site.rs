//! How the simulator of Twilio answers one request (Twilio: Messages resource; Error and warning dictionary).

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use shared::content::segments::Segments;
use shared::provider::Provider;

use crate::providers::clock::now_ms;
use crate::providers::devices::Registration;
use crate::providers::form;
use crate::providers::log::RecordedPush;
use crate::providers::reply::{Reply, Site, TRACEPARENT, text, typed};
use crate::providers::simulator::Records;

/// Longest body in characters that Twilio takes.
const BODY_CHARACTERS_MAX: usize = 1600;

/// Seconds that a message may wait in Twilio's queue.
const VALIDITY_S: std::ops::RangeInclusive<u32> = 1..=36_000;

/// The state that all connections share.
#[derive(Debug)]
pub(crate) struct TwilioSite {
    pub(super) account_sid: String,
    pub(super) auth_token: String,
    pub(super) api_key_sid: String,
    pub(super) api_key_secret: String,
    pub(super) messaging_service_sid: String,
    pub(super) records: Arc<Records>,
}

/// Whether `reason` is an error code: five digits.
pub(super) fn is_code(reason: &str) -> bool {
    reason.len() == 5 && reason.bytes().all(|byte| byte.is_ascii_digit())
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

impl Site for TwilioSite {
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
        let account = head
            .uri
            .path()
            .strip_prefix("/2010-04-01/Accounts/")
            .and_then(|rest| rest.strip_suffix("/Messages.json"));
        match account {
            Some(account) if head.method == Method::POST => self.send(*connection, account, head, &body),
            _ => json_reply(StatusCode::NOT_FOUND, &error("20404", StatusCode::NOT_FOUND)),
        }
    }
}

impl TwilioSite {
    fn send(&self, connection: u64, account: &str, head: &Parts, body: &Bytes) -> Reply {
        let now_ms = now_ms();
        let form = form::read(body);
        let mut push = RecordedPush {
            at_ms: now_ms,
            provider: Provider::Twilio.as_str(),
            connection,
            token: form.get("To").cloned().unwrap_or_default(),
            topic: form.get("From").or(form.get("MessagingServiceSid")).cloned(),
            expiration: form.get("ValidityPeriod").cloned(),
            traceparent: text(&head.headers, &TRACEPARENT).map(str::to_owned),
            payload: body.clone(),
            ..RecordedPush::default()
        };
        let reply = match self.check(account, head, &form) {
            Ok(()) => self.accept(&form, &mut push),
            Err(code) => {
                let status = status_of(code);
                push.status = status.as_u16();
                push.reason = Some(code.to_owned());
                json_reply(status, &error(code, status))
            }
        };
        let identity = push.delivered.then(|| identity(&form));
        let reason = push.reason.clone();
        self.records
            .log
            .record(connection, identity, reason.as_deref(), || push);
        reply
    }

    /// Checks a request. The error is Twilio's code.
    fn check(&self, account: &str, head: &Parts, form: &BTreeMap<String, String>) -> Result<(), &'static str> {
        if !self.is_signed_in(head) {
            return Err("20003");
        }
        if account != self.account_sid {
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
        match self.records.devices.look_up(to, &self.account_sid) {
            Registration::Registered => Ok(()),
            Registration::OtherOwner | Registration::Unknown => Err("21211"),
        }
    }

    fn is_signed_in(&self, head: &Parts) -> bool {
        let given = text(&head.headers, &AUTHORIZATION)
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
            .and_then(|(_, text)| STANDARD.decode(text.trim()).ok());
        let pairs = [
            (&self.account_sid, &self.auth_token),
            (&self.api_key_sid, &self.api_key_secret),
        ];
        let mut pairs = pairs
            .iter()
            .map(|(user, secret)| format!("{user}:{secret}").into_bytes());
        given.is_some_and(|given| pairs.any(|pair| pair == given))
    }

    fn accept(&self, form: &BTreeMap<String, String>, push: &mut RecordedPush) -> Reply {
        push.id = format!("SM{:032x}", rand::random::<u128>());
        let ruling = self.records.script.rule(&push.token);
        let Some(ruling) = ruling else {
            (push.status, push.delivered) = (201, true);
            return json_reply(StatusCode::CREATED, &self.message(form, &push.id));
        };
        let answer = &ruling.answer;
        let of_reason = answer.reason.as_deref().map_or(StatusCode::CREATED, status_of);
        let status = answer.status_or(Some(of_reason));
        push.status = status.as_u16();
        push.reason.clone_from(&answer.reason);
        push.delivered = answer.delivers();
        let body = match &answer.reason {
            Some(reason) => error(reason, status),
            None => self.message(form, &push.id),
        };
        json_reply(status, &body).ruled(&ruling, push.at_ms)
    }

    /// The message as Twilio returns it.
    fn message(&self, form: &BTreeMap<String, String>, sid: &str) -> Value {
        let field = |name: &str| form.get(name);
        let text = form.get("Body").map_or("", String::as_str);
        json!({
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
        })
    }
}

fn error(code: &str, status: StatusCode) -> Value {
    json!({
        "code": code.parse::<u32>().unwrap_or_default(),
        "message": "The request was refused.",
        "more_info": format!("https://www.twilio.com/docs/errors/{code}"),
        "status": status.as_u16(),
    })
}

fn json_reply(status: StatusCode, body: &Value) -> Reply {
    Reply::new(status, typed("application/json"), body.to_string().into())
}

/// The identity of a message. Requests carry no id, so equal texts to one number count as the same.
fn identity(form: &BTreeMap<String, String>) -> u128 {
    let mut hasher = DefaultHasher::new();
    (form.get("To"), form.get("Body")).hash(&mut hasher);
    u128::from(hasher.finish())
}
