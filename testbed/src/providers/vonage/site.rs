//! How the simulator of Vonage answers one request (Vonage: SMS API reference).

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use shared::content::segments::Alphabet;
use shared::provider::Provider;

use crate::providers::clock::now_ms;
use crate::providers::devices::Registration;
use crate::providers::form;
use crate::providers::log::RecordedPush;
use crate::providers::reply::{Reply, Site, TRACEPARENT, text, typed};
use crate::providers::simulator::Records;

/// Milliseconds for which Vonage tries to deliver.
const TTL_MS: std::ops::RangeInclusive<u64> = 20_000..=604_800_000;

/// The state that all connections share.
#[derive(Debug)]
pub(crate) struct VonageSite {
    pub(super) api_key: String,
    pub(super) api_secret: String,
    pub(super) records: Arc<Records>,
}

/// Whether `reason` is a status of a refusal: a number that is not 0.
pub(super) fn is_status(reason: &str) -> bool {
    reason.parse::<u8>().is_ok_and(|status| status > 0)
}

impl Site for VonageSite {
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
        if head.method == Method::POST && head.uri.path() == "/sms/json" {
            self.send(*connection, head, &body)
        } else {
            Reply::new(StatusCode::NOT_FOUND, typed("text/html"), "<html>".into())
        }
    }
}

impl VonageSite {
    fn send(&self, connection: u64, head: &Parts, body: &Bytes) -> Reply {
        let form = fields(head, body);
        let mut push = RecordedPush {
            at_ms: now_ms(),
            provider: Provider::Vonage.as_str(),
            connection,
            token: form.get("to").map(|to| format!("+{to}")).unwrap_or_default(),
            topic: form.get("from").cloned(),
            push_type: form.get("type").cloned(),
            expiration: form.get("ttl").cloned(),
            collapse_id: form.get("client-ref").cloned(),
            traceparent: text(&head.headers, &TRACEPARENT).map(str::to_owned),
            payload: body.clone(),
            ..RecordedPush::default()
        };
        let reply = match self.check(&form) {
            Ok(alphabet) => self.accept(&form, alphabet, &mut push),
            Err(status) => {
                push.status = 200;
                push.reason = Some(status.to_owned());
                json_reply(StatusCode::OK, &messages(&[refusal(status)]))
            }
        };
        let identity = push.delivered.then(|| identity(&form));
        let reason = push.reason.clone();
        self.records
            .log
            .record(connection, identity, reason.as_deref(), || push);
        reply
    }

    /// Checks a request. The error is Vonage's status.
    fn check(&self, form: &BTreeMap<String, String>) -> Result<Alphabet, &'static str> {
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
        match self.records.devices.look_up(&format!("+{to}"), &self.api_key) {
            Registration::Registered => {}
            Registration::OtherOwner | Registration::Unknown => return Err("33"),
        }
        match field("type").unwrap_or("text") {
            // Vonage would replace what the alphabet lacks; a client of ours must not let it.
            "text" if Alphabet::of(text) == Alphabet::Ucs2 => Err("6"),
            "text" => Ok(Alphabet::Gsm7),
            "unicode" => Ok(Alphabet::Ucs2),
            _ => Err("3"),
        }
    }

    fn accept(&self, form: &BTreeMap<String, String>, alphabet: Alphabet, push: &mut RecordedPush) -> Reply {
        let text = form.get("text").map_or("", String::as_str);
        let parts = alphabet.segments(text).count;
        push.id = format!("{:032X}", rand::random::<u128>());
        let accepted = |part: u32| {
            let id = if part == 0 {
                push.id.clone()
            } else {
                format!("{:032X}", rand::random::<u128>())
            };
            json!({
                "to": form.get("to"),
                "message-id": id,
                "status": "0",
                "remaining-balance": "3.14159265",
                "message-price": "0.03330000",
                "network": "22801",
                "client-ref": form.get("client-ref"),
            })
        };
        let accepted: Vec<Value> = (0..parts).map(accepted).collect();
        let ruling = self.records.script.rule(&push.token);
        let Some(ruling) = ruling else {
            (push.status, push.delivered) = (200, true);
            return json_reply(StatusCode::OK, &messages(&accepted));
        };
        let answer = &ruling.answer;
        let status = answer.status_or(None);
        push.status = status.as_u16();
        push.reason.clone_from(&answer.reason);
        push.delivered = answer.delivers();
        let body = match &answer.reason {
            Some(reason) => messages(&vec![refusal(reason); parts as usize]),
            None => messages(&accepted),
        };
        json_reply(status, &body).ruled(&ruling, push.at_ms)
    }
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

fn messages(parts: &[Value]) -> Value {
    json!({ "message-count": parts.len().to_string(), "messages": parts })
}

fn refusal(status: &str) -> Value {
    json!({ "status": status, "error-text": "The message was refused" })
}

fn json_reply(status: StatusCode, body: &Value) -> Reply {
    Reply::new(status, typed("application/json"), body.to_string().into())
}

/// The identity of a message. Requests carry no id, so equal texts to one number count as the same.
fn identity(form: &BTreeMap<String, String>) -> u128 {
    let mut hasher = DefaultHasher::new();
    (form.get("to"), form.get("text")).hash(&mut hasher);
    u128::from(hasher.finish())
}
