//! Settings of Mailchimp Transactional, and the checked credential of an app.

use shared::{provider::mailchimp::Credential, secret::Secret};

use crate::providers::outcome::fingerprint;

crate::providers::transport::https::settings! {
    /// Settings of Mailchimp Transactional.
    Settings {
        /// Base URL, https.
        endpoint = "https://mandrillapp.com",
    }
}

/// A checked [`shared::provider::mailchimp::Credential`], ready for use.
#[derive(Debug)]
pub(in crate::providers) struct Account {
    /// Names the credential in metrics and logs.
    pub(super) name: String,
    pub(super) key: Secret,
    pub(super) subaccount: Option<String>,
}

impl Account {
    /// Prepares the use of a credential that gateways have checked.
    pub(super) fn new(credential: Credential) -> Self {
        Self {
            name: fingerprint(credential.api_key.reveal()),
            key: credential.api_key,
            subaccount: credential.subaccount,
        }
    }
}
