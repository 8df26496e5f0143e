//! `SendGrid`: the credential.

use serde::{Deserialize, Serialize};

use super::{check_webhook_key, is_api_key};
use crate::{invalid::Invalid, secret::Secret};

/// A key of `SendGrid`'s API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The key, with the permission to send mail. It begins with `SG.`.
    #[serde(serialize_with = "crate::secret::reveal")]
    pub api_key: Secret,
    /// Whether it belongs to a subuser whose data stays in the EU, which has a host of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub eu: bool,
    /// The key that verifies what `SendGrid` reports ("Signed Event Webhook"): the public key that it shows, in base64.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::secret::reveal_some"
    )]
    pub webhook_key: Option<Secret>,
}

/// Members of a mail that Peal alone sets.
pub const OWN: &[&str] = &["personalizations", "from"];

impl Credential {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if is_api_key(self.api_key.reveal()) {
            check_webhook_key(self.webhook_key.as_ref())
        } else {
            Err(Invalid::new("api_key", "must be 1 to 256 printable ASCII characters"))
        }
    }
}
