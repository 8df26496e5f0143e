//! Twilio: credentials, and the form of a text message.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::check_webhook_key;
use crate::{content::sms::Sms, invalid::Invalid, secret::Secret};

/// An account of Twilio.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The SID of the account: `AC` and 32 hexadecimal digits.
    pub account_sid: String,
    /// The SID of an API key, `SK` and 32 hexadecimal digits, if `secret` is that of a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_sid: Option<String>,
    /// The secret of the API key, or else the auth token of the account.
    #[serde(
        serialize_with = "crate::secret::reveal",
        deserialize_with = "crate::secret::one_line"
    )]
    pub secret: Secret,
    /// The SID of the messaging service that sends what has no sender: `MG` and 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messaging_service_sid: Option<String>,
    /// The key that verifies what Twilio reports: the auth token of the account. Needed if `secret` is that of an API key.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::secret::reveal_some"
    )]
    pub webhook_key: Option<Secret>,
}

impl Credential {
    /// The key that verifies what Twilio reports; `None` if none is known.
    pub fn webhook_key(&self) -> Option<&Secret> {
        let auth_token = self.api_key_sid.is_none().then_some(&self.secret);
        self.webhook_key.as_ref().or(auth_token)
    }
}

/// Fields of a message that Peal alone sets.
pub const OWN: &[&str] = &["To", "From", "MessagingServiceSid"];

impl Credential {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let sids = [
            ("account_sid", "AC", Some(&self.account_sid)),
            ("api_key_sid", "SK", self.api_key_sid.as_ref()),
            ("messaging_service_sid", "MG", self.messaging_service_sid.as_ref()),
        ];
        for (name, prefix, sid) in sids {
            if sid.is_some_and(|sid| !is_sid(sid, prefix)) {
                return Err(Invalid::new(
                    name,
                    format_args!("must be {prefix} and 32 hexadecimal digits"),
                ));
            }
        }
        check_webhook_key(self.webhook_key.as_ref())?;
        // Before the colon of Basic authentication stands the SID, so a secret may have any character but those of control.
        let secret = self.secret.reveal();
        if !(1..=256).contains(&secret.len()) || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Invalid::new("secret", "must be 1 to 256 printable ASCII characters"));
        }
        Ok(())
    }
}

fn is_sid(text: &str, prefix: &str) -> bool {
    let digits = text.strip_prefix(prefix).unwrap_or_default();
    digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The form of `POST /2010-04-01/Accounts/{account}/Messages.json`, without [`OWN`] fields. Twilio chooses the alphabet.
pub fn render(sms: &Sms) -> BTreeMap<String, String> {
    let mut form = BTreeMap::from([("Body".to_owned(), sms.text.clone())]);
    if let Some(over) = &sms.twilio {
        over.lay_on(&mut form, OWN);
    }
    form
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_of_another_form_is_named() {
        let digits = "0123456789abcdef0123456789abcdef";
        let good = Credential {
            account_sid: format!("AC{digits}"),
            api_key_sid: Some(format!("SK{digits}")),
            secret: "s3cret".to_owned().into(),
            messaging_service_sid: Some(format!("MG{digits}")),
            webhook_key: None,
        };
        good.check().unwrap();
        let bad = [
            (
                "account_sid",
                Credential {
                    account_sid: format!("SK{digits}"),
                    ..good.clone()
                },
            ),
            (
                "account_sid",
                Credential {
                    account_sid: "AC12/../".into(),
                    ..good.clone()
                },
            ),
            (
                "api_key_sid",
                Credential {
                    api_key_sid: Some("SK".into()),
                    ..good.clone()
                },
            ),
            (
                "messaging_service_sid",
                Credential {
                    messaging_service_sid: Some(digits.into()),
                    ..good.clone()
                },
            ),
            (
                "secret",
                Credential {
                    secret: String::new().into(),
                    ..good.clone()
                },
            ),
            (
                "secret",
                Credential {
                    secret: "a\nb".to_owned().into(),
                    ..good
                },
            ),
        ];
        for (field, credential) in bad {
            assert_eq!(credential.check().unwrap_err().field, field);
        }
    }
}
