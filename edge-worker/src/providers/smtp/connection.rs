//! One connection to a server: greeting, TLS, authentication, then one mail after another.
//!
//! `mail-send` has the words of the dialogue. Its own way to send a mail is not used: it issues each command alone,
//! leaves Nagle's algorithm on (45 ms a mail), waits for a greeting without end, and cannot tell a refused mail from one
//! whose fate is unknown.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mail_send::{Credentials, Error, SmtpClient};
use shared::address::Mailbox;
use smtp_proto::{EXT_DSN, EXT_PIPELINING, EXT_SIZE, EXT_START_TLS, EhloResponse, Response};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::outcome::{Phase, Reply, judge};
use crate::providers::Outcome;

/// How long one address of a server may take to accept a connection, if there are others.
const CONNECT_WITHIN: Duration = Duration::from_secs(4);

/// How long the polite end of a connection may take.
const QUIT_WITHIN: Duration = Duration::from_secs(2);

/// When the encryption begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Security {
    /// After the command `STARTTLS` (RFC 3207), usually on port 587. Without it nothing is sent.
    StartTls,
    /// With the first byte (RFC 8314), usually on port 465.
    Implicit,
}

/// A server, and how to get in.
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) security: Security,
    pub(super) connector: TlsConnector,
    /// How this side names itself in `EHLO`; by its network address if absent.
    pub(super) own_name: Option<String>,
    /// Absent for a server that knows its clients by their network.
    pub(super) credentials: Option<Arc<Credentials<String>>>,
    /// How long one step may take. The desk limits them together.
    pub(super) step_within: Duration,
}

/// Why there is no connection, or no mail was handed over. Nothing was sent.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server replied and refuses.
    Refused(Phase, Reply),
    /// The server cannot be reached or has gone, for this reason.
    Lost(&'static str),
    /// The server does not offer what the credential needs.
    Unfit(&'static str),
}

impl Trouble {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(phase, reply) => judge(*phase, *reply),
            Self::Lost(reason) => Outcome::endpoint(*reason, None),
            Self::Unfit(reason) => Outcome::credential(*reason, None),
        }
    }

    fn of(phase: Phase, error: &Error) -> Self {
        match error {
            Error::UnexpectedReply(reply) | Error::AuthenticationFailed(reply) => {
                Self::Refused(phase, Reply::of(reply))
            }
            Error::UnsupportedAuthMechanism => Self::Unfit("no_auth_mechanism"),
            Error::MissingCredentials | Error::InvalidTLSName => Self::Unfit("host"),
            Error::Tls(_) => Self::Lost("tls_failed"),
            Error::MissingStartTls => Self::Lost("no_starttls"),
            Error::Timeout => Self::Lost("timeout"),
            Error::Io(_) | Error::UnparseableReply => Self::Lost("connection_lost"),
            Error::Base64(_) | Error::Auth(_) | Error::MissingMailFrom | Error::MissingRcptTo => Self::Lost("protocol"),
        }
    }
}

/// Whether the server has the mail.
#[derive(Debug)]
pub(super) enum Handed {
    /// It answered.
    Answered(Response<String>),
    /// The connection ended before the end of the mail was written, so the server must not have taken it.
    Broken,
    /// It has the whole mail and did not answer.
    InDoubt,
}

/// From whom, to whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Envelope<'a> {
    /// Where bounces go.
    pub(super) from: &'a Mailbox,
    pub(super) to: &'a Mailbox,
    /// Named in reports of what became of the mail (RFC 3461), where the server makes them.
    pub(super) id: &'a str,
}

/// An open connection.
pub(super) struct Connection {
    client: SmtpClient<TlsStream<TcpStream>>,
    offers: EhloResponse<String>,
    /// How many mails were begun on it.
    pub(super) mails: u32,
}

