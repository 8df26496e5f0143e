//! Connecting to a region's servers.

use std::{future, path::PathBuf, sync::atomic::Ordering, time::Duration};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, connection::State, jetstream};
use serde::{Deserialize, Serialize};

use super::{refusal::Refusals, roles::Role};
use crate::id::Region;

/// The servers to connect to, and how to log in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nats {
    /// URLs of the region's servers, comma-separated.
    pub url: String,
    /// File with the seed of the role's `NKey`.
    #[serde(default)]
    pub nkey_file: Option<PathBuf>,
    /// File with the JWT and the seed of a user (`.creds`), for servers with an operator; instead of `nkey_file`.
    #[serde(default)]
    pub creds_file: Option<PathBuf>,
    /// File with the certificates of the authority that signed the servers' certificates. With it TLS is required.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// File with the client certificate for servers that require one, and its intermediate certificates.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// File with the private key of that certificate.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file with the `NKey` seed cannot be read.
    #[error("cannot read nats.nkey_file: {0}")]
    NkeyFile(std::io::Error),
    /// The file with the JWT and the seed cannot be read.
    #[error("cannot read nats.creds_file: {0}")]
    CredsFile(std::io::Error),
    /// Both are set.
    #[error("nats.nkey_file and nats.creds_file must not both be set")]
    TwoIdentities,
    /// Only one of the two is set.
    #[error("nats.cert_file and nats.key_file must be set together")]
    HalfACertificate,
    /// The server cannot be reached, or refuses.
    #[error("cannot connect to {url}: {error}")]
    Refused {
        /// The URLs, without passwords.
        url: String,
        /// The client's error.
        error: async_nats::ConnectError,
    },
}

/// How often a first connection is tried. A server that starts, or has no time for a TLS handshake, breaks it off.
const CONNECT_TRIES: u32 = 5;

/// The pause before the first connection is tried again.
const RETRY_CONNECT_AFTER: Duration = Duration::from_secs(1);

/// Whether a first connection may succeed later. A key that the server does not know stays wrong.
fn may_pass(error: ConnectErrorKind) -> bool {
    matches!(
        error,
        ConnectErrorKind::Io | ConnectErrorKind::TimedOut | ConnectErrorKind::Tls
    )
}

/// Connects as `role`; then reconnects by itself forever. `name` shows in the server's connection list.
///
/// # Errors
/// When the first connection fails five times, or the server refuses the key.
pub async fn connect(nats: &Nats, role: &Role, name: &str) -> Result<Client, ConnectError> {
    let refusals = Refusals::new();
    let recorded = refusals.clone();
    let mut options = ConnectOptions::new()
        .name(name)
        .ping_interval(Duration::from_secs(2))
        .connection_timeout(Duration::from_secs(3))
        // The defaults of 2048 and 128 would make thousands of messages in flight wait for each other.
        .client_capacity(16_384)
        .subscription_capacity(65_536)
        .reconnect_delay_callback(|attempts| Duration::from_millis(100 * attempts.clamp(1, 5) as u64))
        .custom_inbox_prefix(role.inbox())
        .event_callback(move |event| {
            log_event(&recorded, &event);
            future::ready(())
        });
    match (&nats.nkey_file, &nats.creds_file) {
        (Some(file), None) => {
            let seed = tokio::fs::read_to_string(file).await.map_err(ConnectError::NkeyFile)?;
            options = options.nkey(seed.trim().to_owned());
        }
        (None, Some(file)) => {
            let options_with = options.credentials_file(file).await;
            options = options_with.map_err(ConnectError::CredsFile)?;
        }
        (None, None) => {}
        (Some(_), Some(_)) => return Err(ConnectError::TwoIdentities),
    }
    if let Some(file) = &nats.ca_file {
        options = options.add_root_certificates(file.clone()).require_tls(true);
    }
    match (&nats.cert_file, &nats.key_file) {
        (Some(cert), Some(key)) => options = options.add_client_certificate(cert.clone(), key.clone()),
        (None, None) => {}
        _ => return Err(ConnectError::HalfACertificate),
    }
    let servers: Vec<&str> = nats.url.split(',').map(str::trim).collect();
    let mut tries = 1;
    let client = loop {
        match Box::pin(options.clone().connect(servers.clone())).await {
            Ok(client) => break client,
            Err(error) if tries < CONNECT_TRIES && may_pass(error.kind()) => {
                tracing::warn!(%error, "cannot connect to the servers yet; retrying");
                tries += 1;
                tokio::time::sleep(RETRY_CONNECT_AFTER).await;
            }
            Err(error) => {
                return Err(ConnectError::Refused {
                    url: without_password(&nats.url),
                    error,
                });
            }
        }
    };
    refusals.attach_to(&client);
    Ok(client)
}

/// The URLs without user names and passwords: everything up to `@` is removed.
fn without_password(urls: &str) -> String {
    let hosts = urls
        .split(',')
        .map(|url| url.trim().rsplit_once('@').map_or(url.trim(), |(_, host)| host));
    hosts.collect::<Vec<_>>().join(",")
}

/// How long to wait until a stream acknowledges a message or a batch.
pub(super) const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// JetStream over `client`, with many publishes in flight.
pub fn jetstream(client: Client) -> jetstream::Context {
    jetstream::context::ContextBuilder::new()
        .timeout(Duration::from_secs(5))
        .ack_timeout(ACK_TIMEOUT)
        .max_ack_inflight(8192)
        .backpressure_on_inflight(true)
        .build(client)
}

/// JetStream of `region`, whichever region `client` is connected to.
pub fn jetstream_of(client: Client, region: &Region) -> jetstream::Context {
    jetstream::context::ContextBuilder::new()
        .domain(region.as_str())
        .timeout(Duration::from_secs(5))
        .build(client)
}

/// Whether the client is connected now.
pub fn is_connected(client: &Client) -> bool {
    client.connection_state() == State::Connected
}

/// How often `client` has connected. After a change the server may be a different one, or may have forgotten pulls and
/// ephemeral consumers.
pub fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

/// Logs a connection event. Subjects hold ids and nothing secret, so a refused one is logged.
fn log_event(refusals: &Refusals, event: &Event) {
    match event {
        Event::ServerError(error) => {
            if let Some(subject) = refusals.record(error) {
                tracing::error!(subject, "nats server denies permission");
            } else {
                tracing::error!(%error, "nats server reported an error");
            }
        }
        Event::ClientError(error) => tracing::warn!(%error, "nats client error"),
        Event::SlowConsumer(subscription) => tracing::warn!(subscription, "nats subscription too slow"),
        other => tracing::info!(event = %other, "nats connection"),
    }
}
