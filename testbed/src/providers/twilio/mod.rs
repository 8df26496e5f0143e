//! The simulator of Twilio's API for messages: `POST /2010-04-01/Accounts/{account}/Messages.json`.
//!
//! Not simulated: delivery to the phone and what Twilio reports about it, media, templates, and limits (script
//! `20429` instead).

mod simulation;
mod site;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;

pub use simulation::TwilioArgs;

use self::site::TwilioSite;
use super::log::LogMode;
use super::script::Script;
use super::simulator::{Records, Simulator};
use super::tls::Authority;
use super::wire::StreamLimits;

/// `SETTINGS_MAX_CONCURRENT_STREAMS` as usual servers announce it.
const STREAMS_PER_CONNECTION: u32 = 128;

/// The settings of a simulator of Twilio.
#[derive(Clone, Debug)]
pub struct TwilioConfig {
    /// The address to listen on; port 0 is any free port.
    pub listen: SocketAddr,
    /// The authority that signs the certificate; a new one if absent.
    pub authority: Option<Authority>,
    /// How much is recorded.
    pub log: LogMode,
    /// How it misbehaves.
    pub script: Script,
}

impl Default for TwilioConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            authority: None,
            log: LogMode::default(),
            script: Script::default(),
        }
    }
}

/// A running simulator of Twilio. Dropping it stops it.
#[derive(Debug)]
pub struct Twilio {
    simulator: Simulator,
    site: Arc<TwilioSite>,
}

impl Twilio {
    /// Starts to listen, on the current runtime. The account and its secrets are made.
    pub async fn start(config: TwilioConfig) -> anyhow::Result<Self> {
        let authority = config.authority.map_or_else(Authority::generate, Ok)?;
        let sid = |prefix: &str| format!("{prefix}{:032x}", rand::random::<u128>());
        let site = Arc::new(TwilioSite {
            account_sid: sid("AC"),
            auth_token: format!("{:032x}", rand::random::<u128>()),
            api_key_sid: sid("SK"),
            api_key_secret: format!("{:032x}", rand::random::<u128>()),
            messaging_service_sid: sid("MG"),
            records: Records::new(config.script, site::is_code, config.log)?,
        });
        let limits = StreamLimits {
            first: STREAMS_PER_CONNECTION,
            full: STREAMS_PER_CONNECTION,
        };
        let simulator = Simulator::start(config.listen, authority, limits, &site).await?;
        Ok(Self { simulator, site })
    }
}

impl Deref for Twilio {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.simulator
    }
}
