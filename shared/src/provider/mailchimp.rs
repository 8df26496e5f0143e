//! Mailchimp Transactional, formerly Mandrill: the credential.

use serde::{Deserialize, Serialize};

use super::{check_webhook_key, is_api_key};
use crate::{invalid::Invalid, secret::Secret};

/// A key of Mailchimp Transactional's API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The key.
    #[serde(serialize_with = "crate::secret::reveal")]
    pub api_key: Secret,
    /// The subaccount under which mails are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subaccount: Option<String>,
    /// The key that verifies what Mailchimp reports: that of the webhook.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::secret::reveal_some"
    )]
    pub webhook_key: Option<Secret>,
}

/// Members of a request that Peal alone sets.
pub const OWN: &[&str] = &[
    "key",
    "message.to",
    "message.from_email",
    "message.from_name",
    "message.metadata",
    "message.subaccount",
];

impl Credential {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if !is_api_key(self.api_key.reveal()) {
            return Err(Invalid::new("api_key", "must be 1 to 256 printable ASCII characters"));
        }
        check_webhook_key(self.webhook_key.as_ref())?;
        let is_name = |name: &String| (1..=255).contains(&name.len()) && !name.chars().any(char::is_control);
        if self.subaccount.as_ref().is_none_or(is_name) {
            Ok(())
        } else {
            Err(Invalid::new(
                "subaccount",
                "must be 1 to 255 bytes without control characters",
            ))
        }
    }
}