impl Server {
    /// `host:port`, in traces.
    pub(super) fn endpoint(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub(super) async fn connect(&self) -> Result<Connection, Trouble> {
        let connecting = |error: Error| Trouble::of(Phase::Connect, &error);
        let stream = self.dial().await?;
        let own_name = self.own_name.clone().unwrap_or_else(|| literal(&stream));
        let mut client = SmtpClient {
            stream,
            timeout: self.step_within,
        };
        let mut client = match self.security {
            Security::Implicit => {
                let mut client = client.into_tls(&self.connector, &self.host).await.map_err(connecting)?;
                self.greeted(&mut client).await?;
                client
            }
            Security::StartTls => {
                self.greeted(&mut client).await?;
                let offers = client.ehlo(&own_name).await.map_err(connecting)?;
                if !offers.has_capability(EXT_START_TLS) {
                    return Err(Trouble::Lost("no_starttls"));
                }
                client
                    .start_tls(&self.connector, &self.host)
                    .await
                    .map_err(connecting)?
            }
        };
        let offers = client.ehlo(&own_name).await.map_err(connecting)?;
        if let Some(credentials) = &self.credentials {
            let login = client.authenticate(&**credentials, &offers).await;
            login.map_err(|error| Trouble::of(Phase::Login, &error))?;
        }
        Ok(Connection {
            client,
            offers,
            mails: 0,
        })
    }

    /// Connects to the first address of the host that accepts.
    async fn dial(&self) -> Result<TcpStream, Trouble> {
        let found = lookup_host((self.host.as_str(), self.port)).await;
        let found: Vec<SocketAddr> = found.map_err(|_| Trouble::Lost("unresolved"))?.collect();
        let mut trouble = Trouble::Lost("unresolved");
        for address in found {
            match timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Otherwise Nagle's algorithm holds back the second packet of each mail.
                    stream.set_nodelay(true).map_err(|_| Trouble::Lost("connect"))?;
                    return Ok(stream);
                }
                Ok(Err(_)) => trouble = Trouble::Lost("connect"),
                Err(_) => trouble = Trouble::Lost("connect_timeout"),
            }
        }
        Err(trouble)
    }

    async fn greeted<T: AsyncRead + AsyncWrite + Unpin>(&self, client: &mut SmtpClient<T>) -> Result<(), Trouble> {
        match timeout(self.step_within, client.read()).await {
            Ok(Ok(greeting)) => expect(Phase::Connect, &greeting),
            Ok(Err(error)) => Err(Trouble::of(Phase::Connect, &error)),
            Err(_) => Err(Trouble::Lost("no_greeting")),
        }
    }
}

impl Connection {
    /// Names sender and recipient and asks to send `bytes`. When this returns, the server waits for the mail.
    pub(super) async fn begin(&mut self, envelope: Envelope<'_>, bytes: usize) -> Result<(), Trouble> {
        self.mails += 1;
        if self.offers.has_capability(EXT_SIZE) && (1..bytes).contains(&self.offers.size) {
            // RFC 1870 §6.1: the reply that the server would give.
            let reply = Reply {
                code: 552,
                status: Some([5, 3, 4]),
            };
            return Err(Trouble::Refused(Phase::Sender, reply));
        }
        let [mail, rcpt] = self.commands(envelope, bytes);
        if self.offers.has_capability(EXT_PIPELINING) {
            let replies = self.client.cmds([&mail, &rcpt]).await;
            let replies = replies.map_err(|error| Trouble::of(Phase::Sender, &error))?;
            for (phase, reply) in [Phase::Sender, Phase::Recipient].into_iter().zip(&replies) {
                expect(phase, reply)?;
            }
        } else {
            self.command(Phase::Sender, &mail).await?;
            self.command(Phase::Recipient, &rcpt).await?;
        }
        let reply = self.client.cmd("DATA\r\n").await;
        let reply = reply.map_err(|error| Trouble::of(Phase::Data, &error))?;
        if reply.code == 354 {
            Ok(())
        } else {
            Err(Trouble::Refused(Phase::Data, Reply::of(&reply)))
        }
    }

