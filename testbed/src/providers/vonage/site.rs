//! How the simulator of Vonage answers one request (Vonage: SMS API reference).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use shared::content::segments::Alphabet;
use shared::provider::Provider;

use crate::providers::api::{Api, Refusal, digest};
use crate::providers::devices::{Devices, Registration};
use crate::providers::form;
use crate::providers::log::{RecordedPush, delivery_of};
use crate::providers::reply::{Reply, text};

/// Milliseconds for which Vonage tries to deliver.
const TTL_MS: std::ops::RangeInclusive<u64> = 20_000..=604_800_000;

/// An account of Vonage.
#[derive(Debug)]
pub struct VonageApi {
    pub(super) api_key: String,
    pub(super) api_secret: String,
}

impl Api for VonageApi {
    const PROVIDER: Provider = Provider::Vonage;

    /// The fields of a request.
    type Message = BTreeMap<String, String>;

    fn generate() -> Self {
        Self {
            api_key: format!("{:08x}", rand::random::<u32>()),
            api_secret: format!("{:016x}", rand::random::<u64>()),
        }
    }

    /// A status of a refusal: a number that is not 0.
    fn is_reason(reason: &str) -> bool {
        reason.parse::<u8>().is_ok_and(|status| status > 0)
    }

    fn read(&self, head: &Parts, body: &Bytes) -> Result<Self::Message, Reply> {
        if head.method == Method::POST && head.uri.path() == "/sms/json" {
            Ok(fields(head, body))
        } else {
            Err(Reply::not_found())
        }
    }

    fn describe(&self, form: &Self::Message) -> RecordedPush {
        RecordedPush {
            token: form.get("to").map(|to| format!("+{to}")).unwrap_or_default(),
            topic: form.get("from").cloned(),
            push_type: form.get("type").cloned(),
            expiration: form.get("ttl").cloned(),
            collapse_id: form.get("client-ref").map(|id| delivery_of(id)),
            ..RecordedPush::default()
        }
    }

    /// Requests carry no id, so equal texts to one number count as the same.
    fn identity(&self, form: &Self::Message, _: &RecordedPush) -> u128 {
        digest((form.get("to"), form.get("text")))
    }

    fn check(&self, _: &Parts, form: &Self::Message, devices: &Devices) -> Result<(), Refusal> {
        self.check_message(form, devices)
            .map_err(|status| Refusal::new(status, messages(StatusCode::OK, &[refusal(status)])))
    }

    fn new_id() -> String {
        format!("{:032X}", rand::random::<u128>())
    }

    fn accept(&self, form: &Self::Message, id: &str, status: Option<StatusCode>) -> Reply {
        let accepted = |part: usize| {
            json!({
                "to": form.get("to"),
                "message-id": if part == 0 { id.to_owned() } else { Self::new_id() },
                "status": "0",
                "remaining-balance": "3.14159265",
                "message-price": "0.03330000",
                "network": "22801",
                "client-ref": form.get("client-ref"),
            })
        };
        let parts: Vec<Value> = (0..parts(form)).map(accepted).collect();
        messages(status.unwrap_or(StatusCode::OK), &parts)
    }

    fn refuse(&self, form: &Self::Message, reason: &str, status: Option<StatusCode>) -> Reply {
        messages(status.unwrap_or(StatusCode::OK), &vec![refusal(reason); parts(form)])
    }
}

impl VonageApi {
    /// Checks a request. The error is Vonage's status.
    fn check_message(&self, form: &BTreeMap<String, String>, devices: &Devices) -> Result<(), &'static str> {
        let field = |name: &str| form.get(name).map(String::as_str).filter(|text| !text.is_empty());
        let (key, secret) = (field("api_key").ok_or("2")?, field("api_secret").ok_or("2")?);
        if key != self.api_key || secret != self.api_secret {
            return Err("4");
        }
        let (to, text, _) = (
            field("to").ok_or("2")?,
            field("text").ok_or("2")?,
            field("from").ok_or("2")?,
        );
        if !form::is_number(to) {
            return Err("3");
        }
        let is_ttl = |text: &str| text.parse().is_ok_and(|ms: u64| TTL_MS.contains(&ms));
        if !field("ttl").is_none_or(is_ttl) {
            return Err("3");
        }
        match devices.look_up(&format!("+{to}"), &self.api_key) {
            Registration::Registered => {}
            Registration::OtherOwner | Registration::Unknown => return Err("33"),
        }
        match field("type").unwrap_or("text") {
            // Vonage would replace what the alphabet lacks; a client of ours must not let it.
            "text" if Alphabet::of(text) == Alphabet::Ucs2 => Err("6"),
            "text" | "unicode" => Ok(()),
            _ => Err("3"),
        }
    }
}

/// How many messages of the network a text is.
fn parts(form: &BTreeMap<String, String>) -> usize {
    let alphabet = match form.get("type").map(String::as_str) {
        Some("unicode") => Alphabet::Ucs2,
        _ => Alphabet::Gsm7,
    };
    alphabet.segments(form.get("text").map_or("", String::as_str)).count as usize
}

/// The fields of a form or a JSON object; a key and secret in the header `authorization` are fields too. Vonage's own clients
/// send JSON with such a header.
fn fields(head: &Parts, body: &[u8]) -> BTreeMap<String, String> {
    let is_json = text(&head.headers, &CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/json"));
    let mut fields = match serde_json::from_slice(body) {
        Ok(Value::Object(members)) if is_json => {
            let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            members.into_iter().map(|(name, value)| (name, text(value))).collect()
        }
        _ => form::read(body),
    };
    let basic = text(&head.headers, &AUTHORIZATION)
        .and_then(|value| value.strip_prefix("Basic "))
        .and_then(|text| STANDARD.decode(text).ok())
        .and_then(|pair| String::from_utf8(pair).ok());
    if let Some((key, secret)) = basic.as_deref().and_then(|pair| pair.split_once(':')) {
        fields.insert("api_key".to_owned(), key.to_owned());
        fields.insert("api_secret".to_owned(), secret.to_owned());
    }
    fields
}

fn messages(status: StatusCode, parts: &[Value]) -> Reply {
    Reply::json(
        status,
        &json!({ "message-count": parts.len().to_string(), "messages": parts }),
    )
}

fn refusal(status: &str) -> Value {
    json!({ "status": status, "error-text": "The message was refused" })
}
