//! `SendGrid`'s events ("Event Webhook Reference", "Getting Started with the Event Webhook Security Features").

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::Deserialize;
use shared::{
    feedback::{Kind, Report},
    provider::sendgrid::Credential,
};

use super::{Callback, Refused, json, seconds};

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(default, rename = "event")]
    word: Option<String>,
    /// Of a bounce: `bounce` or `blocked`, which may pass.
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    timestamp: Option<i64>,
    #[serde(default)]
    sg_event_id: Option<String>,
    /// The enhanced status code.
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    peal_reference: Option<String>,
}

/// Reads a callback. `SendGrid` signs the time and the body with ECDSA on P-256.
pub(super) fn read(callback: &Callback<'_>, credential: &Credential) -> Result<Vec<Report>, Refused> {
    let key = credential.webhook_key.as_ref().ok_or(Refused::NoKey)?;
    let key = STANDARD.decode(key.reveal()).map_err(|_| Refused::NoKey)?;
    let time = callback.header("x-twilio-email-event-webhook-timestamp");
    let signature = callback.header("x-twilio-email-event-webhook-signature");
    let signature = STANDARD.decode(signature).map_err(|_| Refused::Unsigned)?;
    let signed = [time.as_bytes(), callback.body].concat();
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key);
    key.verify(&signed, &signature).map_err(|_| Refused::Unsigned)?;
    callback.check_time(seconds(time).ok_or(Refused::Unsigned)?)?;
    let events: Vec<Event> = json(callback.body)?;
    Ok(events.into_iter().filter_map(|event| report(callback, event)).collect())
}

