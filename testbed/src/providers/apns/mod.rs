//! The Apple Push Notification service.
//!
//! Checked as Apple's documentation says, in the order of the mock server that ships with the Java library `pushy`:
//! method, path, id, topic, collapse id, priority, expiration, push type, token, registration, provider token, payload.
//! A connection may have one stream open until it has shown a valid provider token, then a thousand.
//!
//! Not simulated: certificates instead of provider tokens, broadcast channels, idle time-outs, what happens behind
//! APNs (storing, collapsing, expiring), and the ban that follows [`Reason::TooManyProviderTokenUpdates`].

mod reason;
mod request;
mod token;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use serde_json::json;
use shared::clock::Clock;

pub use reason::Reason;
pub use token::{JwtMode, ProviderKey};

use self::request::{Checked, check_body, check_head, message_id};
use self::token::{Checker, Verified, current};
use super::devices::{Devices, Known};
use super::keys::ApnsKey;
use super::listener::Listener;
use super::log::{Log, LogMode, Push, Stats};
use super::reply::{Reply, Site, text, typed};
use super::script::{Ruling, Script, ScriptHandle};
use super::tls::Authority;
use super::wire::StreamLimits;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The two separate worlds of APNs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Environment {
    /// `api.push.apple.com`.
    #[default]
    Production,
    /// `api.sandbox.push.apple.com`; answers also carry `apns-unique-id`.
    Development,
}

/// How an APNs simulator is to be.
#[derive(Clone, Debug)]
pub struct ApnsConfig {
    /// Where to listen; port 0 is any free port.
    pub listen: SocketAddr,
    /// Who signs the certificate; a new authority if absent.
    pub authority: Option<Authority>,
    /// Which world it plays.
    pub environment: Environment,
    /// How provider tokens are read.
    pub jwt: JwtMode,
    /// Whether [`Reason::TooManyProviderTokenUpdates`] is answered to a team that brings a new provider token within 20
    /// minutes of the last.
    pub limit_token_updates: bool,
    /// Apple's clock, which is not the mesh's: a test that sets ours does not set this one.
    pub clock: Clock,
    /// The keys it knows. If there is none, one is made: team `PEALTEAM01`, key `PEALKEY001`.
    pub keys: Vec<ProviderKey>,
    /// The bundle ids that exist; every one if absent.
    pub bundles: Option<Vec<String>>,
    /// `SETTINGS_MAX_CONCURRENT_STREAMS` until the first valid provider token.
    pub first_streams: u32,
    /// `SETTINGS_MAX_CONCURRENT_STREAMS` from then on.
    pub streams: u32,
    /// How much is remembered.
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
    listener: Listener,
    authority: Authority,
    site: Arc<ApnsSite>,
    limits: StreamLimits,
    key: ApnsKey,
}

impl Apns {
    /// Begins to listen, on the current runtime.
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
            devices: Devices::default(),
            script: ScriptHandle::new(config.script, |reason| Reason::parse(reason).is_some())?,
            log: Log::new(config.log),
        });
        let limits = StreamLimits {
            first: config.first_streams,
            full: config.streams,
        };
        let listener = Listener::start(config.listen, &authority, limits, Arc::clone(&site)).await?;
        Ok(Self {
            listener,
            authority,
            site,
            limits,
            key: config.keys.swap_remove(0).key,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    /// The certificate clients must trust, PEM; valid for `localhost` and Apple's host names.
    pub fn ca_pem(&self) -> &str {
        self.authority.pem()
    }

    /// The first key it knows, for clients to sign with.
    pub fn key(&self) -> &ApnsKey {
        &self.key
    }

    /// Learns a key.
    pub fn register_key(&self, key: &ProviderKey) -> anyhow::Result<()> {
        self.site.tokens.register(key)
    }

    /// Forgets a key and, as Apple does, closes all connections.
    pub fn revoke_key(&self, team_id: &str, key_id: &str) {
        self.site.tokens.revoke(team_id, key_id);
        self.cut();
    }

    /// How many different provider tokens it took, by their exact bytes, since it forgot a key.
    pub fn provider_tokens(&self) -> usize {
        self.site.tokens.taken()
    }

    /// The devices it knows.
    pub fn devices(&self) -> &Devices {
        &self.site.devices
    }

    /// What reached it.
    pub fn log(&self) -> &Log {
        &self.site.log
    }

    /// The script it follows.
    pub fn script(&self) -> &ScriptHandle {
        &self.site.script
    }

    /// The totals.
    pub fn stats(&self) -> Stats {
        self.site.log.stats()
    }

    /// Sends GOAWAY on every connection; what is open is finished, new connections are accepted.
    pub fn go_away(&self) {
        self.listener.leave();
    }

    /// Closes every connection without a word; new ones are accepted.
    pub fn cut(&self) {
        self.listener.cut();
    }

    /// Listens again where it listened before it was stopped, and remembers everything.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let site = Arc::clone(&self.site);
        self.listener = Listener::start(self.addr(), &self.authority, self.limits, site).await?;
        Ok(())
    }

    /// Closes the port and every connection. Another simulator with the same authority, keys and `listen` can take its
    /// place.
    pub async fn stop(&self) {
        self.listener.stop().await;
    }
}

