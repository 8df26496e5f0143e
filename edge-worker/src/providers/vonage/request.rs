//! One text message as a request of Vonage's ("Send an SMS").

use std::time::Duration;

use reqwest::RequestBuilder;
use shared::{
    address::Phone,
    content::sms::Sms,
    provider::vonage::{self, Credential},
};

use crate::providers::Outcome;

/// How long Vonage tries to deliver, at least and at most.
const LIFE: std::ops::RangeInclusive<Duration> = Duration::from_secs(20)..=Duration::from_hours(7 * 24);

/// The reference that delivery receipts repeat, and the URL that Vonage posts them to.
#[derive(Debug)]
pub(super) struct Receipts {
    /// At most 100 characters.
    pub(super) reference: String,
    /// Absent: to the URL of the account.
    pub(super) callback: Option<String>,
}

/// The request, which begins with `post`. `left` is the time to live that remains.
pub(super) fn request(
    post: RequestBuilder,
    account: &Credential,
    phone: &Phone,
    sms: &Sms,
    receipts: Receipts,
    left: Duration,
) -> Result<RequestBuilder, Outcome> {
    let Some(from) = &sms.from else {
        return Err(Outcome::rejected("no_sender"));
    };
    let mut form = vonage::render(sms);
    form.insert("api_key".into(), account.api_key.clone());
    form.insert("api_secret".into(), account.api_secret.reveal().to_owned());
    form.insert("to".into(), phone.digits().to_owned());
    form.insert("from".into(), from.strip_prefix('+').unwrap_or(from).to_owned());
    form.insert("client-ref".into(), receipts.reference);
    if let Some(callback) = receipts.callback {
        form.entry("callback".into()).or_insert(callback);
    }
    let life = left.clamp(*LIFE.start(), *LIFE.end());
    form.entry("ttl".into()).or_insert_with(|| life.as_millis().to_string());
    Ok(post.form(&form))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::providers::transport::https;

    fn form(sms: Value, left: u64) -> Result<BTreeMap<String, String>, Outcome> {
        let sms: Sms = serde_json::from_value(sms).unwrap();
        let account = Credential {
            api_key: "abcd1234".into(),
            api_secret: "s3cret".to_owned().into(),
            webhook_key: None,
        };
        let request = request(
            https::client(None, Duration::from_secs(1))
                .unwrap()
                .post("https://rest.nexmo.com/sms/json"),
            &account,
            &"+41791234567".parse().unwrap(),
            &sms,
            Receipts {
                reference: "abc".into(),
                callback: Some("https://peal.example.com/v1/callbacks/vonage/shop".into()),
            },
            Duration::from_secs(left),
        )?;
        let request = request.build().unwrap();
        let body = request.body().unwrap().as_bytes().unwrap();
        let mut form: BTreeMap<String, String> = url::form_urlencoded::parse(body).into_owned().collect();
        assert_eq!(form.remove("client-ref").as_deref(), Some("abc"));
        assert!(form.remove("callback").unwrap().ends_with("/v1/callbacks/vonage/shop"));
        Ok(form)
    }

    #[test]
    fn a_message_has_its_target_sender_type_and_life() {
        let expected = |members: [(&str, &str); 7]| members.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let sent = form(json!({ "text": "Hi € & +", "from": "+41790000000" }), 3600).unwrap();
        let all = expected([
            ("api_key", "abcd1234"),
            ("api_secret", "s3cret"),
            ("to", "41791234567"),
            ("from", "41790000000"),
            ("text", "Hi € & +"),
            ("type", "text"),
            ("ttl", "3600000"),
        ]);
        assert_eq!(sent, all.into());
        let sent = |sms: Value, left| form(sms, left).unwrap();
        assert_eq!(
            sent(json!({ "text": "Привет", "from": "Shop" }), 3600)["type"],
            "unicode"
        );
        assert_eq!(
            sent(json!({ "text": "Hi", "from": "Shop", "encoding": "ucs2" }), 3600)["type"],
            "unicode"
        );
        assert_eq!(sent(json!({ "text": "Hi", "from": "Shop" }), 1)["ttl"], "20000");
        assert_eq!(
            sent(json!({ "text": "Hi", "from": "Shop" }), 9_999_999)["ttl"],
            "604800000"
        );
        assert_eq!(form(json!({ "text": "Hi" }), 1), Err(Outcome::rejected("no_sender")));
    }

    #[test]
    fn an_override_changes_neither_the_target_the_sender_nor_the_credential() {
        let sms = json!({ "text": "Hi", "from": "Shop", "vonage": { "payload": {
            "message-class": 0, "to": "1", "from": "Bank", "api_key": "x", "api_secret": "y", "sig": "z"
        } } });
        let sent = form(sms, 3600).unwrap();
        let of = |name: &str| sent.get(name).map(String::as_str);
        assert_eq!(of("message-class"), Some("0"));
        assert_eq!(
            [of("to"), of("from"), of("api_key"), of("api_secret"), of("sig")],
            [
                Some("41791234567"),
                Some("Shop"),
                Some("abcd1234"),
                Some("s3cret"),
                None
            ]
        );
    }
}
