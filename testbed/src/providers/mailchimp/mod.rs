//! The simulator of Mailchimp Transactional: `POST /api/1.0/messages/send`.
//!
//! In a script, `token` is the mailbox of the recipient, and a reason is a `reject_reason` or the name of an error. Not simulated: webhooks,
//! limits of rate (script 429 instead), templates, pools, and what becomes of a mail that was taken.

mod simulation;
mod site;

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::Deref,
    sync::Arc,
};

pub use self::simulation::MailchimpArgs;
use self::site::MailchimpSite;
use super::{
    log::LogMode,
    script::Script,
    simulator::{Records, Simulator},
    tls::Authority,
    wire::StreamLimits,
};

/// `SETTINGS_MAX_CONCURRENT_STREAMS` as usual servers announce it.
const STREAMS_PER_CONNECTION: u32 = 128;

/// The settings of a simulator of Mailchimp.
#[derive(Clone, Debug)]
pub struct MailchimpConfig {
    /// The address to listen on; port 0 is any free port.
    pub listen: SocketAddr,
    /// The authority that signs the certificate; a new one if absent.
    pub authority: Option<Authority>,
    /// How much is recorded.
    pub log: LogMode,
    /// How it misbehaves.
    pub script: Script,
}

impl Default for MailchimpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            authority: None,
            log: LogMode::default(),
            script: Script::default(),
        }
    }
}

/// A running simulator of Mailchimp. Dropping it stops it.
#[derive(Debug)]
pub struct Mailchimp {
    simulator: Simulator,
    site: Arc<MailchimpSite>,
}

impl Mailchimp {
    /// Starts to listen, on the current runtime. The API key is made.
    ///
    /// # Errors
    /// When the address cannot be bound or the script has a reason without a status.
    pub async fn start(config: MailchimpConfig) -> anyhow::Result<Self> {
        let authority = config.authority.map_or_else(Authority::generate, Ok)?;
        let site = Arc::new(MailchimpSite {
            api_key: format!("md-{:022x}", rand::random::<u64>()),
            records: Records::new(config.script, site::is_reason, config.log)?,
        });
        let limits = StreamLimits {
            first: STREAMS_PER_CONNECTION,
            full: STREAMS_PER_CONNECTION,
        };
        let simulator = Simulator::start(config.listen, authority, limits, &site).await?;
        Ok(Self { simulator, site })
    }
}

impl Deref for Mailchimp {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.simulator
    }
}
