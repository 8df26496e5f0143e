//! The simulator of a push service for browsers (RFC 8030), with the browsers that are subscribed at it.
//!
//! It checks every header, verifies VAPID tokens (RFC 8292), and decrypts each body with the key of its subscription (RFC 8291),
//! so that the log has what a browser would get. Refusals look like Apple's.
//!
//! Not simulated: receipts (`Prefer: respond-async`), the browsers' side of RFC 8030, rates of a push service's own.

mod browser;
mod inbox;
mod reason;
mod simulation;
mod site;
mod token;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use uuid::Uuid;

use self::browser::Browser;
use self::inbox::Inbox;
use self::site::WebPushSite;
use self::token::Checker;
pub use self::{browser::Subscription, reason::Reason, token::VapidKey};
use super::clock::now_ms;
use super::log::LogMode;
use super::reachable;
use super::script::Script;
use super::simulator::{Records, Simulator};
use super::tls::Authority;
use super::wire::StreamLimits;

/// `SETTINGS_MAX_CONCURRENT_STREAMS`, as Google's front ends announce it.
const STREAMS_PER_CONNECTION: u32 = 100;

/// The settings of a push service.
#[derive(Clone, Debug)]
pub struct WebPushConfig {
    /// The address to listen on; port 0 is any free port.
    pub listen: SocketAddr,
    /// The authority that signs the certificate; a new one if absent.
    pub authority: Option<Authority>,
    /// The key of the app; a new one if absent. The push service itself takes pushes of every app.
    pub key: Option<VapidKey>,
    /// How much is recorded.
    pub log: LogMode,
    /// How it misbehaves.
    pub script: Script,
}

impl Default for WebPushConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            authority: None,
            key: None,
            log: LogMode::default(),
            script: Script::default(),
        }
    }
}

/// A running push service. Dropping it stops it.
#[derive(Debug)]
pub struct WebPush {
    simulator: Simulator,
    site: Arc<WebPushSite>,
    key: VapidKey,
}

impl WebPush {
    /// Starts to listen, on the current runtime.
    ///
    /// # Errors
    /// When keys cannot be generated or the port is taken.
    pub async fn start(config: WebPushConfig) -> anyhow::Result<Self> {
        let authority = config.authority.map_or_else(Authority::generate, Ok)?;
        let site = Arc::new(WebPushSite {
            browsers: RwLock::default(),
            of_rfc: Browser::of_rfc()?,
            tokens: Checker::default(),
            inbox: Inbox::default(),
            records: Records::new(config.script, |reason| Reason::parse(reason).is_some(), config.log)?,
        });
        let limits = StreamLimits {
            first: STREAMS_PER_CONNECTION,
            full: STREAMS_PER_CONNECTION,
        };
        Ok(Self {
            simulator: Simulator::start(config.listen, authority, limits, &site).await?,
            site,
            key: config.key.map_or_else(VapidKey::generate, Ok)?,
        })
    }

    /// The key of the app.
    pub fn key(&self) -> &VapidKey {
        &self.key
    }

    /// The endpoint of the subscription `token`. Until a browser subscribes with it, it belongs to the browser of RFC 8291,
    /// appendix A.
    pub fn endpoint(&self, token: &str) -> String {
        format!("https://{}/push/{token}", reachable(self.addr()))
    }

    /// A browser subscribes: a subscription with keys and an endpoint of its own.
    ///
    /// # Errors
    /// When no keys can be generated.
    pub fn subscribe(&self) -> anyhow::Result<Subscription> {
        let token = Uuid::new_v4().simple().to_string();
        let browser = Browser::generate()?;
        let subscription = browser.subscription(self.endpoint(&token));
        let mut browsers = self.site.browsers.write().unwrap_or_else(PoisonError::into_inner);
        browsers.insert(token, browser);
        Ok(subscription)
    }

    /// The browser with this token disconnects: its pushes wait, and a push replaces an older one of the same topic.
    pub fn go_away(&self, token: &str) {
        self.site.inbox.go_away(token);
    }

    /// The browser with this token connects: the payloads that waited and have not expired, the oldest first.
    pub fn come_back(&self, token: &str) -> Vec<Bytes> {
        self.site.inbox.come_back(token, now_ms())
    }
}

impl Deref for WebPush {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.simulator
    }
}
