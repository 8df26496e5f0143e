//! Sends mails by SMTP.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use mail_send::Credentials;
use shared::{
    address::{Mailbox, NamedMailbox},
    clock::Clock,
    provider::{
        Provider,
        smtp::{Credential, Dkim, Tls},
    },
    reference::HEADER,
};
use tokio_rustls::TlsConnector;

use super::{
    config::{Account, Settings},
    connection::{Connection, Envelope, Handed, Security, Server, Trouble},
    dkim::Signer,
    mailbox,
    message::{Body, Head},
    outcome::{Phase, Reply, judge, queue_id},
    pool::{Limits, Pool},
};
use crate::providers::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::Common,
    outcome::{WRONG_TARGET, fingerprint},
    transport::tls,
};

/// How long a mail waits that found all connections busy; up to twice as long, so that they do not come together.
const RETRY_BUSY_AFTER: Duration = Duration::from_secs(5);

/// The longest part of an address before its `@` (RFC 5321 §4.5.3.1.1).
const LOCAL_PART_BYTES_MAX: usize = 64;

/// The reply with which a server ends a connection (RFC 5321 §3.8).
const CLOSING: u16 = 421;

/// SMTP, for all apps.
pub(in crate::providers) struct Smtp {
    connector: TlsConnector,
    limits: Limits,
    step_within: Duration,
    clock: Clock,
    /// Apps with the same credential share its connections.
    pools: Mutex<HashMap<Key, (String, Weak<Pool>)>>,
}

/// What makes two credentials the same for a server.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    host: String,
    port: u16,
    security: Security,
    user: Option<String>,
    password: Option<String>,
    hello: Option<String>,
    connections: usize,
}

impl fmt::Debug for Smtp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Smtp")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Smtp {
    pub(super) fn prepare(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        Ok(Self {
            connector: Arc::new(tls::config(settings.ca_file.as_deref())?).into(),
            limits: Limits {
                connections: settings.connections.max(1),
                mails: settings.mails_per_connection.max(1),
                idle: Duration::from_millis(settings.idle_ms.max(1)),
            },
            step_within: Duration::from_millis(settings.timeout_ms),
            clock: common.clock.clone(),
            pools: Mutex::default(),
        })
    }

    /// Checks `credential` and prepares its use.
    pub(super) fn open(&self, credential: &Credential) -> Result<Account, BadCredential> {
        let signer = |key: &Dkim| {
            Signer::new(&key.domain, &key.selector, key.private_key.reveal())
                .map_err(|rule| BadCredential::new("dkim.private_key", rule))
        };
        let signers = credential.dkim.iter().map(signer).collect::<Result<Vec<_>, _>>()?;
        let (name, pool) = self.pool(credential);
        Ok(Account {
            name,
            endpoint: pool.server.endpoint().into(),
            pool,
            signers,
            bounces: credential.bounces.clone(),
            verp: credential.verp,
        })
    }

    /// The connections of `credential`, and its name.
    fn pool(&self, credential: &Credential) -> (String, Arc<Pool>) {
        let connections = credential.connections.map(|connections| connections.get().into());
        let key = Key {
            host: credential.host.clone(),
            port: credential.port(),
            security: match credential.tls {
                Tls::StartTls => Security::StartTls,
                Tls::Implicit => Security::Implicit,
            },
            user: credential.user.clone(),
            password: credential
                .password
                .as_ref()
                .map(|password| password.reveal().to_owned()),
            hello: credential.hello.clone(),
            connections: connections.unwrap_or(self.limits.connections),
        };
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|_, (_, pool)| pool.strong_count() > 0);
        if let Some((name, Some(pool))) = pools.get(&key).map(|(name, pool)| (name.clone(), pool.upgrade())) {
            return (name, pool);
        }
        // Another password for the same user is another credential: its breakers must not stop this one.
        let base = key.name();
        let is_free = |name: &String| pools.values().all(|(taken, _)| taken != name);
        let numbered = (2..).map(|number: u32| format!("{base}-{number}"));
        let name = std::iter::once(base.clone())
            .chain(numbered)
            .find(is_free)
            .unwrap_or_default();
        let pool = Pool::new(
            key.server(&self.connector, self.step_within),
            Limits {
                connections: key.connections,
                ..self.limits
            },
        );
        pools.insert(key, (name.clone(), Arc::downgrade(&pool)));
        (name, pool)
    }

    /// Sends one mail.
    pub(super) async fn send(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        progress.endpoint = account.endpoint.clone();
        let mail = match Mail::new(account, attempt, &self.clock) {
            Ok(mail) => mail,
            Err(outcome) => return outcome,
        };
        progress.awaits = "no_connection";
        let Some(place) = account.pool.place().await else {
            return Outcome::NotYet {
                reason: "connections_busy".into(),
                wait: RETRY_BUSY_AFTER.mul_f64(rand::random_range(1.0..2.0)),
            };
        };
        let begun = match account.pool.idle(&place) {
            Some(idle) => begin(account, idle, &mail, progress).await,
            None => Err(Failed::Closed),
        };
        let begun = match begun {
            // The server had closed what was kept for too long.
            Err(Failed::Closed) => match account.pool.connect(&place).await {
                Ok(new) => begin(account, new, &mail, progress).await,
                Err(trouble) => return trouble.outcome(),
            },
            begun => begun,
        };
        let connection = match begun {
            Ok(connection) => connection,
            Err(Failed::Closed) => return Outcome::endpoint("connection_lost", None),
            Err(Failed::Refused(outcome)) => return outcome,
        };
        progress.awaits = "not_recorded";
        if !attempt.handover.record().await {
            return Outcome::endpoint("not_recorded", None);
        }
        finish(account, connection, &mail, progress).await
    }
}

