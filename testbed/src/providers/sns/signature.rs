//! Checks signatures (AWS: "Signature Version 4 signing process"), without a library of Amazon's, so that the worker's signer is
//! checked by something else.

use std::fmt::Write as _;

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
};
use http::{HeaderMap, header::AUTHORIZATION, request::Parts};
use jiff::tz::TimeZone;

use super::site::SnsApi;

/// A signature may be this many seconds old, or ahead.
const TOLERANCE_S: i64 = 900;

/// Why a signature is not taken: Amazon's error code.
pub(super) fn check(api: &SnsApi, head: &Parts, body: &[u8], now_s: i64) -> Result<(), &'static str> {
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = header(AUTHORIZATION.as_str()).ok_or("MissingAuthenticationToken")?;
    let fields = authorization
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .ok_or("IncompleteSignature")?;
    let field = |name: &str| {
        let mut fields = fields.split(',').filter_map(|field| field.trim().split_once('='));
        fields.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let credential = field("Credential").ok_or("IncompleteSignature")?;
    let signed = field("SignedHeaders").ok_or("IncompleteSignature")?;
    let signature = field("Signature").ok_or("IncompleteSignature")?;
    let (key_id, scope) = credential.split_once('/').ok_or("IncompleteSignature")?;
    if key_id != api.access_key_id {
        return Err("InvalidClientTokenId");
    }
    let time = header("x-amz-date").ok_or("IncompleteSignature")?;
    let at = jiff::fmt::strtime::parse("%Y%m%dT%H%M%SZ", time)
        .and_then(|parsed| parsed.to_datetime())
        .and_then(|at| at.to_zoned(TimeZone::UTC))
        .map_err(|_| "IncompleteSignature")?;
    if (at.timestamp().as_second() - now_s).abs() > TOLERANCE_S {
        return Err("RequestExpired");
    }
    let day = time.get(..8).unwrap_or_default();
    if scope != format!("{day}/{}/sns/aws4_request", api.region) {
        return Err("SignatureDoesNotMatch");
    }
    let canonical = canonical(head, body, signed).ok_or("IncompleteSignature")?;
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
        hex(digest(&SHA256, canonical.as_bytes()))
    );
    let mut key = format!("AWS4{}", api.secret_access_key).into_bytes();
    for part in [day, &api.region, "sns", "aws4_request"] {
        key = mac(&key, part);
    }
    if hex(mac(&key, &to_sign)) == signature {
        Ok(())
    } else {
        Err("SignatureDoesNotMatch")
    }
}

/// The request as it was signed; `None` if a header is missing, or one that must be signed is not.
fn canonical(head: &Parts, body: &[u8], signed: &str) -> Option<String> {
    if !["host", "x-amz-date"]
        .iter()
        .all(|name| signed.split(';').any(|signed| signed == *name))
    {
        return None;
    }
    let mut text = format!("{}\n{}\n", head.method, head.uri.path());
    text.push_str(head.uri.query().unwrap_or_default());
    text.push('\n');
    for name in signed.split(';') {
        let value = value(&head.headers, name).or_else(|| {
            // HTTP/2 sends the host as `:authority`.
            let authority = (name == "host").then(|| head.uri.authority()).flatten()?;
            Some(authority.as_str())
        })?;
        let words: Vec<&str> = value.split_whitespace().collect();
        writeln!(text, "{name}:{}", words.join(" ")).ok()?;
    }
    write!(text, "\n{signed}\n{}", hex(digest(&SHA256, body))).ok()?;
    Some(text)
}

fn value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _always = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the signing key in Amazon's "Derive a signing key".
    #[test]
    fn a_signing_key_is_derived_as_amazon_does() {
        let mut key = b"AWS4wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_vec();
        for part in ["20150830", "us-east-1", "iam", "aws4_request"] {
            key = mac(&key, part);
        }
        assert_eq!(
            hex(key),
            "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
        );
    }
}
