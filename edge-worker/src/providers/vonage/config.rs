//! Settings of Vonage.

use std::path::PathBuf;

use serde::Deserialize;

/// Settings of Vonage.
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
            endpoint: "https://rest.nexmo.com".into(),
            ca_file: None,
            timeout_ms: 12_000,
        }
    }
}
