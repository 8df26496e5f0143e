//! One webhook as a request.

use http::header::{CONTENT_TYPE, HeaderValue, USER_AGENT};
use jiff::Timestamp;
use reqwest::{Request, RequestBuilder};
use serde::Serialize;
use serde_json::{Map, Value};
use shared::{
    address::Receiver,
    content::webhook::Webhook,
    signature::{self, SigningKey},
};

/// Names the sender. Some receivers refuse requests without it.
const AGENT: &str = concat!("Peal/", env!("CARGO_PKG_VERSION"));

/// An event, the same for all attempts to deliver it.
pub(super) struct Event<'a> {
    /// The id of the delivery, by which a receiver recognizes a repeated attempt.
    pub(super) id: &'a str,
    /// When it was accepted.
    pub(super) at: Timestamp,
    pub(super) webhook: &'a Webhook,
}

/// The body that Standard Webhooks recommends.
#[derive(Serialize)]
struct Signed<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    timestamp: Timestamp,
    data: &'a Map<String, Value>,
}

#[derive(Serialize)]
struct Chat<'a> {
    text: &'a str,
}

/// A request as Standard Webhooks 1.0 specifies, signed at `now` with the receiver's secrets.
pub(super) fn signed(
    post: RequestBuilder,
    event: &Event<'_>,
    receiver: &Receiver,
    now: Timestamp,
) -> Result<Request, &'static str> {
    let keys: Vec<_> = receiver.secrets(now).filter_map(SigningKey::of_stored).collect();
    if keys.is_empty() {
        return Err("no_secret");
    }
    let body = Signed {
        event_type: event.webhook.event_type.as_deref().ok_or("malformed")?,
        timestamp: event.at,
        data: &event.webhook.data,
    };
    let body = serde_json::to_vec(&body).map_err(|_| "malformed")?;
    let seconds = now.as_second();
    let mut signature =
        HeaderValue::try_from(signature::sign(&keys, event.id, seconds, &body)).map_err(|_| "malformed")?;
    signature.set_sensitive(true);
    let post = post
        .header("webhook-id", event.id)
        .header("webhook-timestamp", seconds)
        .header("webhook-signature", signature);
    finish(post, body)
}

/// A request as chats take it. They do not check signatures; who knows the URL may write.
pub(super) fn chat(post: RequestBuilder, webhook: &Webhook) -> Result<Request, &'static str> {
    let text = webhook.text.as_deref().ok_or("malformed")?;
    finish(post, serde_json::to_vec(&Chat { text }).map_err(|_| "malformed")?)
}

fn finish(post: RequestBuilder, body: Vec<u8>) -> Result<Request, &'static str> {
    post.header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, AGENT)
        .body(body)
        .build()
        .map_err(|_| "malformed")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use shared::{address::Format, secret::Secret};

    use super::*;
    use crate::providers::transport::https;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn post() -> RequestBuilder {
        let client = https::client(None, Duration::from_secs(1)).unwrap();
        client.post("https://example.com/hook?token=x")
    }

    fn webhook(json: Value) -> Webhook {
        serde_json::from_value(json).unwrap()
    }

    fn body(request: &Request) -> &[u8] {
        request.body().unwrap().as_bytes().unwrap()
    }

    #[test]
    fn a_signed_request_has_what_standard_webhooks_specifies() {
        let secret: Secret = SECRET.to_owned().into();
        let receiver = Receiver::new("https://example.com/hook", Format::Signed, Some(secret.clone())).unwrap();
        let webhook = webhook(json!({ "type": "order.paid", "data": { "order": 7 } }));
        let event = Event {
            id: "0e5d9f5a-9f3c-8a41-8f0e-2f6c1d3b7a90",
            at: "2026-11-26T08:00:00Z".parse().unwrap(),
            webhook: &webhook,
        };
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let request = signed(post(), &event, &receiver, now).unwrap();
        let expected = r#"{"type":"order.paid","timestamp":"2026-11-26T08:00:00Z","data":{"order":7}}"#;
        assert_eq!(body(&request), expected.as_bytes());
        let header = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("webhook-id"), event.id);
        assert_eq!(header("webhook-timestamp"), "1800000000");
        let key = SigningKey::new(&secret).unwrap();
        let signature = signature::sign([&key], event.id, 1_800_000_000, expected.as_bytes());
        assert_eq!(header("webhook-signature"), signature);
        assert_eq!(header("content-type"), "application/json");
        assert!(
            !format!("{request:?}").contains(&signature),
            "a signature is not logged"
        );
    }

    #[test]
    fn a_chat_gets_the_text_alone() {
        let webhook = webhook(json!({ "type": "a", "data": { "b": 1 }, "text": "Paid \"7\"" }));
        let request = chat(post(), &webhook).unwrap();
        assert_eq!(body(&request), br#"{"text":"Paid \"7\""}"#);
        assert!(!request.headers().contains_key("webhook-signature"));
    }
}
