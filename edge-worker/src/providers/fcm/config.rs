//! Settings, and what an app needs to push through FCM.

use std::path::PathBuf;

use http::uri::PathAndQuery;
use serde::Deserialize;

use super::token::AccessToken;
use crate::providers::BadCredential;

/// How FCM is reached.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Base URLs, https; the fastest is used. Google has one, and no regional ones.
    pub endpoints: Vec<String>,
    /// Certificates in PEM to trust instead of the operating system's. With it set, a service account may name any
    /// token endpoint; without, only Google's.
    pub ca_file: Option<PathBuf>,
    /// Maximum of connections for all apps together, at least 1. Each carries 90 pushes at once, as Google allows 100.
    pub connections: usize,
    /// Milliseconds until an attempt is given up; at most 12,000. Google asks for at least 10 seconds.
    pub timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoints: vec!["https://fcm.googleapis.com".into()],
            ca_file: None,
            connections: 4,
            timeout_ms: 12_000,
        }
    }
}

/// A [`shared::provider::fcm::Credential`] that was checked and can be used.
#[derive(Debug)]
pub(in crate::providers) struct Account {
    pub(super) project: String,
    /// Messages a minute that the project may send.
    pub(super) per_minute: u64,
    pub(super) token: AccessToken,
    /// Where to send.
    pub(super) path: PathAndQuery,
}

/// The path under which messages of `project` are sent.
pub(super) fn path(project: &str) -> Result<PathAndQuery, BadCredential> {
    let bad = BadCredential::new("project_id", "must be the id of a Firebase project");
    let plain = project
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':'));
    if !(1..=64).contains(&project.len()) || !plain {
        return Err(bad);
    }
    format!("/v1/projects/{project}/messages:send").parse().map_err(|_| bad)
}
