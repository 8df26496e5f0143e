//! Mailchimp Transactional's webhooks ("Track and Respond to Activity with Webhooks", "Authenticating webhook requests").

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use shared::{
    feedback::{Kind, Report},
    provider::mailchimp::Credential,
    reference::MEMBER,
};

use super::{Callback, Refused, form, json, malformed};

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(default, rename = "event")]
    word: Option<String>,
    #[serde(default)]
    ts: Option<i64>,
    #[serde(default, rename = "_id")]
    id: Option<String>,
    #[serde(default)]
    msg: Option<Message>,
}

#[derive(Debug, Deserialize)]
struct Message {
    /// An empty list if there is none.
    #[serde(default)]
    metadata: Value,
    #[serde(default)]
    diag: Option<String>,
    #[serde(default)]
    bounce_description: Option<String>,
}

/// Reads a callback. Mailchimp signs the URL and the form, and states the times of events alone.
pub(super) fn read(callback: &Callback<'_>, credential: &Credential) -> Result<Vec<Report>, Refused> {
    let key = credential.webhook_key.as_ref().ok_or(Refused::NoKey)?;
    let fields = form::read(callback.body);
    if !form::is_signed(
        callback.url,
        &fields,
        key.reveal(),
        callback.header("x-mandrill-signature"),
    ) {
        return Err(Refused::Unsigned);
    }
    let events = fields.get("mandrill_events");
    let events = events.ok_or_else(|| malformed("mandrill_events", "must be given"))?;
    let events: Vec<Event> = json(events.as_bytes())?;
    Ok(events.into_iter().filter_map(|event| report(callback, event)).collect())
}

fn report(callback: &Callback<'_>, event: Event) -> Option<Report> {
    let (kind, hard) = match event.word.as_deref()? {
        "delivered" => (Kind::Confirmed, None),
        "hard_bounce" => (Kind::Bounced, Some(true)),
        "soft_bounce" => (Kind::Bounced, Some(false)),
        "spam" => (Kind::Complained, None),
        "unsub" => (Kind::Unsubscribed, None),
        "reject" => (Kind::Undelivered, None),
        _ => return None,
    };
    let message = event.msg?;
    let reference = message.metadata.get(MEMBER)?.as_str()?.to_owned();
    let at = event.ts.and_then(|seconds| Timestamp::from_second(seconds).ok());
    // The description is a word; the diagnosis is what the other server wrote, often with the address.
    let reason = message
        .bounce_description
        .filter(|word| !word.is_empty())
        .or(message.diag);
    Some(Report {
        reference,
        event: event.id.unwrap_or_default(),
        kind,
        at: at.map_or(callback.now, |at| callback.past(at)),
        reason,
        hard,
    })
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::hmac;
    use base64::{Engine, engine::general_purpose::STANDARD};

    use super::{
        super::testing::{NOW_S, URL, callback},
        *,
    };

    fn reports(events: &Value, key: &str) -> Result<Vec<Report>, Refused> {
        let events = events.to_string();
        let body = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("mandrill_events", &events)
            .finish();
        let mac = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
        let signature = STANDARD.encode(hmac::sign(&mac, format!("{URL}mandrill_events{events}").as_bytes()));
        let credential: Credential = serde_json::from_str(r#"{"api_key":"md-x","webhook_key":"hook"}"#).unwrap();
        let headers = [("x-mandrill-signature", signature.as_str())];
        callback(&headers, body.as_bytes(), |callback| read(callback, &credential))
    }

    #[test]
    fn each_event_is_read_and_those_of_other_mails_are_ignored() {
        let event = |word: &str, metadata: Value| {
            let msg = serde_json::json!({ "metadata": metadata, "bounce_description": "bad_mailbox", "email": "a@b" });
            serde_json::json!({ "event": word, "ts": NOW_S - 5, "_id": "e1", "msg": msg })
        };
        for (word, expected) in [
            ("delivered", Some((Kind::Confirmed, None))),
            ("hard_bounce", Some((Kind::Bounced, Some(true)))),
            ("soft_bounce", Some((Kind::Bounced, Some(false)))),
            ("spam", Some((Kind::Complained, None))),
            ("unsub", Some((Kind::Unsubscribed, None))),
            ("reject", Some((Kind::Undelivered, None))),
            ("send", None),
            ("deferral", None),
            ("open", None),
        ] {
            let events = serde_json::json!([event(word, serde_json::json!({ "peal_reference": "abc" }))]);
            let report = reports(&events, "hook").unwrap().pop();
            assert_eq!(
                report.as_ref().map(|report| (report.kind, report.hard)),
                expected,
                "{word}"
            );
            if let Some(report) = report {
                assert_eq!((report.reference.as_str(), report.at.as_second()), ("abc", NOW_S - 5));
            }
        }
        let others = serde_json::json!([event("spam", serde_json::json!([])), {}, { "event": "spam" }]);
        assert!(reports(&others, "hook").unwrap().is_empty());
        assert!(reports(&serde_json::json!([]), "hook").unwrap().is_empty());
        assert!(matches!(
            reports(&serde_json::json!({}), "hook"),
            Err(Refused::Malformed(_))
        ));
        assert!(matches!(
            reports(&serde_json::json!([]), "other"),
            Err(Refused::Unsigned)
        ));
    }
}
