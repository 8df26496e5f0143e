//! The simulator of the Apple Push Notification service.
//!
//! Requests are checked as Apple documents, in the order of the mock server of the Java library `pushy`:
//! method, path, id, topic, collapse id, priority, expiration, push type, token, registration, provider token, payload.
//! A connection may have one stream open until a valid provider token has arrived on it, then a thousand.
//!
//! Not simulated: certificates instead of provider tokens, broadcast channels, idle time-outs, what APNs does after it
//! accepts a push (storing, collapsing, expiring), and the ban that follows [`Reason::TooManyProviderTokenUpdates`].

mod key;
mod reason;
mod request;
mod simulation;
mod site;
mod token;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;

use shared::clock::Clock;

pub use key::ApnsKey;
pub use reason::Reason;
pub use simulation::ApnsArgs;
pub use token::{JwtMode, ProviderKey};

use self::site::ApnsSite;
use self::token::Checker;
use super::log::LogMode;
use super::script::Script;
use super::simulator::{Records, Simulator};
use super::tls::Authority;
use super::wire::StreamLimits;

/// The two separate environments of APNs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Environment {
    /// `api.push.apple.com`.
    #[default]
    Production,
    /// `api.sandbox.push.apple.com`; answers also carry `apns-unique-id`.
    Development,
}

/// The settings of an APNs simulator.
#[derive(Clone, Debug)]
pub struct ApnsConfig {
    /// The address to listen on; port 0 is any free port.
    pub listen: SocketAddr,
    /// The authority that signs the certificate; a new one if absent.
    pub authority: Option<Authority>,
    /// The environment that it simulates.
    pub environment: Environment,
    /// How provider tokens are parsed.
    pub jwt: JwtMode,
    /// Whether a team that sends a new provider token within 20 minutes of its last one is answered
    /// [`Reason::TooManyProviderTokenUpdates`].
    pub limit_token_updates: bool,
    /// Apple's clock, which is not the mesh's: a test that sets the mesh's clock does not set this one.
    pub clock: Clock,
    /// The registered keys. If there are none, it generates one: team `PEALTEAM01`, key `PEALKEY001`.
    pub keys: Vec<ProviderKey>,
    /// The bundle ids that exist; every bundle id if absent.
    pub bundles: Option<Vec<String>>,
    /// `SETTINGS_MAX_CONCURRENT_STREAMS` until the first valid provider token.
    pub first_streams: u32,
    /// `SETTINGS_MAX_CONCURRENT_STREAMS` from then on.
    pub streams: u32,
    /// How much is recorded.
    pub log: LogMode,
    /// How it misbehaves.
    pub script: Script,
}

impl Default for ApnsConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            authority: None,
            environment: Environment::default(),
            jwt: JwtMode::default(),
            limit_token_updates: false,
            clock: Clock::system(),
            keys: Vec::new(),
            bundles: None,
            first_streams: 1,
            streams: 1000,
            log: LogMode::default(),
            script: Script::default(),
        }
    }
}

/// A running APNs simulator. Dropping it stops it.
#[derive(Debug)]
pub struct Apns {
    simulator: Simulator,
    site: Arc<ApnsSite>,
    key: ApnsKey,
}

impl Apns {
    /// Starts to listen, on the current runtime.
    pub async fn start(mut config: ApnsConfig) -> anyhow::Result<Self> {
        let authority = config.authority.map_or_else(Authority::generate, Ok)?;
        if config.keys.is_empty() {
            config.keys.push(ApnsKey::generate("PEALTEAM01", "PEALKEY001")?.into());
        }
        let tokens = Checker::new(config.jwt, config.limit_token_updates);
        for key in &config.keys {
            tokens.register(key)?;
        }
        let site = Arc::new(ApnsSite {
            environment: config.environment,
            bundles: config.bundles,
            tokens,
            clock: config.clock,
            records: Records::new(config.script, |reason| Reason::parse(reason).is_some(), config.log)?,
        });
        let limits = StreamLimits {
            first: config.first_streams,
            full: config.streams,
        };
        Ok(Self {
            simulator: Simulator::start(config.listen, authority, limits, &site).await?,
            site,
            key: config.keys.swap_remove(0).key,
        })
    }

    /// The first registered key, with which clients can sign.
    pub fn key(&self) -> &ApnsKey {
        &self.key
    }

    /// Registers a key.
    pub fn register_key(&self, key: &ProviderKey) -> anyhow::Result<()> {
        self.site.tokens.register(key)
    }

    /// Removes a key and, as Apple does, closes all connections.
    pub fn revoke_key(&self, team_id: &str, key_id: &str) {
        self.site.tokens.revoke(team_id, key_id);
        self.cut();
    }

    /// The number of different provider tokens, by their exact bytes, that it has accepted since a key was last revoked.
    pub fn provider_tokens(&self) -> usize {
        self.site.tokens.accepted()
    }

    /// Listens again at the same address after it was stopped, and keeps everything it has recorded.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.simulator.start_again(&self.site).await
    }
}

impl Deref for Apns {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.simulator
    }
}