#[derive(Debug)]
pub(crate) struct ApnsSite {
    environment: Environment,
    bundles: Option<Vec<String>>,
    tokens: Checker,
    clock: Clock,
    devices: Devices,
    script: ScriptHandle,
    log: Log,
}

/// What APNs remembers about a connection.
#[derive(Debug)]
pub(crate) struct Session {
    connection: u64,
    /// The header that was checked last, so that a repeated one costs a comparison.
    last: Option<(HeaderValue, Arc<Verified>)>,
    /// The provider token the connection is bound to.
    bound: Option<Arc<Verified>>,
}

impl Site for ApnsSite {
    const ALPN: &'static [&'static [u8]] = &[b"h2"];

    type Session = Session;

    fn open(&self, connection: u64) -> Session {
        Session {
            connection,
            last: None,
            bound: None,
        }
    }

    fn unlocked(&self, session: &Session) -> bool {
        session.bound.is_some()
    }

    fn log(&self) -> &Log {
        &self.log
    }

    fn answer(&self, session: &mut Session, head: &Parts, body: Bytes) -> Reply {
        let now_ms = self.clock.now().as_millisecond();
        let (id_header, id, id_check) = message_id(&head.headers);
        // The provider token is looked at first, because it is what unlocks the connection; its verdict waits.
        let sender = self.sender(session, &head.headers, now_ms);
        let ruling = check_head(head, id_check)
            .and_then(|checked| self.check(&checked, sender, &body).map(|()| checked))
            .map(|checked| self.script.rule(checked.token));

        let verdict = match ruling {
            Ok(None) => Verdict::accepted(),
            Ok(Some(ruling)) => Verdict::ruled(ruling),
            Err(reason) => Verdict::refused(reason),
        };
        let reason = verdict.reason.as_deref();
        self.log
            .record(session.connection, verdict.delivered.then_some(id), reason, || {
                push(session.connection, head, &id_header, body, &verdict, now_ms)
            });
        self.reply(id_header, &verdict, now_ms)
    }
}

impl ApnsSite {
    fn sender(&self, session: &mut Session, headers: &HeaderMap, now_ms: i64) -> Result<Arc<Verified>, Reason> {
        let header = headers.get(AUTHORIZATION).ok_or(Reason::MissingProviderToken)?;
        let verified = match &session.last {
            Some((last, verified)) if last == header => Arc::clone(verified),
            _ => {
                let verified = self.tokens.check(header.as_bytes(), now_ms)?;
                session.last = Some((header.clone(), Arc::clone(&verified)));
                verified
            }
        };
        current(&verified, now_ms)?;
        match &session.bound {
            Some(bound) if bound.team != verified.team => return Err(Reason::Forbidden),
            Some(bound) if !bound.signer.related(&verified.signer) => {
                return Err(Reason::UnrelatedKeyIdInToken);
            }
            Some(_) => {}
            None => {
                let wrong = |environment| environment != self.environment;
                if verified.signer.environment.is_some_and(wrong) {
                    return Err(Reason::BadEnvironmentKeyIdInToken);
                }
                session.bound = Some(Arc::clone(&verified));
            }
        }
        Ok(verified)
    }

