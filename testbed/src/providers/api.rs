//! Simulators of APIs that take one message in each request over HTTPS, and the receivers of webhooks. What they have in common is
//! here: how a request is recorded, when the script is asked, and how its answer is applied.

use std::{
    fmt::Debug,
    hash::{DefaultHasher, Hash, Hasher as _},
    net::{Ipv4Addr, SocketAddr},
    ops::Deref,
    sync::Arc,
};

use bytes::Bytes;
use http::{StatusCode, request::Parts};
use shared::provider::Provider;

use super::{
    clock::now_ms,
    devices::Devices,
    log::{LogMode, RecordedPush},
    reply::{Reply, Site, TRACEPARENT, text},
    script::Script,
    simulator::{Records, Simulator},
    tls::Authority,
    wire::StreamLimits,
};

/// `SETTINGS_MAX_CONCURRENT_STREAMS` as usual servers announce it.
const STREAMS_PER_CONNECTION: u32 = 128;

/// The settings of a simulator of an API.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// The address to listen on; port 0 is any free port.
    pub listen: SocketAddr,
    /// The authority that signs the certificate; a new one if absent.
    pub authority: Option<Authority>,
    /// How much is recorded.
    pub log: LogMode,
    /// How it misbehaves.
    pub script: Script,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            authority: None,
            log: LogMode::default(),
            script: Script::default(),
        }
    }
}

/// What is one provider's own: its account, its rules and its answers.
pub trait Api: Debug + Send + Sync + Sized + 'static {
    /// The provider.
    const PROVIDER: Provider;

    /// The message in a request, as far as it can be read.
    type Message;

    /// An account with new secrets.
    fn generate() -> Self;

    /// Whether a script may name this reason without a status.
    fn is_reason(_reason: &str) -> bool {
        false
    }

    /// Reads a request. The error is the answer to one that is for no message at all.
    #[expect(clippy::result_large_err, reason = "the error is an answer, made once a request")]
    fn read(&self, head: &Parts, body: &Bytes) -> Result<Self::Message, Reply>;

    /// What the log keeps of a message. The id is made by [`Self::new_id`] if it is empty.
    fn describe(&self, message: &Self::Message) -> RecordedPush;

    /// What makes two messages the same, for the count of duplicates.
    fn identity(&self, _message: &Self::Message, push: &RecordedPush) -> u128 {
        digest(&push.collapse_id)
    }

    /// Whether the provider would take the message.
    #[expect(clippy::result_large_err, reason = "the error is an answer, made once a request")]
    fn check(&self, head: &Parts, message: &Self::Message, devices: &Devices) -> Result<(), Refusal>;

    /// The id that a message got which counts as the same for the provider, so that this one is not delivered.
    fn former(&self, _message: &Self::Message) -> Option<String> {
        None
    }

    /// A message was delivered under this id.
    fn remember(&self, _message: &Self::Message, _id: &str) {}

    /// A new id of the provider's for a message.
    fn new_id() -> String;

    /// The answer to a message that is taken, with its usual status if no other is given.
    fn accept(&self, message: &Self::Message, id: &str, status: Option<StatusCode>) -> Reply;

    /// The answer that refuses a message for a reason, with the reason's status if no other is given.
    fn refuse(&self, message: &Self::Message, reason: &str, status: Option<StatusCode>) -> Reply;
}

/// Why a message is not taken, and the answer that says so.
#[derive(Debug)]
pub struct Refusal {
    reason: String,
    reply: Reply,
}

impl Refusal {
    pub(crate) fn new(reason: &str, reply: Reply) -> Self {
        Self {
            reason: reason.to_owned(),
            reply,
        }
    }
}

/// A digest of what makes a message the same as another.
pub(crate) fn digest(identity: impl Hash) -> u128 {
    let mut hasher = DefaultHasher::new();
    identity.hash(&mut hasher);
    u128::from(hasher.finish())
}

/// A running simulator of an API. Dropping it stops it.
#[derive(Debug)]
pub struct ApiSimulator<A> {
    simulator: Simulator,
    site: Arc<ApiSite<A>>,
}