    /// `MAIL` and `RCPT`. Nothing in them can hold a line break: a [`Mailbox`] has none, and an id is base64url or a UUID, of at most
    /// 100 characters (RFC 3461 §4.4).
    fn commands(&self, envelope: Envelope<'_>, bytes: usize) -> [String; 2] {
        let Envelope { from, to, id } = envelope;
        let size = if self.offers.has_capability(EXT_SIZE) {
            format!(" SIZE={bytes}")
        } else {
            String::new()
        };
        let (report, when) = if self.offers.has_capability(EXT_DSN) {
            (format!(" RET=HDRS ENVID={id}"), " NOTIFY=FAILURE")
        } else {
            (String::new(), "")
        };
        [
            format!("MAIL FROM:<{}>{size}{report}\r\n", from.reveal()),
            format!("RCPT TO:<{}>{when}\r\n", to.reveal()),
        ]
    }

    async fn command(&mut self, phase: Phase, command: &str) -> Result<(), Trouble> {
        let reply = self.client.cmd(command).await;
        let reply = reply.map_err(|error| Trouble::of(phase, &error))?;
        expect(phase, &reply)
    }

    /// Writes the mail and waits for the server's word, without a time limit. `ending` is called before the last bytes are
    /// written: from then on the server may have taken the mail.
    pub(super) async fn hand_over(&mut self, mail: &[u8], ending: impl FnOnce()) -> Handed {
        let (content, end) = on_the_wire(mail);
        if self.write(&content).await.is_err() {
            return Handed::Broken;
        }
        ending();
        if self.write(end).await.is_err() {
            return Handed::InDoubt;
        }
        match self.client.read().await {
            Ok(reply) => Handed::Answered(reply),
            Err(_) => Handed::InDoubt,
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.client.stream.write_all(bytes).await?;
        self.client.stream.flush().await
    }

    /// Ends a mail that was begun and refused, so that another can begin. Without this the next `MAIL` is refused.
    pub(super) async fn reset(&mut self) -> Result<(), Trouble> {
        self.command(Phase::Sender, "RSET\r\n").await
    }

    /// Whether the server has neither closed the connection nor announced that it will, as far as that has arrived.
    pub(super) fn is_quiet(&self) -> bool {
        let (stream, _) = self.client.stream.get_ref();
        let unread = stream.try_read(&mut [0]);
        matches!(unread, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Says good-bye in the background.
    pub(super) fn quit(self) {
        tokio::spawn(async move {
            // Whatever the server says, the connection is done.
            let (Ok(_) | Err(_)) = timeout(QUIT_WITHIN, self.client.quit()).await;
        });
    }
}

/// The address of this side of `stream` as a name (RFC 5321 §4.1.3).
fn literal(stream: &TcpStream) -> String {
    match stream.local_addr().map(|address| address.ip().to_canonical()) {
        Ok(IpAddr::V4(address)) => format!("[{address}]"),
        Ok(IpAddr::V6(address)) => format!("[IPv6:{address}]"),
        Err(_) => "[127.0.0.1]".to_owned(),
    }
}

fn expect(phase: Phase, reply: &Response<String>) -> Result<(), Trouble> {
    let reply = Reply::of(reply);
    if reply.is_positive() {
        Ok(())
    } else {
        Err(Trouble::Refused(phase, reply))
    }
}

/// The content as it is written (RFC 5321 §4.5.2: dots at starts of lines are doubled), and what ends it.
fn on_the_wire(mail: &[u8]) -> (Vec<u8>, &'static [u8]) {
    let mut content = Vec::with_capacity(mail.len() + mail.len() / 64);
    for line in mail.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b".") {
            content.push(b'.');
        }
        content.extend_from_slice(line);
    }
    if content.is_empty() || content.ends_with(b"\r\n") {
        (content, b".\r\n")
    } else {
        (content, b"\r\n.\r\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_a_mail_can_end_it() {
        for (mail, written) in [
            ("", ".\r\n"),
            ("a", "a\r\n.\r\n"),
            ("a\r\n", "a\r\n.\r\n"),
            (".\r\n", "..\r\n.\r\n"),
            ("a\r\n.\r\nMAIL\r\n", "a\r\n..\r\nMAIL\r\n.\r\n"),
            ("a\n.\nb", "a\n..\nb\r\n.\r\n"),
            ("..a", "...a\r\n.\r\n"),
        ] {
            let (mut content, end) = on_the_wire(mail.as_bytes());
            content.extend_from_slice(end);
            assert_eq!(String::from_utf8(content).unwrap(), written, "{mail:?}");
        }
    }
}
