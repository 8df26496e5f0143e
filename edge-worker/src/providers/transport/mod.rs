//! How requests reach a provider: endpoints and their choice, connections over HTTP/2, other HTTPS requests, TLS.
//! Nothing here depends on a provider.

pub(super) mod access_token;
pub(super) mod endpoints;
pub(super) mod guard;
pub(super) mod http2;
pub(super) mod https;
pub(super) mod retry_after;
pub(super) mod tls;

use std::path::PathBuf;

use shared::provider::Provider;
use tokio_rustls::rustls;

use crate::limits::{ATTEMPT_WITHIN, FINAL_ANSWER_WITHIN};

/// Settings that prevent requests to a provider.
#[derive(Debug, thiserror::Error)]
pub enum BadSettings {
    /// The `ca_file` cannot be read or holds no certificate.
    #[error("ca_file {}: cannot be read as certificates in PEM", .0.display())]
    CaFile(PathBuf),
    /// The operating system's trusted certificates cannot be used.
    #[error("the certificates that the operating system trusts cannot be used")]
    Platform(#[source] rustls::Error),
    /// The client for HTTPS cannot be built.
    #[error("the HTTPS client cannot be built")]
    Client(#[source] reqwest::Error),
    /// An endpoint is malformed: its text, and the form that its provider needs.
    #[error("endpoint {0:?}: must be {1}")]
    Endpoint(String, &'static str),
    /// The time limit of an attempt is too long: JetStream would give its job to another worker meanwhile.
    #[error("{0}.timeout_ms: must be at most {most}", most = ATTEMPT_WITHIN.as_millis())]
    Timeout(Provider),
    /// The time limit of a final answer is too long.
    #[error("{0}.final_answer_ms: must be at most {most}", most = FINAL_ANSWER_WITHIN.as_millis())]
    FinalAnswer(Provider),
}
