//! The simulator of Vonage's SMS API: `POST /sms/json`.
//!
//! Not simulated: delivery to the phone and delivery receipts, signed requests, and limits (script status `1` instead).

mod simulation;
mod site;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;

pub use simulation::VonageArgs;

use self::site::VonageSite;
use super::log::LogMode;
use super::script::Script;
use super::simulator::{Records, Simulator};
use super::tls::Authority;
use super::wire::StreamLimits;

/// `SETTINGS_MAX_CONCURRENT_STREAMS` as usual servers announce it.
const STREAMS_PER_CONNECTION: u32 = 128;

/// The settings of a simulator of Vonage.
#[derive(Clone, Debug)]
pub struct VonageConfig {
    /// The address to listen on; port 0 is any free port.
    pub listen: SocketAddr,
    /// The authority that signs the certificate; a new one if absent.
    pub authority: Option<Authority>,
    /// How much is recorded.
    pub log: LogMode,
    /// How it misbehaves.
    pub script: Script,
}

impl Default for VonageConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            authority: None,
            log: LogMode::default(),
            script: Script::default(),
        }
    }
}

/// A running simulator of Vonage. Dropping it stops it.
#[derive(Debug)]
pub struct Vonage {
    simulator: Simulator,
    site: Arc<VonageSite>,
}

impl Vonage {
    /// Starts to listen, on the current runtime. The account and its secret are made.
    pub async fn start(config: VonageConfig) -> anyhow::Result<Self> {
        let authority = config.authority.map_or_else(Authority::generate, Ok)?;
        let site = Arc::new(VonageSite {
            api_key: format!("{:08x}", rand::random::<u32>()),
            api_secret: format!("{:016x}", rand::random::<u64>()),
            records: Records::new(config.script, site::is_status, config.log)?,
        });
        let limits = StreamLimits {
            first: STREAMS_PER_CONNECTION,
            full: STREAMS_PER_CONNECTION,
        };
        let simulator = Simulator::start(config.listen, authority, limits, &site).await?;
        Ok(Self { simulator, site })
    }
}

impl Deref for Vonage {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.simulator
    }
}
