//! Firebase Cloud Messaging, HTTP v1, with the OAuth token endpoint its service accounts need.
//!
//! Both are served on one port, over HTTP/2 and HTTP/1.1. A client whose `:scheme` is `https:` (the Node.js
//! `firebase-admin` in its HTTP/2 mode) is reset with `PROTOCOL_ERROR` by the `h2` crate before we see it; Google
//! tolerates it.
//!
//! Not simulated: quotas on their own (script [`ErrorCode::QuotaExceeded`]), topic subscriptions, mTLS, and what
//! happens behind FCM.

mod error;
mod message;
mod oauth;
mod schema;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderName};
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::{Value, json};

pub use error::ErrorCode;

use self::error::{error_body, scripted_body};
use self::message::Message;
use self::oauth::{Grant, OAuth};
use super::clock::now_ms;
use super::devices::{Devices, Known};
use super::keys::ServiceAccount;
use super::listener::Listener;
use super::log::{Log, LogMode, Push, Stats};
use super::reachable;
use super::reply::{Reply, Site, text, typed};
use super::script::{Script, ScriptHandle};
use super::tls::Authority;
use super::wire::StreamLimits;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What Google's front ends announce.
const STREAMS: u32 = 100;

/// How an FCM simulator is to be.
#[derive(Clone, Debug)]
pub struct FcmConfig {
    /// Where to listen; port 0 is any free port.
    pub listen: SocketAddr,
    /// Who signs the certificate; a new authority if absent.
    pub authority: Option<Authority>,
    /// The service accounts it knows. If there is none, one is made for the project `peal-test`.
    pub accounts: Vec<ServiceAccount>,
    /// Whether sending needs an access token.
    pub authenticate: bool,
    /// How long an access token lives, whole seconds; Google's live for 3599 s.
    pub token_life: Duration,
    /// `SETTINGS_MAX_CONCURRENT_STREAMS`.
    pub streams: u32,
    /// How much is remembered.
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
            streams: STREAMS,
            log: LogMode::default(),
            script: Script::default(),
        }
    }
}

/// A running FCM simulator. Dropping it stops it.
#[derive(Debug)]
pub struct Fcm {
    listener: Listener,
    authority: Authority,
    site: Arc<FcmSite>,
    account: ServiceAccount,
}

