//! Vonage, formerly Nexmo: credentials, and the form of a text message.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::check_webhook_key;
use crate::{
    content::{segments::Alphabet, sms::Sms},
    invalid::Invalid,
    secret::Secret,
};

/// An account of Vonage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The API key that names the account: 8 letters and digits.
    pub api_key: String,
    /// Its secret.
    #[serde(
        serialize_with = "crate::secret::reveal",
        deserialize_with = "crate::secret::one_line"
    )]
    pub api_secret: Secret,
    /// The key that verifies what Vonage reports: the account's signature secret, with the method HMAC-SHA-256 or HMAC-SHA-512.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::secret::reveal_some"
    )]
    pub webhook_key: Option<Secret>,
}

/// Fields of a message that Peal alone sets.
pub const OWN: &[&str] = &["to", "from", "api_key", "api_secret", "sig", "timestamp", "client-ref"];

impl Credential {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let is_key =
            (1..=64).contains(&self.api_key.len()) && self.api_key.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_key {
            return Err(Invalid::new("api_key", "must be 1 to 64 letters and digits"));
        }
        check_webhook_key(self.webhook_key.as_ref())?;
        let secret = self.api_secret.reveal();
        if !(1..=256).contains(&secret.len()) || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Invalid::new(
                "api_secret",
                "must be 1 to 256 printable ASCII characters",
            ));
        }
        Ok(())
    }
}

/// The form of `POST /sms/json`, without [`OWN`] fields. Vonage sends GSM 7-bit unless it is told otherwise, and replaces what
/// that alphabet lacks.
pub fn render(sms: &Sms) -> BTreeMap<String, String> {
    let kind = match sms.alphabet() {
        Alphabet::Gsm7 => "text",
        Alphabet::Ucs2 => "unicode",
    };
    let mut form = BTreeMap::from([
        ("text".to_owned(), sms.text.clone()),
        ("type".to_owned(), kind.to_owned()),
    ]);
    if let Some(over) = &sms.vonage {
        over.lay_on(&mut form, OWN);
    }
    form
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_of_another_form_is_named() {
        let of = |api_key: &str, api_secret: &str| Credential {
            api_key: api_key.into(),
            api_secret: api_secret.to_owned().into(),
            webhook_key: None,
        };
        of("abcd1234", "s3cret").check().unwrap();
        for (field, credential) in [
            ("api_key", of("", "x")),
            ("api_key", of("a b", "x")),
            ("api_secret", of("a", "")),
            ("api_secret", of("a", "x\n")),
        ] {
            assert_eq!(credential.check().unwrap_err().field, field);
        }
    }
}
