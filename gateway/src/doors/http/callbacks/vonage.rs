//! Vonage's delivery receipts ("SMS Delivery Receipts", "Signing Messages").

use std::fmt::Write;

use aws_lc_rs::hmac;
use serde_json::Value;
use shared::{
    feedback::{Kind, Report},
    provider::vonage::Credential,
};

use super::{Callback, Refused, form, json, malformed, seconds};

/// Reads a callback: a form, or the same members as JSON. Vonage signs the members, among them the time of signing.
pub(super) fn read(callback: &Callback<'_>, credential: &Credential) -> Result<Vec<Report>, Refused> {
    let key = credential.webhook_key.as_ref().ok_or(Refused::NoKey)?;
    let mut fields = if callback.header("content-type").starts_with("application/json") {
        let members: serde_json::Map<String, Value> = json(callback.body)?;
        members.into_iter().map(|(name, value)| (name, text(value))).collect()
    } else {
        form::read(callback.body)
    };
    let signature = fields.remove("sig").ok_or(Refused::Unsigned)?;
    if !is_signed(&fields, key.reveal(), &signature) {
        return Err(Refused::Unsigned);
    }
    let signed_at = fields.get("timestamp").and_then(|time| seconds(time));
    callback.check_time(signed_at.ok_or(Refused::Unsigned)?)?;
    let key_of = |fields: &form::Fields| fields.get("api-key").cloned();
    if key_of(&fields).is_some_and(|key| key != credential.api_key) {
        return Err(Refused::Unsigned);
    }
    let kind = match fields.get("status").map(String::as_str) {
        Some("delivered") => Kind::Confirmed,
        Some("expired" | "failed" | "rejected") => Kind::Undelivered,
        // On its way: accepted, buffered. `unknown` says nothing.
        Some(_) => return Ok(Vec::new()),
        None => return Err(malformed("status", "must be given")),
    };
    let Some(reference) = fields.remove("client-ref") else {
        return Ok(Vec::new());
    };
    Ok(vec![Report {
        reference,
        // Each segment has an id of its own.
        event: fields.remove("messageId").unwrap_or_default(),
        kind,
        at: signed_at.map_or(callback.now, |at| callback.past(at)),
        reason: fields.remove("err-code").filter(|code| !code.is_empty() && code != "0"),
        hard: None,
    }])
}

/// Whether `signature` is the HMAC in hexadecimal over all fields. Its length tells SHA-256 from SHA-512; Vonage's older methods
/// are not taken.
fn is_signed(fields: &form::Fields, key: &str, signature: &str) -> bool {
    let algorithm = match signature.len() {
        64 => hmac::HMAC_SHA256,
        128 => hmac::HMAC_SHA512,
        _ => return false,
    };
    let mut signed = String::new();
    for (name, value) in fields {
        let _infallible = write!(signed, "&{name}={}", value.replace(['&', '='], "_"));
    }
    let Some(given) = from_hex(signature) else {
        return false;
    };
    hmac::verify(&hmac::Key::new(algorithm, key.as_bytes()), signed.as_bytes(), &given).is_ok()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect()
}

fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::testing::{NOW_S, callback},
        *,
    };

    fn credential() -> Credential {
        let json = r#"{"api_key":"abcd1234","api_secret":"x","webhook_key":"signature-secret"}"#;
        serde_json::from_str(json).unwrap()
    }

    fn signed(mut fields: form::Fields, key: &str, algorithm: hmac::Algorithm) -> form::Fields {
        let text: String = fields.iter().fold(String::new(), |mut text, (name, value)| {
            write!(text, "&{name}={}", value.replace(['&', '='], "_")).unwrap();
            text
        });
        let mac = hmac::sign(&hmac::Key::new(algorithm, key.as_bytes()), text.as_bytes());
        let hex: Vec<String> = mac.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        fields.insert("sig".into(), hex.concat());
        fields
    }

    fn receipt(status: &str, at: i64) -> form::Fields {
        let fields = json!({ "api-key": "abcd1234", "client-ref": "abc", "err-code": "6", "messageId": "0A", "msisdn": "41791",
            "status": status, "message-timestamp": "2026-01-01 12:00:00 +0000", "odd": "a&b=c", "timestamp": at.to_string() });
        serde_json::from_value(fields).unwrap()
    }

    fn read_form(fields: &form::Fields) -> Result<Vec<Report>, Refused> {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        callback(&[], body.as_bytes(), |callback| read(callback, &credential()))
    }

    /// Signed by Vonage's library for Python, 3.17.4, with the method `sha256`.
    #[test]
    fn what_the_vendors_library_signs_is_signed() {
        let mut fields = receipt("failed", NOW_S);
        fields.extend([
            ("client-ref".to_owned(), "AQE-_x".to_owned()),
            ("messageId".to_owned(), "0A0000000123ABCD1".to_owned()),
            ("msisdn".to_owned(), "41791234567".to_owned()),
            ("message-timestamp".to_owned(), "2025-11-26 12:00:00 +0000".to_owned()),
        ]);
        let signature = "14c7f3fb4bc152c492c44c5840036bca9a0619213ca397e482c04f6b40022453";
        fields.insert("sig".to_owned(), signature.to_owned());
        assert_eq!(read_form(&fields).unwrap()[0].reference, "AQE-_x");
    }

    #[test]
    fn each_status_is_read_from_a_form_and_from_json() {
        for (status, expected) in [
            ("delivered", Some(Kind::Confirmed)),
            ("failed", Some(Kind::Undelivered)),
            ("expired", Some(Kind::Undelivered)),
            ("rejected", Some(Kind::Undelivered)),
            ("buffered", None),
            ("unknown", None),
        ] {
            for algorithm in [hmac::HMAC_SHA256, hmac::HMAC_SHA512] {
                let fields = signed(receipt(status, NOW_S), "signature-secret", algorithm);
                let report = read_form(&fields).unwrap().pop();
                assert_eq!(report.as_ref().map(|report| report.kind), expected, "{status}");
                let body = json!(fields).to_string();
                let headers = [("content-type", "application/json")];
                let same = callback(&headers, body.as_bytes(), |callback| read(callback, &credential()));
                assert_eq!(same.unwrap().pop(), report);
            }
        }
    }

    #[test]
    fn other_keys_methods_and_times_are_refused() {
        let of = |key: &str, algorithm, at| read_form(&signed(receipt("delivered", at), key, algorithm));
        assert!(of("signature-secret", hmac::HMAC_SHA256, NOW_S).is_ok());
        assert!(matches!(of("other", hmac::HMAC_SHA256, NOW_S), Err(Refused::Unsigned)));
        let weak = hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY;
        assert!(matches!(of("signature-secret", weak, NOW_S), Err(Refused::Unsigned)));
        assert!(matches!(
            of("signature-secret", hmac::HMAC_SHA256, NOW_S - 3601),
            Err(Refused::Stale)
        ));
        assert!(matches!(
            read_form(&receipt("delivered", NOW_S)),
            Err(Refused::Unsigned)
        ));
    }
}
