//! Settings of FCM, and the checked credential of an app.

use std::path::PathBuf;

use http::uri::PathAndQuery;
use serde::Deserialize;

use crate::providers::{BadCredential, transport::access_token::AccessToken};

/// Settings of FCM.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Base URLs, https; the fastest is used. Google has only one.
    pub endpoints: Vec<String>,
    /// Certificates in PEM to trust instead of the operating system's. If set, a service account may name any token
    /// endpoint; otherwise only Google's.
    pub ca_file: Option<PathBuf>,
    /// Maximum number of connections for all apps together, at least 1. Each carries 90 pushes at once; Google allows
    /// 100.
    pub connections: usize,
    /// Milliseconds that an attempt may take; at most 12,000. Google asks for at least 10 seconds.
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

/// A checked [`shared::provider::fcm::Credential`], ready for use.
#[derive(Debug)]
pub(in crate::providers) struct Account {
    pub(super) project: String,
    /// The quota of the project, in messages a minute.
    pub(super) per_minute: u64,
    pub(super) token: AccessToken,
    /// The path of its requests, with the project id.
    pub(super) path: PathAndQuery,
}

/// The path of requests that send messages of `project`.
pub(super) fn path(project: &str) -> Result<PathAndQuery, BadCredential> {
    let bad = BadCredential::new("project_id", "must be the id of a Firebase project");
    let is_plain = project
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':'));
    if !(1..=64).contains(&project.len()) || !is_plain {
        return Err(bad);
    }
    format!("/v1/projects/{project}/messages:send").parse().map_err(|_| bad)
}
