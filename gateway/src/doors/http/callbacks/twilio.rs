//! Twilio's status callbacks ("Track the Message Status of Outbound Messages", "Webhooks Security").

use shared::{
    feedback::{Kind, Report},
    provider::twilio::Credential,
    reference::MEMBER,
};

use super::{Callback, Refused, form, malformed};

/// Twilio refuses a message because the recipient answered STOP.
const STOPPED: &str = "21610";

/// Reads a callback. Twilio signs the URL as it was given, with its query, and states no time.
pub(super) fn read(callback: &Callback<'_>, credential: &Credential) -> Result<Vec<Report>, Refused> {
    let key = credential.webhook_key().ok_or(Refused::NoKey)?;
    let fields = form::read(callback.body);
    if !form::is_signed(
        callback.url,
        &fields,
        key.reveal(),
        callback.header("x-twilio-signature"),
    ) {
        return Err(Refused::Unsigned);
    }
    if fields.get("AccountSid") != Some(&credential.account_sid) {
        return Err(Refused::Unsigned);
    }
    let field = |name: &str| fields.get(name).map(String::as_str);
    let error = field("ErrorCode").filter(|code| !code.is_empty() && *code != "0");
    let kind = match (field("MessageStatus").or(field("SmsStatus")), error) {
        (Some("delivered" | "read"), _) => Kind::Confirmed,
        (Some("undelivered" | "failed"), Some(STOPPED)) => Kind::Unsubscribed,
        (Some("undelivered" | "failed"), _) => Kind::Undelivered,
        // On its way: accepted, queued, sending, sent, scheduled. Later words are Twilio's business.
        (Some(_), _) => return Ok(Vec::new()),
        (None, _) => return Err(malformed("MessageStatus", "must be given")),
    };
    let sid = field("MessageSid").or(field("SmsSid"));
    let mut query = form::read(callback.query.as_bytes());
    let Some(reference) = query.remove(MEMBER) else {
        return Ok(Vec::new());
    };
    Ok(vec![Report {
        reference,
        event: sid.unwrap_or_default().to_owned(),
        kind,
        at: callback.now,
        reason: error.map(str::to_owned),
        hard: None,
    }])
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{URL, callback_at},
        *,
    };

    const SID: &str = "AC0123456789abcdef0123456789abcdef";

    fn credential() -> Credential {
        serde_json::from_str(&format!(r#"{{"account_sid":"{SID}","secret":"12345"}}"#)).unwrap()
    }

    /// The example of Twilio's documentation of its security.
    #[test]
    fn the_documented_example_is_signed() {
        let fields = form::read(
            b"CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&From=%2B14158675309&To=%2B18005551212",
        );
        let url = "https://mycompany.com/myapp.php?foo=1&bar=2";
        assert!(form::is_signed(url, &fields, "12345", "RSOYDt4T1cUTdK1PDd93/VVr8B8="));
        assert!(!form::is_signed(url, &fields, "12346", "RSOYDt4T1cUTdK1PDd93/VVr8B8="));
    }

    /// Signed by `getExpectedTwilioSignature` of Twilio's library for Node.js, 5.13.1.
    #[test]
    fn what_the_vendors_library_signs_is_signed() {
        let url = "https://peal.example.com/v1/callbacks/twilio/shop?peal_reference=AQE-_x";
        let body = format!(
            "MessageSid=SM0123456789abcdef0123456789abcdef&AccountSid={SID}&MessageStatus=undelivered&ErrorCode=30005\
             &To=%2B41791234567&From=Gr%C3%BCezi"
        );
        let headers = [("x-twilio-signature", "vNxx9F5Lm03zBkG02UsmZEbRtRA=")];
        let read = callback_at(url, &headers, body.as_bytes(), |callback| read(callback, &credential()));
        assert_eq!(read.unwrap()[0].kind, Kind::Undelivered);
    }

    fn signature(url: &str, body: &str) -> String {
        use aws_lc_rs::hmac;
        use base64::{Engine, engine::general_purpose::STANDARD};
        let mut signed = url.to_owned();
        for (name, value) in form::read(body.as_bytes()) {
            signed += &(name + &value);
        }
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"12345");
        STANDARD.encode(hmac::sign(&key, signed.as_bytes()))
    }

    #[test]
    fn each_status_is_read() {
        let url = format!("{URL}?peal_reference=abc");
        let read = |status: &str, code: &str| {
            let body = format!("MessageSid=SM1&AccountSid={SID}&MessageStatus={status}&ErrorCode={code}");
            let signature = signature(&url, &body);
            let headers = [("x-twilio-signature", signature.as_str())];
            let read = callback_at(&url, &headers, body.as_bytes(), |callback| {
                read(callback, &credential())
            });
            read.unwrap().pop().map(|report| {
                assert_eq!((report.reference.as_str(), report.event.as_str()), ("abc", "SM1"));
                (report.kind, report.reason)
            })
        };
        let reason = |code: &str| Some(code.to_owned());
        assert_eq!(read("delivered", ""), Some((Kind::Confirmed, None)));
        assert_eq!(read("undelivered", "30005"), Some((Kind::Undelivered, reason("30005"))));
        assert_eq!(read("failed", "21610"), Some((Kind::Unsubscribed, reason("21610"))));
        for passing in ["queued", "sent", "levitating"] {
            assert_eq!(read(passing, ""), None);
        }
    }

    #[test]
    fn another_url_key_account_or_field_is_not_signed() {
        let url = format!("{URL}?peal_reference=abc");
        let body = format!("MessageSid=SM1&AccountSid={SID}&MessageStatus=delivered");
        let good = signature(&url, &body);
        let is_refused = |url: &str, body: &str, signature: &str| {
            let headers = [("x-twilio-signature", signature)];
            let read = callback_at(url, &headers, body.as_bytes(), |callback| read(callback, &credential()));
            matches!(read, Err(Refused::Unsigned))
        };
        assert!(!is_refused(&url, &body, &good));
        assert!(is_refused(&format!("{URL}?peal_reference=abd"), &body, &good));
        assert!(is_refused(&url, &body.replace("SM1", "SM2"), &good));
        assert!(is_refused(&url, &body, ""));
        let stranger = body.replace("AC0", "AC1");
        assert!(is_refused(&url, &stranger, &signature(&url, &stranger)));
    }
}
