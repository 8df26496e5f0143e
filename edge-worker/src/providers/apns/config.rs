//! Settings of APNs, and the checked credential of an app.

use std::{path::PathBuf, sync::Arc};

use http::HeaderValue;
use serde::Deserialize;
use shared::provider::apns::{Credential, PushType};

use super::team::Team;
use crate::providers::BadCredential;

/// Settings of APNs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `host:port` of the production environment; the fastest is used. Apple listens on 443 and 2197.
    pub production: Vec<String>,
    /// `host:port` of the sandbox.
    pub sandbox: Vec<String>,
    /// Certificates in PEM to trust instead of the operating system's.
    pub ca_file: Option<PathBuf>,
    /// Maximum number of connections per credential and environment, at least 1. Each carries some 900 pushes at once.
    pub connections: usize,
    /// Milliseconds that an attempt may take, including connecting and waiting for a free stream; at most 12,000.
    pub timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            production: vec!["api.push.apple.com:443".into(), "api.push.apple.com:2197".into()],
            sandbox: vec![
                "api.sandbox.push.apple.com:443".into(),
                "api.sandbox.push.apple.com:2197".into(),
            ],
            ca_file: None,
            connections: 4,
            timeout_ms: 10_000,
        }
    }
}

/// A checked [`Credential`], ready for use.
#[derive(Debug)]
pub(in crate::providers) struct Account {
    /// `team_id/key_id`, for metrics and logs.
    pub(super) name: String,
    pub(super) team: Arc<Team>,
    pub(super) bundle: String,
    /// `apns-topic` by push type, in the order of [`PushType::ALL`].
    topics: Vec<HeaderValue>,
}

impl Account {
    pub(super) fn new(team: Arc<Team>, credential: &Credential) -> Result<Self, BadCredential> {
        let Credential {
            team_id,
            key_id,
            topic: bundle,
            ..
        } = credential;
        let bad = BadCredential::new(
            "topic",
            "must be a bundle id: 1 to 200 letters, digits, dots and hyphens",
        );
        let is_plain = bundle
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        if !(1..=200).contains(&bundle.len()) || !is_plain {
            return Err(bad);
        }
        let topics = PushType::ALL
            .iter()
            .map(|kind| topic(bundle, *kind))
            .collect::<Option<_>>()
            .ok_or(bad)?;
        Ok(Self {
            name: format!("{team_id}/{key_id}"),
            team,
            bundle: bundle.clone(),
            topics,
        })
    }

    /// The `apns-topic` header of the account's own bundle for `kind`.
    pub(super) fn topic(&self, kind: PushType) -> HeaderValue {
        self.topics[kind as usize].clone()
    }
}

/// The `apns-topic` header of an address for `kind`; `None` if it is not a valid header value. Devices report the topic of
/// a `PushKit` token with its suffix or without.
pub(super) fn topic_of_address(topic: &str, kind: PushType) -> Option<HeaderValue> {
    let bundle = topic
        .strip_suffix(kind.topic_suffix())
        .filter(|bundle| !bundle.is_empty());
    self::topic(bundle.unwrap_or(topic), kind)
}

/// The `apns-topic` header of `bundle` for `kind`; `None` if it is not a valid header value.
fn topic(bundle: &str, kind: PushType) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(bytes::Bytes::from([bundle, kind.topic_suffix()].concat())).ok()
}
