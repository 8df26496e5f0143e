//! The simulator of `SendGrid`'s API v3: `POST /v3/mail/send`.
//!
//! In a script, `token` is the mailbox of the recipient, and a reason comes with its HTTP status. Not simulated: events,
//! limits of rate (script 429 instead), templates, and what becomes of a mail that was taken.

mod simulation;
mod site;

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::Deref,
    sync::Arc,
};

pub use self::simulation::SendGridArgs;
use self::site::SendGridSite;
use super::{
    log::LogMode,
    script::Script,
    simulator::{Records, Simulator},
    tls::Authority,
    wire::StreamLimits,
};

/// `SETTINGS_MAX_CONCURRENT_STREAMS` as usual servers announce it.
const STREAMS_PER_CONNECTION: u32 = 128;

/// The settings of a simulator of `SendGrid`.
#[derive(Clone, Debug)]
pub struct SendGridConfig {
    /// The address to listen on; port 0 is any free port.
    pub listen: SocketAddr,
    /// The authority that signs the certificate; a new one if absent.
    pub authority: Option<Authority>,
    /// The domain whose mailboxes are verified senders; any if absent.
    pub sender_domain: Option<String>,
    /// How much is recorded.
    pub log: LogMode,
    /// How it misbehaves.
    pub script: Script,
}

impl Default for SendGridConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            authority: None,
            sender_domain: None,
            log: LogMode::default(),
            script: Script::default(),
        }
    }
}

/// A running simulator of `SendGrid`. Dropping it stops it.
#[derive(Debug)]
pub struct SendGrid {
    simulator: Simulator,
    site: Arc<SendGridSite>,
}

impl SendGrid {
    /// Starts to listen, on the current runtime. The API key is made.
    ///
    /// # Errors
    /// When the address cannot be bound or the script has a reason without a status.
    pub async fn start(config: SendGridConfig) -> anyhow::Result<Self> {
        let authority = config.authority.map_or_else(Authority::generate, Ok)?;
        let site = Arc::new(SendGridSite {
            api_key: format!("SG.{:022x}.{:043x}", rand::random::<u64>(), rand::random::<u128>()),
            sender_domain: config.sender_domain,
            records: Records::new(config.script, |_| false, config.log)?,
        });
        let limits = StreamLimits {
            first: STREAMS_PER_CONNECTION,
            full: STREAMS_PER_CONNECTION,
        };
        let simulator = Simulator::start(config.listen, authority, limits, &site).await?;
        Ok(Self { simulator, site })
    }
}

impl Deref for SendGrid {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.simulator
    }
}
