//! Receivers of webhooks: every path of the server is one.
//!
//! A path whose secret is known ([`Receivers::expect`]) takes only what is signed with it, by the rules of Standard Webhooks.
//! What has no signature must be the text of a chat. The script knows receivers by their paths.

mod simulation;
mod site;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;

pub use simulation::WebhookArgs;

use self::site::ReceiverSite;
use super::log::LogMode;
use super::reachable;
use super::script::Script;
use super::simulator::{Records, Simulator};
use super::tls::Authority;
use super::wire::StreamLimits;

/// `SETTINGS_MAX_CONCURRENT_STREAMS` as usual servers announce it.
const STREAMS_PER_CONNECTION: u32 = 128;

/// The settings of a server with receivers.
#[derive(Clone, Debug)]
pub struct ReceiversConfig {
    /// The address to listen on; port 0 is any free port.
    pub listen: SocketAddr,
    /// The authority that signs the certificate; a new one if absent.
    pub authority: Option<Authority>,
    /// How much is recorded.
    pub log: LogMode,
    /// How it misbehaves.
    pub script: Script,
}

impl Default for ReceiversConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            authority: None,
            log: LogMode::default(),
            script: Script::default(),
        }
    }
}

/// A running server with receivers. Dropping it stops it.
#[derive(Debug)]
pub struct Receivers {
    simulator: Simulator,
    site: Arc<ReceiverSite>,
}

impl Receivers {
    /// Starts to listen, on the current runtime.
    pub async fn start(config: ReceiversConfig) -> anyhow::Result<Self> {
        let authority = config.authority.map_or_else(Authority::generate, Ok)?;
        let site = Arc::new(ReceiverSite {
            secrets: std::sync::RwLock::default(),
            records: Records::new(config.script, |_| false, config.log)?,
        });
        let limits = StreamLimits {
            first: STREAMS_PER_CONNECTION,
            full: STREAMS_PER_CONNECTION,
        };
        let simulator = Simulator::start(config.listen, authority, limits, &site).await?;
        Ok(Self { simulator, site })
    }

    /// The URL of the receiver at `path`.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", reachable(self.addr()))
    }

    /// From now on, the receiver at `path` takes only what is signed with `secret`, `whsec_` and base64.
    ///
    /// # Errors
    /// When the secret has another form.
    pub fn expect(&self, path: &str, secret: &str) -> anyhow::Result<()> {
        self.site.expect(path, secret)
    }
}

impl Deref for Receivers {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.simulator
    }
}
