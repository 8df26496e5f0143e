//! The simulator of a mail server that takes submissions (RFC 6409): STARTTLS or TLS from the first byte, AUTH PLAIN and LOGIN,
//! PIPELINING, SIZE and DSN.
//!
//! It is strict, so that no fault of the client stays hidden: commands out of order, parameters that it did not offer, bytes
//! that are not ASCII, bare line feeds and long lines are refused, and so is what a client sends before a TLS handshake that
//! belongs behind it.
//!
//! In a script, `token` is the mailbox of the recipient. A reason begins with what is refused, `RCPT`, `DATA` or `END` (the
//! content), then come the reply's code and text: `RCPT 550 5.1.1 no such user`. Other answers apply to the end of the content:
//! a delay, a closed connection, silence. What does not depend on a recipient is a setting.
//!
//! Not simulated: queues, bounces and reports. Nothing is sent on.

mod server;
mod simulation;

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_rustls::TlsAcceptor;

use self::server::{MailServer, Refusal};
use super::{
    log::LogMode,
    script::Script,
    simulator::{Records, Simulator},
    tls::Authority,
};

/// When the encryption of a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// After STARTTLS.
    StartTls,
    /// With the first byte.
    Implicit,
    /// Never: STARTTLS is not offered.
    Never,
}

/// How a server behaves towards all clients alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manners {
    /// The first reply of a connection; silence if absent.
    pub greeting: Option<String>,
    /// When encryption begins.
    pub encryption: Encryption,
    /// Whether PIPELINING is offered.
    pub pipelining: bool,
    /// Whether DSN is offered.
    pub dsn: bool,
    /// The largest mail, bytes; SIZE is not offered if absent.
    pub size: Option<usize>,
    /// The reply to AUTH, instead of the usual.
    pub auth_reply: Option<String>,
    /// The reply to MAIL, instead of the usual.
    pub mail_reply: Option<String>,
    /// Mails over one connection; then it is closed with 421.
    pub mails: usize,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            greeting: Some("220 mail.example.com ESMTP".to_owned()),
            encryption: Encryption::StartTls,
            pipelining: true,
            dsn: true,
            size: Some(1_000_000),
            auth_reply: None,
            mail_reply: None,
            mails: usize::MAX,
        }
    }
}

/// The settings of an SMTP simulator.
#[derive(Clone, Debug)]
pub struct SmtpConfig {
    /// The address to listen on; port 0 is any free port.
    pub listen: SocketAddr,
    /// The authority that signs the certificate; a new one if absent.
    pub authority: Option<Authority>,
    /// The user and the password that it knows.
    pub user: String,
    /// The password of the user.
    pub password: String,
    /// How it behaves.
    pub manners: Manners,
    /// How much is recorded.
    pub log: LogMode,
    /// How it misbehaves.
    pub script: Script,
}

impl Default for SmtpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            authority: None,
            user: "shop".to_owned(),
            password: format!("{:032x}", rand::random::<u128>()),
            manners: Manners::default(),
            log: LogMode::default(),
            script: Script::default(),
        }
    }
}

/// A running SMTP simulator. Dropping it stops it.
#[derive(Debug)]
pub struct Smtp {
    simulator: Simulator,
    server: Arc<MailServer>,
}

impl Smtp {
    /// Starts to listen, on the current runtime.
    ///
    /// # Errors
    /// When the address cannot be bound or the script has a reason without a reply.
    pub async fn start(config: SmtpConfig) -> anyhow::Result<Self> {
        let authority = config.authority.map_or_else(Authority::generate, Ok)?;
        let is_reason = |reason: &str| Refusal::parse(reason).is_some();
        let records = Records::new(config.script, is_reason, config.log)?;
        let server = Arc::new(MailServer {
            acceptor: TlsAcceptor::from(authority.server_config(&[])?),
            user: config.user,
            password: config.password,
            manners: Mutex::new(config.manners),
            records: records.clone(),
        });
        Ok(Self {
            simulator: Simulator::start_with(config.listen, authority, records, Arc::clone(&server)).await?,
            server,
        })
    }

    /// Changes how it behaves towards new connections and their next commands.
    pub fn behave(&self, manners: Manners) {
        *self.server.manners.lock().unwrap_or_else(PoisonError::into_inner) = manners;
    }
}

impl Deref for Smtp {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.simulator
    }
}