impl<A: Api> ApiSimulator<A> {
    /// Starts to listen, on the current runtime. The account and its secrets are made.
    ///
    /// # Errors
    /// When the address cannot be bound or the script has a reason without a status.
    pub async fn start(config: ApiConfig) -> anyhow::Result<Self> {
        Self::start_as(A::generate(), config).await
    }

    /// Starts to listen, on the current runtime, for this account.
    pub(super) async fn start_as(api: A, config: ApiConfig) -> anyhow::Result<Self> {
        let authority = config.authority.map_or_else(Authority::generate, Ok)?;
        let site = Arc::new(ApiSite {
            api,
            records: Records::new(config.script, A::is_reason, config.log)?,
        });
        let limits = StreamLimits {
            first: STREAMS_PER_CONNECTION,
            full: STREAMS_PER_CONNECTION,
        };
        let simulator = Simulator::start(config.listen, authority, limits, &site).await?;
        Ok(Self { simulator, site })
    }

    /// What is the provider's own.
    pub(super) fn api(&self) -> &A {
        &self.site.api
    }
}

impl<A> Deref for ApiSimulator<A> {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.simulator
    }
}

/// The state that all connections share.
#[derive(Debug)]
struct ApiSite<A> {
    api: A,
    records: Arc<Records>,
}

impl<A: Api> Site for ApiSite<A> {
    const ALPN: &'static [&'static [u8]] = &[b"h2", b"http/1.1"];

    /// The number of the connection.
    type Session = u64;

    fn open(&self, connection: u64) -> u64 {
        connection
    }

    fn unlocked(&self, _: &u64) -> bool {
        true
    }

    fn records(&self) -> &Arc<Records> {
        &self.records
    }

    fn answer(&self, connection: &mut u64, head: &Parts, body: Bytes) -> Reply {
        let message = match self.api.read(head, &body) {
            Ok(message) => message,
            Err(reply) => return reply,
        };
        let mut push = RecordedPush {
            at_ms: now_ms(),
            provider: A::PROVIDER.as_str(),
            connection: *connection,
            traceparent: text(&head.headers, &TRACEPARENT).map(str::to_owned),
            payload: body,
            ..self.api.describe(&message)
        };
        let reply = match self.api.check(head, &message, &self.records.devices) {
            Ok(()) => {
                let reply = self.take(&message, &mut push);
                if push.delivered {
                    self.api.remember(&message, &push.id);
                }
                reply
            }
            Err(Refusal { reason, reply }) => {
                push.reason = Some(reason);
                reply
            }
        };
        push.status = reply.response.status().as_u16();
        let identity = push.delivered.then(|| self.api.identity(&message, &push));
        let reason = push.reason.clone();
        self.records
            .log
            .record(*connection, identity, reason.as_deref(), || push);
        reply
    }
}

impl<A: Api> ApiSite<A> {
    /// Answers a message that the provider would take, as the script says.
    fn take(&self, message: &A::Message, push: &mut RecordedPush) -> Reply {
        if let Some(id) = self.api.former(message) {
            push.id = id;
            return self.api.accept(message, &push.id, None);
        }
        if push.id.is_empty() {
            push.id = A::new_id();
        }
        let Some(ruling) = self.records.script.rule(&push.token) else {
            push.delivered = true;
            return self.api.accept(message, &push.id, None);
        };
        let answer = &ruling.answer;
        let status = answer.status.and_then(|status| StatusCode::from_u16(status).ok());
        push.reason.clone_from(&answer.reason);
        push.delivered = answer.delivers();
        let reply = match &answer.reason {
            Some(reason) => self.api.refuse(message, reason, status),
            None => self.api.accept(message, &push.id, status),
        };
        if push.reason.is_none() {
            push.reason = status
                .filter(|status| !status.is_success())
                .map(|status| status.as_str().to_owned());
        }
        reply.ruled(&ruling, push.at_ms)
    }
}
