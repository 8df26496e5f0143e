//! The simulator of Firebase Cloud Messaging, HTTP v1, with the OAuth token endpoint for its service accounts.
//!
//! Both are served on one port, over HTTP/2 and HTTP/1.1. A client whose `:scheme` is `https:` (the Node.js
//! `firebase-admin` in its HTTP/2 mode) is reset with `PROTOCOL_ERROR` by the `h2` crate before the simulator sees it;
//! Google tolerates it.
//!
//! Not simulated: quotas (script [`ErrorCode::QuotaExceeded`] instead), topic subscriptions, mTLS, and what FCM does after
//! it accepts a message.

mod account;
mod error;
mod message;
mod oauth;
mod schema;
mod simulation;
mod site;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use account::ServiceAccount;
pub use error::ErrorCode;
pub use simulation::FcmArgs;

use self::oauth::OAuth;
use self::site::FcmSite;
use super::log::LogMode;
use super::reachable;
use super::script::Script;
use super::simulator::{Records, Simulator};
use super::tls::Authority;
use super::wire::StreamLimits;

/// `SETTINGS_MAX_CONCURRENT_STREAMS` as Google's front ends announce it.
const STREAMS_PER_CONNECTION: u32 = 100;

/// The settings of an FCM simulator.
#[derive(Clone, Debug)]
pub struct FcmConfig {
    /// The address to listen on; port 0 is any free port.
    pub listen: SocketAddr,
    /// The authority that signs the certificate; a new one if absent.
    pub authority: Option<Authority>,
    /// The registered service accounts. If there are none, it generates one for the project `peal-test`.
    pub accounts: Vec<ServiceAccount>,
    /// Whether sending needs an access token.
    pub authenticate: bool,
    /// How long an access token is valid, whole seconds; Google's are valid for 3599 s.
    pub token_life: Duration,
    /// `SETTINGS_MAX_CONCURRENT_STREAMS`.
    pub streams: u32,
    /// How much is recorded.
    pub log: LogMode,
    /// How it misbehaves.
    pub script: Script,
}

impl Default for FcmConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            authority: None,
            accounts: Vec::new(),
            authenticate: true,
            token_life: Duration::from_secs(3599),
            streams: STREAMS_PER_CONNECTION,
            log: LogMode::default(),
            script: Script::default(),
        }
    }
}

/// A running FCM simulator. Dropping it stops it.
#[derive(Debug)]
pub struct Fcm {
    simulator: Simulator,
    site: Arc<FcmSite>,
    account: ServiceAccount,
}

impl Fcm {
    /// Starts to listen, on the current runtime.
    pub async fn start(mut config: FcmConfig) -> anyhow::Result<Self> {
        let authority = config.authority.map_or_else(Authority::generate, Ok)?;
        if config.accounts.is_empty() {
            config.accounts.push(ServiceAccount::generate("peal-test")?);
        }
        let life_ms = i64::try_from(config.token_life.as_millis())?;
        let site = Arc::new(FcmSite {
            oauth: OAuth::new(&config.accounts, life_ms)?,
            authenticate: config.authenticate,
            refuses_tokens: AtomicBool::new(false),
            token_life: config.token_life,
            records: Records::new(config.script, |reason| ErrorCode::parse(reason).is_some(), config.log)?,
        });
        let limits = StreamLimits {
            first: config.streams,
            full: config.streams,
        };
        let simulator = Simulator::start(config.listen, authority, limits, &site).await?;
        let addr = simulator.addr();
        site.oauth.set_audiences([
            format!("https://localhost:{}/token", addr.port()),
            format!("https://{addr}/token"),
        ]);
        Ok(Self {
            simulator,
            site,
            account: config.accounts.swap_remove(0),
        })
    }

    /// The first registered account.
    pub fn account(&self) -> &ServiceAccount {
        &self.account
    }

    /// The endpoint that issues access tokens.
    pub fn token_uri(&self) -> String {
        format!("https://{}/token", reachable(self.addr()))
    }

    /// The JSON file of the first account, whose `token_uri` names this simulator.
    pub fn service_account_json(&self) -> String {
        self.account.to_json(&self.token_uri())
    }

    /// Revokes every access token: the next use of one is answered with 401.
    pub fn revoke_access_tokens(&self) {
        self.site.oauth.revoke_all();
    }

    /// Sets whether the token endpoint answers every request with 503.
    pub fn refuse_tokens(&self, refuse: bool) {
        self.site.refuses_tokens.store(refuse, Ordering::Relaxed);
    }
}

impl Deref for Fcm {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.simulator
    }
}
