//! Settings of `SendGrid`, and the checked credential of an app.

use std::path::PathBuf;

use http::HeaderValue;
use reqwest::Url;
use serde::Deserialize;

/// Settings of `SendGrid`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Base URL, https.
    pub endpoint: String,
    /// Base URL for credentials with `eu`, https.
    pub eu_endpoint: String,
    /// Certificates in PEM to trust instead of the operating system's.
    pub ca_file: Option<PathBuf>,
    /// Milliseconds that an attempt may take; at most 12,000.
    pub timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoint: "https://api.sendgrid.com".into(),
            eu_endpoint: "https://api.eu.sendgrid.com".into(),
            ca_file: None,
            timeout_ms: 12_000,
        }
    }
}

/// A checked [`shared::provider::sendgrid::Credential`], ready for use.
#[derive(Debug)]
pub(in crate::providers) struct Account {
    /// Names the credential in metrics and logs.
    pub(super) name: String,
    pub(super) url: Url,
    pub(super) authorization: HeaderValue,
}