impl Fcm {
    /// Begins to listen, on the current runtime.
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
            devices: Devices::default(),
            script: ScriptHandle::new(config.script, |reason| ErrorCode::parse(reason).is_some())?,
            log: Log::new(config.log),
        });
        let limits = StreamLimits {
            first: config.streams,
            full: config.streams,
        };
        let listener = Listener::start(config.listen, &authority, limits, Arc::clone(&site)).await?;
        let addr = listener.addr();
        site.oauth.set_audiences([
            format!("https://localhost:{}/token", addr.port()),
            format!("https://{addr}/token"),
        ]);
        Ok(Self {
            listener,
            authority,
            site,
            account: config.accounts.swap_remove(0),
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    /// The certificate clients must trust, PEM; valid for `localhost` and Google's host names.
    pub fn ca_pem(&self) -> &str {
        self.authority.pem()
    }

    /// The first account it knows.
    pub fn account(&self) -> &ServiceAccount {
        &self.account
    }

    /// Where access tokens are to be had.
    pub fn token_uri(&self) -> String {
        format!("https://{}/token", reachable(self.addr()))
    }

    /// The first account's JSON file, whose `token_uri` points here.
    pub fn service_account_json(&self) -> String {
        self.account.to_json(&self.token_uri())
    }

    /// Forgets every access token it has handed out: the next use of one is answered 401.
    pub fn revoke_access_tokens(&self) {
        self.site.oauth.revoke_all();
    }

    /// Whether the token endpoint answers 503 from now on.
    pub fn refuse_tokens(&self, refuse: bool) {
        self.site.refuses_tokens.store(refuse, Ordering::Relaxed);
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

    /// Closes the port and every connection. Another simulator with the same authority, accounts and `listen` can take
    /// its place.
    pub async fn stop(&self) {
        self.listener.stop().await;
    }
}

#[derive(Debug)]
pub(crate) struct FcmSite {
    oauth: OAuth,
    authenticate: bool,
    refuses_tokens: AtomicBool,
    token_life: Duration,
    devices: Devices,
    script: ScriptHandle,
    log: Log,
}

/// A connection's number.
type Connection = u64;

impl Site for FcmSite {
    const ALPN: &'static [&'static [u8]] = &[b"h2", b"http/1.1"];

    type Session = Connection;

    fn open(&self, connection: u64) -> Connection {
        connection
    }

    fn unlocked(&self, _: &Connection) -> bool {
        true
    }

    fn log(&self) -> &Log {
        &self.log
    }

    fn answer(&self, connection: &mut Connection, head: &Parts, body: Bytes) -> Reply {
        let path = head.uri.path();
        let project = path
            .strip_prefix("/v1/projects/")
            .and_then(|rest| rest.strip_suffix("/messages:send"))
            .filter(|project| !project.is_empty() && !project.contains('/'));
        match (&head.method, path, project) {
            (&Method::POST, "/token" | "/oauth2/v4/token", _) => self.token(&body),
            (&Method::POST, _, Some(project)) => self.send(*connection, project, head, &body),
            _ => {
                let message = "The requested URL was not found on this server.";
                json_reply(
                    StatusCode::NOT_FOUND,
                    &error_body(StatusCode::NOT_FOUND, "NOT_FOUND", message, json!([])),
                )
            }
        }
    }
}

impl FcmSite {
    fn token(&self, form: &[u8]) -> Reply {
        if self.refuses_tokens.load(Ordering::Relaxed) {
            let body = json!({ "error": "temporarily_unavailable" });
            return json_reply(StatusCode::SERVICE_UNAVAILABLE, &body);
        }
        match self.oauth.grant(form, now_ms()) {
            Ok(token) => {
                self.log.access_token();
                let body = json!({
                    "access_token": token,
                    "expires_in": self.token_life.as_secs(),
                    "token_type": "Bearer",
                });
                json_reply(StatusCode::OK, &body)
            }
            Err(refused) => {
                let body = json!({ "error": refused.error, "error_description": refused.description });
                json_reply(StatusCode::BAD_REQUEST, &body)
            }
        }
    }

    fn send(&self, connection: u64, project: &str, head: &Parts, body: &Bytes) -> Reply {
        let now_ms = now_ms();
        let mut push = Push {
            at_ms: now_ms,
            provider: "fcm",
            connection,
            topic: Some(project.to_owned()),
            traceparent: text(&head.headers, &TRACEPARENT).map(str::to_owned),
            payload: body.clone(),
            ..Push::default()
        };
        let reply = match self.check(project, head, body, now_ms) {
            Ok(message) => self.accept(project, message, &mut push),
            Err(refusal) => {
                push.status = refusal.status.as_u16();
                push.reason = Some(refusal.code.to_owned());
                push.token = refusal.target;
                json_reply(refusal.status, &refusal.body)
            }
        };
        let identity = push.delivered.then(|| identity(project, body));
        let reason = push.reason.clone();
        self.log.record(connection, identity, reason.as_deref(), || push);
        reply
    }

    /// Everything that can be wrong with a request, in the order Google finds out.
    fn check(&self, project: &str, head: &Parts, body: &[u8], now_ms: i64) -> Result<Message, Refusal> {
        self.authorize(project, head, now_ms)?;
        let message = message::read(body).map_err(|body| Refusal {
            status: StatusCode::BAD_REQUEST,
            code: ErrorCode::InvalidArgument.as_str(),
            body,
            target: String::new(),
        })?;
        if message.target_kind == "token" || message.target_kind == "fid" {
            match self.devices.look_up(&message.target, project) {
                Known::Yes => {}
                Known::Elsewhere => return Err(Refusal::to(ErrorCode::SenderIdMismatch, message.target)),
                Known::No => return Err(Refusal::to(ErrorCode::Unregistered, message.target)),
            }
        }
        Ok(message)
    }

    fn authorize(&self, project: &str, head: &Parts, now_ms: i64) -> Result<(), Refusal> {
        if !self.authenticate {
            return Ok(());
        }
        let token = text(&head.headers, &AUTHORIZATION)
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        match token.map(|token| self.oauth.check(token, project, now_ms)) {
            Some(Grant::Yes) => Ok(()),
            Some(Grant::OtherProject) => Err(Refusal::new(ErrorCode::PermissionDenied)),
            Some(Grant::No) | None => Err(Refusal::new(ErrorCode::Unauthenticated)),
        }
    }

    fn accept(&self, project: &str, message: Message, push: &mut Push) -> Reply {
        push.collapse_id = message.collapse_key;
        push.priority = message.priority;
        push.expiration = message.ttl;
        if message.validate_only {
            push.token = message.target;
            push.status = 200;
            push.id = format!("projects/{project}/messages/fake_message_id");
            return json_reply(StatusCode::OK, &json!({ "name": push.id }));
        }
        let ruling = self.script.rule(&message.target);
        push.token = message.target;
        push.id = format!(
            "projects/{project}/messages/0:{:016}%{:016x}",
            push.at_ms * 1000,
            rand::random::<u64>()
        );
        let Some(ruling) = ruling else {
            push.status = 200;
            push.delivered = true;
            return json_reply(StatusCode::OK, &json!({ "name": push.id }));
        };
        let answer = &ruling.answer;
        let given = answer.status.and_then(|status| StatusCode::from_u16(status).ok());
        let own = answer.reason.as_deref().and_then(ErrorCode::parse);
        let status = given.or(own.map(ErrorCode::http_status)).unwrap_or(StatusCode::OK);
        push.status = status.as_u16();
        push.reason.clone_from(&answer.reason);
        push.delivered = answer.delivers();
        let body = match &answer.reason {
            Some(reason) => scripted_body(reason, status),
            None => json!({ "name": push.id }),
        };
        json_reply(status, &body).ruled(&ruling, push.at_ms)
    }
}

/// An error found before the script was asked.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    body: Value,
    target: String,
}

impl Refusal {
    fn new(code: ErrorCode) -> Self {
        Self::to(code, String::new())
    }

    fn to(code: ErrorCode, target: String) -> Self {
        Self {
            status: code.http_status(),
            code: code.as_str(),
            body: code.body(),
            target,
        }
    }
}

fn json_reply(status: StatusCode, body: &Value) -> Reply {
    Reply::new(
        status,
        typed("application/json; charset=UTF-8"),
        body.to_string().into(),
    )
}

/// FCM knows no id of the caller's, so the same message to the same project is taken for the same push.
fn identity(project: &str, body: &[u8]) -> u128 {
    let mut hasher = DefaultHasher::new();
    project.hash(&mut hasher);
    body.hash(&mut hasher);
    u128::from(hasher.finish())
}
