//! Settings of Twilio, and the checked credential of an app.

use std::path::PathBuf;

use http::HeaderValue;
use reqwest::Url;
use serde::Deserialize;

/// Settings of Twilio.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Base URL, https. Twilio's regions have their own, such as `https://api.dublin.ie1.twilio.com`.
    pub endpoint: String,
    /// Certificates in PEM to trust instead of the operating system's.
    pub ca_file: Option<PathBuf>,
    /// Milliseconds that an attempt may take; at most 12,000.
    pub timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoint: "https://api.twilio.com".into(),
            ca_file: None,
            timeout_ms: 12_000,
        }
    }
}

/// A checked [`shared::provider::twilio::Credential`], ready for use.
#[derive(Debug)]
pub(in crate::providers) struct Account {
    /// The SID of the account.
    pub(super) sid: String,
    /// Where its messages are posted.
    pub(super) url: Url,
    /// The header `authorization`, marked sensitive.
    pub(super) authorization: HeaderValue,
    /// Sends what has no sender.
    pub(super) messaging_service_sid: Option<String>,
}