/// Why no mail was begun.
enum Failed {
    /// The server had gone, or was about to go.
    Closed,
    /// It refuses, or there is another trouble.
    Refused(Outcome),
}

/// Has the server ready for the mail.
async fn begin(
    account: &Account,
    mut connection: Connection,
    mail: &Mail<'_>,
    progress: &mut Progress,
) -> Result<Connection, Failed> {
    progress.awaits = "no_reply";
    let trouble = match connection.begin(mail.envelope(), mail.bytes.len()).await {
        Ok(()) => return Ok(connection),
        Err(trouble) => trouble,
    };
    match trouble {
        Trouble::Lost("connection_lost") => Err(Failed::Closed),
        Trouble::Refused(_, Reply { code: CLOSING, .. }) if connection.mails > 1 => Err(Failed::Closed),
        Trouble::Refused(phase, reply) => {
            if reply.code != CLOSING {
                reuse(account, connection);
            }
            Err(Failed::Refused(judge(phase, reply)))
        }
        Trouble::Lost(_) | Trouble::Unfit(_) => Err(Failed::Refused(trouble.outcome())),
    }
}

/// Hands the mail over and waits for the server's word.
async fn finish(account: &Account, mut connection: Connection, mail: &Mail<'_>, progress: &mut Progress) -> Outcome {
    progress.awaits = "content_not_taken";
    let response = match connection.hand_over(&mail.bytes, || progress.sent = true).await {
        Handed::Answered(response) => response,
        Handed::Broken => return Outcome::retry_later("connection_lost", None),
        Handed::InDoubt => return Outcome::ambiguous("connection_lost"),
    };
    let reply = Reply::of(&response);
    if reply.is_positive() {
        account.pool.keep(connection);
        return Outcome::Accepted {
            provider_id: queue_id(&response.message),
        };
    }
    if reply.code != CLOSING {
        reuse(account, connection);
    }
    judge(Phase::Content, reply)
}

/// Makes a connection ready for the next mail after a refusal, in the background.
fn reuse(account: &Account, mut connection: Connection) {
    let pool = account.pool.clone();
    tokio::spawn(async move {
        if connection.reset().await.is_ok() {
            pool.keep(connection);
        }
    });
}