fn report(callback: &Callback<'_>, event: Event) -> Option<Report> {
    let (kind, hard) = match (event.word.as_deref()?, event.kind.as_deref()) {
        ("delivered", _) => (Kind::Confirmed, None),
        ("bounce", Some("blocked")) => (Kind::Bounced, Some(false)),
        ("bounce", _) => (Kind::Bounced, Some(true)),
        ("dropped", _) => (Kind::Undelivered, None),
        ("spamreport", _) => (Kind::Complained, None),
        ("unsubscribe" | "group_unsubscribe", _) => (Kind::Unsubscribed, None),
        _ => return None,
    };
    let at = event.timestamp.and_then(|seconds| Timestamp::from_second(seconds).ok());
    Some(Report {
        reference: event.peal_reference?,
        event: event.sg_event_id.unwrap_or_default(),
        kind,
        at: at.map_or(callback.now, |at| callback.past(at)),
        reason: event.status.filter(|status| !status.is_empty()).or(event.reason),
        hard,
    })
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
    };
    use serde_json::{Value, json};

    use super::{
        super::testing::{NOW_S, callback},
        *,
    };

    struct Signer(EcdsaKeyPair);

    impl Signer {
        fn new() -> Self {
            Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap())
        }

        fn credential(&self) -> Credential {
            // The fixed beginning of the SPKI of a point on P-256 (RFC 5480).
            let mut spki = STANDARD.decode("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE").unwrap();
            spki.pop();
            spki.extend_from_slice(self.0.public_key().as_ref());
            let key = STANDARD.encode(spki);
            serde_json::from_value(json!({ "api_key": "SG.x", "webhook_key": key })).unwrap()
        }

        fn read(&self, credential: &Credential, body: &str, at: i64) -> Result<Vec<Report>, Refused> {
            let time = at.to_string();
            let signature = self.0.sign(&SystemRandom::new(), format!("{time}{body}").as_bytes());
            let signature = STANDARD.encode(signature.unwrap());
            let headers = [
                ("x-twilio-email-event-webhook-timestamp", time.as_str()),
                ("x-twilio-email-event-webhook-signature", signature.as_str()),
            ];
            callback(&headers, body.as_bytes(), |callback| read(callback, credential))
        }
    }

    /// The key, signature, time and body in the tests of `SendGrid`'s own libraries.
    #[test]
    fn the_vector_of_the_vendors_libraries_is_signed() {
        let key = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE83T4O/n84iotIvIW4mdBgQ/7dAfSmpqIM8kF9mN1flpVKS3GRqe62gw+2fNNRaINXvVpiglS\
            I8eNEc6wEA3F+g==";
        let signature =
            "MEUCIGHQVtGj+Y3LkG9fLcxf3qfI10QysgDWmMOVmxG0u6ZUAiEAyBiXDWzM+uOe5W0JuG+luQAbPIqHh89M15TluLtEZtM=";
        let body = concat!(
            r#"[{"email":"hello@world.com","event":"dropped","reason":"Bounced Address","#,
            r#""sg_event_id":"ZHJvcC0xMDk5NDkxOS1MUnpYbF9OSFN0T0doUTRrb2ZTbV9BLTA","#,
            r#""sg_message_id":"LRzXl_NHStOGhQ4kofSm_A.filterdrecv-p3mdw1-756b745b58-kmzbl-18-5F5FC76C-9.0","#,
            r#""smtp-id":"<LRzXl_NHStOGhQ4kofSm_A@ismtpd0039p1iad1.sendgrid.net>","timestamp":1600112492}]"#,
            "\r\n"
        );
        let read = |time: &str| {
            let headers = [
                ("x-twilio-email-event-webhook-timestamp", time),
                ("x-twilio-email-event-webhook-signature", signature),
            ];
            let credential = serde_json::from_value(json!({ "api_key": "SG.x", "webhook_key": key })).unwrap();
            callback(&headers, body.as_bytes(), |callback| super::read(callback, &credential))
        };
        // Signed, but years ago.
        assert!(matches!(read("1600112502"), Err(Refused::Stale)));
        assert!(matches!(read("1600112503"), Err(Refused::Unsigned)));
    }

    #[test]
    fn each_event_is_read_and_those_of_other_mails_are_ignored() {
        let signer = Signer::new();
        let credential = signer.credential();
        let event = |change: Value| {
            let mut event = json!({ "email": "a@b.example", "timestamp": NOW_S - 5, "sg_event_id": "e1",
                "peal_reference": "abc", "status": "5.1.1", "future": [1] });
            event
                .as_object_mut()
                .unwrap()
                .extend(change.as_object().unwrap().clone());
            event
        };
        for (change, expected) in [
            (json!({ "event": "delivered" }), Some((Kind::Confirmed, None))),
            (
                json!({ "event": "bounce", "type": "bounce" }),
                Some((Kind::Bounced, Some(true))),
            ),
            (
                json!({ "event": "bounce", "type": "blocked" }),
                Some((Kind::Bounced, Some(false))),
            ),
            (json!({ "event": "dropped" }), Some((Kind::Undelivered, None))),
            (json!({ "event": "spamreport" }), Some((Kind::Complained, None))),
            (json!({ "event": "unsubscribe" }), Some((Kind::Unsubscribed, None))),
            (json!({ "event": "deferred" }), None),
            (json!({ "event": "open" }), None),
            (json!({ "event": "delivered", "peal_reference": null }), None),
        ] {
            let body = json!([event(change.clone())]).to_string();
            let report = signer.read(&credential, &body, NOW_S).unwrap().pop();
            assert_eq!(
                report.as_ref().map(|report| (report.kind, report.hard)),
                expected,
                "{change}"
            );
            if let Some(report) = report {
                assert_eq!((report.event.as_str(), report.reason.as_deref()), ("e1", Some("5.1.1")));
            }
        }
    }

    #[test]
    fn another_key_an_old_signature_and_another_body_are_refused() {
        let (signer, stranger) = (Signer::new(), Signer::new());
        let credential = signer.credential();
        assert!(signer.read(&credential, "[]", NOW_S - 3599).is_ok());
        let read = |signer: &Signer, at| signer.read(&credential, "[]", at);
        assert!(matches!(read(&signer, NOW_S - 3601), Err(Refused::Stale)));
        assert!(matches!(read(&signer, NOW_S + 301), Err(Refused::Stale)));
        assert!(matches!(read(&stranger, NOW_S), Err(Refused::Unsigned)));
        assert!(matches!(
            signer.read(&credential, "{}", NOW_S),
            Err(Refused::Malformed(_))
        ));
        let without: Credential = serde_json::from_value(json!({ "api_key": "SG.x" })).unwrap();
        assert!(matches!(signer.read(&without, "[]", NOW_S), Err(Refused::NoKey)));
        let unsigned = callback(&[], b"[]", |callback| super::read(callback, &credential));
        assert!(matches!(unsigned, Err(Refused::Unsigned)));
    }
}
