//! One message as a signed request of Amazon's ("Publish", "Signature Version 4").

use std::time::{Duration, SystemTime};

use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use reqwest::RequestBuilder;
use shared::{
    address::Phone,
    content::{push::Push, sms::Sms},
    provider::{
        apns::PushType,
        sns::{Platform, Target},
    },
};

use super::config::Account;
use crate::providers::transport::https::secret_header;

const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// The fields of a request.
pub(super) type Form = Vec<(String, String)>;

/// Publishes a push to an endpoint. `left` is the time to live that remains.
pub(super) fn push(target: &Target, push: &Push, collapse_id: &str, left: Duration) -> Form {
    let platform = target.platform_name();
    let of_platform = |name: &str| format!("AWS.SNS.MOBILE.{platform}.{name}");
    let mut attributes = vec![(of_platform("TTL"), left.as_secs().to_string())];
    if let Platform::Apns { .. } = target.platform() {
        // These are named so for every environment.
        let of_apns = |name: &str| format!("AWS.SNS.MOBILE.APNS.{name}");
        let kind = match push.apns_push_type() {
            kind @ (PushType::Background | PushType::Voip) => kind,
            _ => PushType::Alert,
        };
        attributes.push((of_apns("PUSH_TYPE"), kind.as_str().to_owned()));
        attributes.push((of_apns("PRIORITY"), push.apns_priority().to_string()));
        attributes.push((of_apns("COLLAPSE_ID"), collapse_id.to_owned()));
    }
    let mut form = publish(
        "TargetArn",
        target.arn.reveal(),
        target.render(push, collapse_id),
        attributes,
    );
    form.push(("MessageStructure".to_owned(), "json".to_owned()));
    form
}

/// Publishes a text message to a number. Without a sender, that of the account sends it.
pub(super) fn text(phone: &Phone, sms: &Sms) -> Form {
    // The other type is for what may be lost: it is cheaper, and Amazon delivers it less reliably.
    let mut attributes = vec![("AWS.SNS.SMS.SMSType".to_owned(), "Transactional".to_owned())];
    if let Some(from) = &sms.from {
        let is_number = from.trim_start_matches('+').bytes().all(|byte| byte.is_ascii_digit());
        let name = if is_number {
            "AWS.MM.SMS.OriginationNumber"
        } else {
            "AWS.SNS.SMS.SenderID"
        };
        attributes.push((name.to_owned(), from.clone()));
    }
    publish("PhoneNumber", phone.reveal(), sms.text.clone(), attributes)
}

fn publish(target: &str, value: &str, message: String, attributes: Vec<(String, String)>) -> Form {
    let mut form: Form = [("Action", "Publish"), ("Version", "2010-03-31"), (target, value)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    form.push(("Message".to_owned(), message));
    for (number, (name, value)) in (1..).zip(attributes) {
        let entry = format!("MessageAttributes.entry.{number}");
        form.push((format!("{entry}.Name"), name));
        form.push((format!("{entry}.Value.DataType"), "String".to_owned()));
        form.push((format!("{entry}.Value.StringValue"), value));
    }
    form
}

/// The request, which begins with `post`, signed at `now`; `None` if it cannot be signed.
pub(super) fn request(post: RequestBuilder, account: &Account, form: &Form, now: Timestamp) -> Option<RequestBuilder> {
    let body = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(form)
        .finish();
    let identity = account.credentials.clone().into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(&account.region)
        .name("sns")
        .time(SystemTime::from(now))
        .settings(SigningSettings::default())
        .build()
        .ok()?;
    let headers = [(CONTENT_TYPE.as_str(), FORM)].into_iter();
    let signable = SignableRequest::new(
        "POST",
        account.url.as_str(),
        headers,
        SignableBody::Bytes(body.as_bytes()),
    );
    let (signed, _) = sign(signable.ok()?, &parameters.into()).ok()?.into_parts();
    let mut post = post.header(CONTENT_TYPE, FORM);
    for (name, value) in signed.headers() {
        post = post.header(name, secret_header(value.to_owned())?);
    }
    Some(post.body(body))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aws_credential_types::Credentials;
    use serde_json::json;

    use super::*;
    use crate::providers::transport::https;

    fn fields(form: Form) -> BTreeMap<String, String> {
        form.into_iter().collect()
    }

    /// The attributes of a message by name.
    fn attributes(form: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
        let value = |name: &str| form[&name.replace(".Name", ".Value.StringValue")].as_str();
        form.iter()
            .filter(|(name, _)| name.ends_with(".Name"))
            .map(|(name, attribute)| (attribute.as_str(), value(name)))
            .collect()
    }

    #[test]
    fn a_push_names_its_endpoint_and_how_long_it_lives() {
        let of = |platform: &str, json: serde_json::Value| {
            let arn = format!("arn:aws:sns:eu-central-1:1:endpoint/{platform}/shop/1");
            let content: Push = serde_json::from_value(json).unwrap();
            fields(push(
                &Target::new(&arn).unwrap(),
                &content,
                "job",
                Duration::from_secs(90),
            ))
        };
        let form = of("GCM", json!({ "title": "Paid" }));
        assert_eq!(form["TargetArn"], "arn:aws:sns:eu-central-1:1:endpoint/GCM/shop/1");
        assert_eq!((&*form["Action"], &*form["MessageStructure"]), ("Publish", "json"));
        assert_eq!(attributes(&form), BTreeMap::from([("AWS.SNS.MOBILE.GCM.TTL", "90")]));
        let form = of("APNS_SANDBOX", json!({ "silent": true }));
        assert_eq!(
            attributes(&form),
            BTreeMap::from([
                ("AWS.SNS.MOBILE.APNS_SANDBOX.TTL", "90"),
                ("AWS.SNS.MOBILE.APNS.PUSH_TYPE", "background"),
                ("AWS.SNS.MOBILE.APNS.PRIORITY", "5"),
                ("AWS.SNS.MOBILE.APNS.COLLAPSE_ID", "job"),
            ])
        );
    }

    #[test]
    fn a_text_message_names_its_sender_by_its_kind() {
        let phone: Phone = "+41791234567".parse().unwrap();
        let of = |from: Option<&str>| {
            let form = fields(text(
                &phone,
                &Sms {
                    text: "Grüezi".into(),
                    from: from.map(Into::into),
                    ..Sms::default()
                },
            ));
            assert_eq!((&*form["PhoneNumber"], &*form["Message"]), ("+41791234567", "Grüezi"));
            attributes(&form)
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        assert_eq!(of(None).len(), 1);
        assert_eq!(of(Some("Shop"))["AWS.SNS.SMS.SenderID"], "Shop");
        assert_eq!(of(Some("+41790000000"))["AWS.MM.SMS.OriginationNumber"], "+41790000000");
    }

    #[test]
    fn a_signature_is_amazons_and_is_not_shown() {
        let account = Account {
            name: String::new(),
            url: "https://sns.eu-central-1.amazonaws.com/".parse().unwrap(),
            region: "eu-central-1".into(),
            credentials: Credentials::new("AKIDEXAMPLE", "secret", None, None, "peal"),
        };
        let post = https::client(None, Duration::from_secs(1))
            .unwrap()
            .post(account.url.clone());
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let request = request(post, &account, &Vec::new(), now).unwrap().build().unwrap();
        let authorization = request.headers()["authorization"].to_str().unwrap();
        assert!(
            authorization.starts_with(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20270115/eu-central-1/sns/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date, Signature="
            ),
            "{authorization}"
        );
        assert!(!format!("{request:?}").contains("Signature="));
    }
}