/// One mail, ready to be sent.
struct Mail<'a> {
    bounces: Mailbox,
    to: &'a Mailbox,
    envelope_id: String,
    bytes: Vec<u8>,
}

impl<'a> Mail<'a> {
    fn new(account: &Account, attempt: &Attempt<'a>, clock: &Clock) -> Result<Self, Outcome> {
        let message = attempt.message;
        let email = message.email().ok_or_else(|| Outcome::rejected(WRONG_TARGET))?;
        let to = mailbox(attempt.address).ok_or_else(|| Outcome::rejected(WRONG_TARGET))?;
        let from = email.from.as_ref().ok_or_else(|| Outcome::rejected("no_sender"))?;
        let signers: Vec<&Signer> = {
            let all = account.signers.iter();
            all.filter(|signer| signer.is_aligned_with(from.email.domain()))
                .collect()
        };
        if signers.is_empty() && !account.signers.is_empty() {
            // Receivers would take an unsigned mail of a domain that signs for a forgery.
            return Err(Outcome::rejected("from_not_signed"));
        }
        let (reference, unsubscribe) = (attempt.reference(), attempt.unsubscribe_url());
        let others: Vec<(&str, &str)> = {
            let own = email
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()));
            let is_other = |(name, _): &(&str, &str)| !name.eq_ignore_ascii_case(HEADER);
            let reference = reference.as_deref().map(|reference| (HEADER, reference));
            own.filter(is_other).chain(reference).collect()
        };
        let addressee = NamedMailbox {
            email: to.clone(),
            name: None,
        };
        let head = Head {
            from,
            to: &addressee,
            reply_to: email.reply_to.as_ref(),
            subject: &email.subject,
            id: &attempt.delivery.to_string(),
            date: clock.now(),
            others: &others,
            unsubscribe: unsubscribe.as_deref(),
        };
        let body = message.rendition(Provider::Smtp, || Body::rendered(email));
        let bytes = Body::read(body).and_then(|body| body.addressed(&head, &signers));
        Ok(Self {
            bounces: account.bounces(from, attempt),
            to,
            envelope_id: reference.clone().unwrap_or_else(|| attempt.delivery.to_string()),
            bytes: bytes.ok_or_else(|| Outcome::rejected("not_signed"))?,
        })
    }

    fn envelope(&self) -> Envelope<'_> {
        Envelope {
            from: &self.bounces,
            to: self.to,
            id: &self.envelope_id,
        }
    }
}

impl Account {
    /// Where bounces of a mail go.
    fn bounces(&self, from: &NamedMailbox, attempt: &Attempt<'_>) -> Mailbox {
        let Some(bounces) = &self.bounces else {
            return from.email.clone();
        };
        if !self.verp {
            return bounces.clone();
        }
        let domain = bounces.domain();
        let local = &bounces.reveal()[..bounces.reveal().len() - domain.len() - 1];
        let named = |name: String| format!("{local}+{name}@{domain}").parse::<Mailbox>();
        let is_short = |name: &String| local.len() + 1 + name.len() <= LOCAL_PART_BYTES_MAX;
        // A report may come back with nothing else that tells which mail it is about.
        let reference = attempt.short_reference().filter(is_short);
        let own = reference.map_or_else(|| named(attempt.delivery.0.simple().to_string()), named);
        own.unwrap_or_else(|_| bounces.clone())
    }
}

impl Key {
    /// Names the credential without naming the user, who may be a person.
    fn name(&self) -> String {
        let Self { host, port, user, .. } = self;
        match user {
            Some(user) => {
                format!("{host}:{port}/{}", fingerprint(user))
            }
            None => format!("{host}:{port}"),
        }
    }

    fn server(&self, connector: &TlsConnector, step_within: Duration) -> Server {
        let credentials = self.user.clone().zip(self.password.clone());
        Server {
            host: self.host.clone(),
            port: self.port,
            security: self.security,
            connector: connector.clone(),
            own_name: self.hello.clone(),
            credentials: credentials.map(|(user, password)| Arc::new(Credentials::new(user, password))),
            step_within,
        }
    }
}
