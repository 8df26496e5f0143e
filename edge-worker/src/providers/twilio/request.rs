//! One text message as a request of Twilio's ("Create a Message").

use std::time::Duration;

use http::header::AUTHORIZATION;
use reqwest::RequestBuilder;
use shared::{address::Phone, content::sms::Sms, provider::twilio};

use super::config::Account;
use crate::providers::Outcome;

/// Seconds for which Twilio keeps a message in its queue, at most and if nothing is said.
const MAX_VALIDITY_S: u64 = 36_000;

/// The request, which begins with `post`. `left` is the time to live that remains, `callback` where Twilio is to report.
pub(super) fn request(
    post: RequestBuilder,
    account: &Account,
    phone: &Phone,
    sms: &Sms,
    left: Duration,
    callback: Option<String>,
) -> Result<RequestBuilder, Outcome> {
    let mut form = twilio::render(sms);
    form.insert("To".into(), phone.reveal().to_owned());
    match (&sms.from, &account.messaging_service_sid) {
        (Some(from), _) => form.insert("From".into(), from.clone()),
        (None, Some(service)) => form.insert("MessagingServiceSid".into(), service.clone()),
        (None, None) => return Err(Outcome::rejected("no_sender")),
    };
    if let Some(callback) = callback {
        form.entry("StatusCallback".into()).or_insert(callback);
    }
    let validity = left.as_secs().max(1);
    if validity < MAX_VALIDITY_S {
        form.entry("ValidityPeriod".into())
            .or_insert_with(|| validity.to_string());
    }
    Ok(post.header(AUTHORIZATION, &account.authorization).form(&form))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::HeaderValue;
    use serde_json::{Value, json};

    use super::*;
    use crate::providers::transport::https;

    fn account(service: Option<&str>) -> Account {
        Account {
            sid: "AC1".into(),
            url: "https://api.twilio.com/2010-04-01/Accounts/AC1/Messages.json"
                .parse()
                .unwrap(),
            authorization: HeaderValue::from_static("Basic eDp5"),
            messaging_service_sid: service.map(Into::into),
        }
    }

    fn form(sms: Value, service: Option<&str>, left: u64) -> Result<BTreeMap<String, String>, Outcome> {
        let sms: Sms = serde_json::from_value(sms).unwrap();
        let phone = "+41791234567".parse().unwrap();
        let request = request(
            https::client(None, Duration::from_secs(1))
                .unwrap()
                .post(account(service).url),
            &account(service),
            &phone,
            &sms,
            Duration::from_secs(left),
            Some("https://peal.example.com/v1/callbacks/twilio/shop?peal_reference=abc".into()),
        )?;
        let request = request.build().unwrap();
        assert_eq!(request.headers()["authorization"], "Basic eDp5");
        let body = request.body().unwrap().as_bytes().unwrap();
        let mut form: BTreeMap<String, String> = url::form_urlencoded::parse(body).into_owned().collect();
        let callback = form.remove("StatusCallback").unwrap();
        assert!(callback.ends_with("/v1/callbacks/twilio/shop?peal_reference=abc"));
        Ok(form)
    }

    fn expected<const N: usize>(members: [(&str, &str); N]) -> BTreeMap<String, String> {
        members.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn a_message_has_its_target_sender_and_validity() {
        let text = json!({ "text": "Grüezi & +1 😀", "from": "Shop" });
        assert_eq!(
            form(text, Some("MG1"), 600).unwrap(),
            expected([
                ("To", "+41791234567"),
                ("From", "Shop"),
                ("Body", "Grüezi & +1 😀"),
                ("ValidityPeriod", "600")
            ])
        );
        let text = json!({ "text": "Hi" });
        assert_eq!(
            form(text.clone(), Some("MG1"), 86_400).unwrap(),
            expected([("To", "+41791234567"), ("MessagingServiceSid", "MG1"), ("Body", "Hi")])
        );
        assert_eq!(form(text, None, 1), Err(Outcome::rejected("no_sender")));
    }

    #[test]
    fn an_override_changes_neither_the_target_nor_the_sender() {
        let sms = json!({ "text": "Hi", "from": "Shop", "twilio": { "payload": {
            "SmartEncoded": true, "MaxPrice": 0.5, "To": "+1", "From": "Bank", "MessagingServiceSid": "MG2"
        } } });
        let sent = form(sms, None, 86_400).unwrap();
        assert_eq!(
            sent,
            expected([
                ("To", "+41791234567"),
                ("From", "Shop"),
                ("Body", "Hi"),
                ("SmartEncoded", "true"),
                ("MaxPrice", "0.5")
            ])
        );
    }
}
