//! Settings of webhooks.

use std::path::PathBuf;

use serde::Deserialize;

/// Settings of webhooks.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Certificates in PEM to trust instead of the operating system's.
    pub ca_file: Option<PathBuf>,
    /// Milliseconds that an attempt may take; at most 12,000.
    pub timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ca_file: None,
            timeout_ms: 12_000,
        }
    }
}
