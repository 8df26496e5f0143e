//! Settings of SMTP, and the checked credential of an app.

use std::{path::PathBuf, sync::Arc};

use serde::Deserialize;
use shared::address::Mailbox;

use super::{dkim::Signer, pool::Pool};

/// Settings of SMTP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Certificates in PEM to trust instead of the operating system's.
    pub ca_file: Option<PathBuf>,
    /// Maximum number of connections for each credential that states none, at least 1. Each carries one mail at a time.
    pub connections: usize,
    /// Mails over one connection, before it is closed.
    pub mails_per_connection: u32,
    /// Milliseconds until an unused connection is closed.
    pub idle_ms: u64,
    /// Milliseconds that an attempt may take until the server asks for the mail; at most 12,000.
    pub timeout_ms: u64,
    /// Milliseconds that the server may then take to accept the mail; at most 300,000. Giving up sooner makes servers
    /// deliver twice.
    pub final_answer_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ca_file: None,
            connections: 10,
            mails_per_connection: 100,
            idle_ms: 30_000,
            timeout_ms: 12_000,
            final_answer_ms: 300_000,
        }
    }
}

/// A checked [`shared::provider::smtp::Credential`], ready for use.
#[derive(Debug)]
pub(in crate::providers) struct Account {
    /// Names the credential in metrics and logs.
    pub(super) name: String,
    /// `host:port`.
    pub(super) endpoint: Arc<str>,
    pub(super) pool: Arc<Pool>,
    pub(super) bounces: Option<Mailbox>,
    /// Whether each mail gets a bounce address of its own.
    pub(super) verp: bool,
    pub(super) signers: Vec<Signer>,
}
