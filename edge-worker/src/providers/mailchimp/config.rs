//! Settings of Mailchimp Transactional, and the checked credential of an app.

use std::path::PathBuf;

use serde::Deserialize;
use shared::{provider::mailchimp::Credential, secret::Secret};

use crate::providers::outcome::fingerprint;

/// Settings of Mailchimp Transactional.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Base URL, https.
    pub endpoint: String,
    /// Certificates in PEM to trust instead of the operating system's.
    pub ca_file: Option<PathBuf>,
    /// Milliseconds that an attempt may take; at most 12,000.
    pub timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoint: "https://mandrillapp.com".into(),
            ca_file: None,
            timeout_ms: 12_000,
        }
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