    /// The rules that need more than the head: registration, provider token, payload.
    fn check(&self, checked: &Checked<'_>, sender: Result<Arc<Verified>, Reason>, body: &[u8]) -> Result<(), Reason> {
        match self.devices.look_up(checked.token, checked.bundle) {
            Known::Yes => {}
            Known::Elsewhere => return Err(Reason::DeviceTokenNotForTopic),
            Known::No => return Err(Reason::BadDeviceToken),
        }
        let sender = sender?;
        let lists = |topics: &Vec<String>| topics.iter().any(|topic| topic == checked.bundle);
        let restricted = sender.signer.topics.as_ref().or(self.bundles.as_ref());
        if !restricted.is_none_or(lists) {
            return Err(Reason::TopicDisallowed);
        }
        check_body(checked, body)
    }

    fn reply(&self, id: HeaderValue, verdict: &Verdict, now_ms: i64) -> Reply {
        let reply = if let Some(reason) = &verdict.reason {
            let mut headers = typed("application/json");
            headers.insert(&request::APNS_ID, id);
            let timestamp = (verdict.status == StatusCode::GONE).then(|| {
                let ruled = verdict.ruling.as_ref().and_then(|ruling| ruling.answer.timestamp_ms);
                ruled.unwrap_or(now_ms)
            });
            let body = match timestamp {
                Some(timestamp) => json!({ "reason": reason, "timestamp": timestamp }).to_string(),
                None => json!({ "reason": reason }).to_string(),
            };
            Reply::new(verdict.status, headers, body.into())
        } else {
            let mut headers = HeaderMap::with_capacity(2);
            headers.insert(&request::APNS_ID, id);
            if self.environment == Environment::Development {
                headers.insert(&request::APNS_UNIQUE_ID, request::new_id().0);
            }
            Reply::new(verdict.status, headers, Bytes::new())
        };
        match &verdict.ruling {
            Some(ruling) => reply.ruled(ruling, now_ms),
            None => reply,
        }
    }
}

/// What is decided about a request.
struct Verdict {
    status: StatusCode,
    reason: Option<String>,
    delivered: bool,
    ruling: Option<Ruling>,
}

impl Verdict {
    fn accepted() -> Self {
        Self {
            status: StatusCode::OK,
            reason: None,
            delivered: true,
            ruling: None,
        }
    }

    fn refused(reason: Reason) -> Self {
        Self {
            status: reason.status(),
            reason: Some(reason.as_str().to_owned()),
            delivered: false,
            ruling: None,
        }
    }

    fn ruled(ruling: Ruling) -> Self {
        let answer = &ruling.answer;
        let own = answer.reason.as_deref().and_then(Reason::parse);
        let given = answer.status.and_then(|status| StatusCode::from_u16(status).ok());
        Self {
            status: given.or(own.map(Reason::status)).unwrap_or(StatusCode::OK),
            reason: answer.reason.clone(),
            delivered: answer.delivers(),
            ruling: Some(ruling),
        }
    }
}

fn push(connection: u64, head: &Parts, id: &HeaderValue, payload: Bytes, verdict: &Verdict, at_ms: i64) -> Push {
    let header = |name| text(&head.headers, name).map(str::to_owned);
    let path = head.uri.path();
    Push {
        at_ms,
        provider: "apns",
        connection,
        token: path.strip_prefix("/3/device/").unwrap_or(path).to_owned(),
        id: id.to_str().unwrap_or_default().to_owned(),
        collapse_id: header(&request::APNS_COLLAPSE_ID),
        topic: header(&request::APNS_TOPIC),
        push_type: header(&request::APNS_PUSH_TYPE),
        priority: header(&request::APNS_PRIORITY),
        expiration: header(&request::APNS_EXPIRATION),
        traceparent: header(&TRACEPARENT),
        payload,
        delivered: verdict.delivered,
        status: verdict.status.as_u16(),
        reason: verdict.reason.clone(),
    }
}
