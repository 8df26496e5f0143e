//! One connection with the mail server.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use shared::provider::Provider;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::watch,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;

use super::{Encryption, Manners};
use crate::providers::{
    clock::now_ms,
    http2::ConnectionOrder,
    listener::Protocol,
    log::{RecordedPush, delivery_of},
    script::{Act, Ruling},
    simulator::Records,
};

/// The longest command line, bytes (RFC 5321 §4.5.3.1.4, with room for parameters).
const MAX_COMMAND: u64 = 2048;

/// The longest line of a mail without its end, bytes (RFC 5321 §4.5.3.1.6).
const MAX_LINE: usize = 998;

/// The state that all connections share.
pub(super) struct MailServer {
    pub(super) acceptor: TlsAcceptor,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) manners: Mutex<Manners>,
    pub(super) records: Arc<Records>,
}

impl std::fmt::Debug for MailServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MailServer")
    }
}

/// What a scripted reason refuses, and with which reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    at: Stage,
    reply: String,
}

/// A point of the dialogue that depends on the recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Rcpt,
    Data,
    End,
}

impl Refusal {
    /// Reads `RCPT 550 5.1.1 no such user`.
    pub(super) fn parse(reason: &str) -> Option<Self> {
        let (stage, reply) = reason.split_once(' ')?;
        let at = match stage {
            "RCPT" => Stage::Rcpt,
            "DATA" => Stage::Data,
            "END" => Stage::End,
            _ => return None,
        };
        let code: u16 = reply.get(..3)?.parse().ok()?;
        (200..600).contains(&code).then(|| Self {
            at,
            reply: reply.to_owned(),
        })
    }

    fn code(&self) -> u16 {
        self.reply[..3].parse().unwrap_or(0)
    }
}

/// How a conversation without encryption ends.
enum Ended {
    /// The connection is done.
    Closed,
    /// The TLS handshake follows.
    StartTls,
}

/// A mail in progress.
#[derive(Debug)]
struct Mail {
    from: String,
    to: Option<String>,
    ruling: Option<Ruling>,
    /// `ENVID` of the envelope.
    envelope_id: Option<String>,
}

/// One side of a conversation.
struct Dialogue<'a, S> {
    server: &'a MailServer,
    io: BufReader<S>,
    connection: u64,
    is_secure: bool,
    is_known: bool,
    mail: Option<Mail>,
    mails: usize,
}

impl MailServer {
    pub(super) fn manners(&self) -> Manners {
        self.manners.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn converse(&self, mut stream: TcpStream, connection: u64) -> io::Result<()> {
        if self.manners().encryption == Encryption::Implicit {
            let stream = self.acceptor.accept(stream).await?;
            let mut dialogue = Dialogue::new(self, stream, connection, true);
            dialogue.greet().await?;
            dialogue.run().await?;
            return Ok(());
        }
        let mut dialogue = Dialogue::new(self, &mut stream, connection, false);
        dialogue.greet().await?;
        if let Ended::Closed = dialogue.run().await? {
            return Ok(());
        }
        let stream = self.acceptor.accept(stream).await?;
        Dialogue::new(self, stream, connection, true).run().await?;
        Ok(())
    }

    fn knows(&self, user: &str, password: &str) -> bool {
        (user, password) == (&*self.user, &*self.password)
    }
}

impl Protocol for MailServer {
    async fn serve(self: Arc<Self>, stream: TcpStream, connection: u64, mut orders: watch::Receiver<ConnectionOrder>) {
        self.records.log.connected();
        tokio::select! {
            // How a client ends a connection is its own affair.
            Ok(()) | Err(_) = self.converse(stream, connection) => {}
            _ = orders.changed() => {}
        }
        self.records.log.disconnected();
    }
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Dialogue<'a, S> {
    fn new(server: &'a MailServer, stream: S, connection: u64, is_secure: bool) -> Self {
        Self {
            server,
            io: BufReader::new(stream),
            connection,
            is_secure,
            is_known: false,
            mail: None,
            mails: 0,
        }
    }

    async fn greet(&mut self) -> io::Result<()> {
        match self.server.manners().greeting {
            Some(greeting) => self.reply(&greeting).await,
            None => std::future::pending().await,
        }
    }

    async fn reply(&mut self, line: &str) -> io::Result<()> {
        self.io.get_mut().write_all(format!("{line}\r\n").as_bytes()).await?;
        self.io.get_mut().flush().await
    }

    /// A line without its end; `None` at the end of the connection or if it is malformed.
    async fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.io).take(MAX_COMMAND);
        limited.read_until(b'\n', &mut line).await?;
        let line = line
            .strip_suffix(b"\r\n")
            .filter(|line| line.is_ascii() && !line.contains(&b'\r'));
        Ok(line.map(|line| String::from_utf8_lossy(line).into_owned()))
    }

    async fn run(&mut self) -> io::Result<Ended> {
        while let Some(line) = self.line().await? {
            let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let manners = self.server.manners();
            match verb.to_ascii_uppercase().as_str() {
                "EHLO" => self.hello(&manners, rest).await?,
                "STARTTLS" if !self.is_secure && manners.encryption == Encryption::StartTls => {
                    self.reply("220 2.0.0 ready").await?;
                    // Whatever came with the command was not protected (CVE-2011-0411).
                    return Ok(if self.io.buffer().is_empty() {
                        Ended::StartTls
                    } else {
                        Ended::Closed
                    });
                }
                "QUIT" => {
                    self.reply("221 2.0.0 good-bye").await?;
                    return Ok(Ended::Closed);
                }
                "NOOP" => self.reply("250 2.0.0 ok").await?,
                "RSET" => {
                    self.mail = None;
                    self.reply("250 2.0.0 ok").await?;
                }
                _ if !self.is_secure => self.reply("530 5.7.0 must issue a STARTTLS command first").await?,
                "AUTH" => self.auth(&manners, rest).await?,
                _ if !self.is_known => self.reply("530 5.7.0 authentication required").await?,
                "MAIL" => {
                    if self.mails >= manners.mails {
                        self.reply("421 4.7.0 too many messages on this connection").await?;
                        return Ok(Ended::Closed);
                    }
                    self.mail(&manners, rest).await?;
                }
                "RCPT" => self.rcpt(&manners, rest).await?,
                "DATA" => {
                    if !self.data(&manners).await? {
                        return Ok(Ended::Closed);
                    }
                }
                _ => self.reply("500 5.5.2 not a command").await?,
            }
        }
        Ok(Ended::Closed)
    }

    async fn hello(&mut self, manners: &Manners, name: &str) -> io::Result<()> {
        self.mail = None;
        if name.is_empty() || name.contains(' ') {
            return self.reply("501 5.5.4 a name is missing").await;
        }
        let mut lines = vec!["mail.example.com".to_owned(), "ENHANCEDSTATUSCODES".to_owned()];
        if manners.encryption == Encryption::StartTls && !self.is_secure {
            lines.push("STARTTLS".to_owned());
        }
        if self.is_secure {
            lines.push("AUTH PLAIN LOGIN".to_owned());
        }
        if manners.pipelining {
            lines.push("PIPELINING".to_owned());
        }
        if manners.dsn {
            lines.push("DSN".to_owned());
        }
        if let Some(size) = manners.size {
            lines.push(format!("SIZE {size}"));
        }
        let last = lines.len() - 1;
        let lines: Vec<_> = lines
            .iter()
            .enumerate()
            .map(|(number, line)| format!("250{}{line}", if number == last { ' ' } else { '-' }))
            .collect();
        self.reply(&lines.join("\r\n")).await
    }

    async fn auth(&mut self, manners: &Manners, rest: &str) -> io::Result<()> {
        let (mechanism, initial) = rest.split_once(' ').unwrap_or((rest, ""));
        let known = match mechanism.to_ascii_uppercase().as_str() {
            "PLAIN" => {
                let given = if initial.is_empty() {
                    self.asked("").await?
                } else {
                    decode(initial)
                };
                let mut parts = given.split('\0').skip(1);
                let (user, password) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                self.server.knows(user, password)
            }
            "LOGIN" => {
                let user = self.asked("VXNlcm5hbWU6").await?;
                let password = self.asked("UGFzc3dvcmQ6").await?;
                self.server.knows(&user, &password)
            }
            _ => return self.reply("504 5.5.4 unknown mechanism").await,
        };
        if let Some(reply) = &manners.auth_reply {
            return self.reply(reply).await;
        }
        self.is_known = known;
        if known {
            self.reply("235 2.7.0 welcome").await
        } else {
            self.reply("535 5.7.8 authentication failed").await
        }
    }

    async fn asked(&mut self, challenge: &str) -> io::Result<String> {
        self.reply(&format!("334 {challenge}")).await?;
        Ok(decode(&self.line().await?.unwrap_or_default()))
    }

    async fn mail(&mut self, manners: &Manners, rest: &str) -> io::Result<()> {
        if self.mail.is_some() {
            return self.reply("503 5.5.1 nested MAIL command").await;
        }
        let Some((from, parameters)) = path(rest, "FROM:") else {
            return self.reply("501 5.5.4 malformed sender").await;
        };
        if let Some(reply) = &manners.mail_reply {
            return self.reply(reply).await;
        }
        let mut envelope_id = None;
        for parameter in parameters {
            let parameter = parameter
                .split_once('=')
                .map(|(name, value)| (name.to_ascii_uppercase(), value));
            match parameter.as_ref().map(|(name, value)| (name.as_str(), *value)) {
                Some(("SIZE", size)) if manners.size.is_some() => {
                    if size.parse::<usize>().map_or(true, |size| Some(size) > manners.size) {
                        return self.reply("552 5.3.4 message size exceeds limit").await;
                    }
                }
                Some(("RET", "HDRS" | "FULL")) if manners.dsn => {}
                Some(("ENVID", id)) if manners.dsn => envelope_id = Some(id.to_owned()),
                _ => return self.reply("555 5.5.4 unsupported parameter").await,
            }
        }
        self.mails += 1;
        self.mail = Some(Mail {
            from: from.to_owned(),
            to: None,
            ruling: None,
            envelope_id,
        });
        self.reply("250 2.1.0 ok").await
    }

    async fn rcpt(&mut self, manners: &Manners, rest: &str) -> io::Result<()> {
        let Some(mail) = &mut self.mail else {
            return self.reply("503 5.5.1 need MAIL command").await;
        };
        let Some((to, parameters)) = path(rest, "TO:") else {
            return self.reply("501 5.1.3 malformed recipient").await;
        };
        for parameter in parameters {
            let name = parameter.split_once('=').map(|(name, _)| name.to_ascii_uppercase());
            match name.as_deref() {
                Some("NOTIFY" | "ORCPT") if manners.dsn => {}
                _ => return self.reply("555 5.5.4 unsupported parameter").await,
            }
        }
        let ruling = self.server.records.script.rule(to);
        let refusal = refusal(ruling.as_ref(), Stage::Rcpt);
        if let Some(refusal) = refusal {
            let push = RecordedPush {
                token: to.to_owned(),
                status: refusal.code(),
                reason: Some(refusal.reply.clone()),
                ..self.record()
            };
            let reason = push.reason.clone();
            self.server
                .records
                .log
                .record(self.connection, None, reason.as_deref(), || push);
            return self.reply(&refusal.reply).await;
        }
        mail.to = Some(to.to_owned());
        mail.ruling = ruling;
        self.reply("250 2.1.5 ok").await
    }

    fn record(&self) -> RecordedPush {
        RecordedPush {
            at_ms: now_ms(),
            provider: Provider::Smtp.as_str(),
            connection: self.connection,
            ..RecordedPush::default()
        }
    }

    /// Takes the content. Returns whether the connection goes on.
    async fn data(&mut self, manners: &Manners) -> io::Result<bool> {
        let Some(Mail { to: Some(_), .. }) = &self.mail else {
            self.reply("554 5.5.1 no valid recipients").await?;
            return Ok(true);
        };
        let Some(mail) = self.mail.take() else { return Ok(true) };
        if let Some(refusal) = refusal(mail.ruling.as_ref(), Stage::Data) {
            self.reply(&refusal.reply).await?;
            return Ok(true);
        }
        self.reply("354 go ahead").await?;
        let Some(content) = self.content().await? else {
            return Ok(false);
        };
        let fault = fault(&content, manners);
        self.conclude(mail, content, fault).await
    }

    /// The content with dots undoubled; `None` if the connection ended before it was complete.
    async fn content(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut content = Vec::new();
        loop {
            let start = content.len();
            if self.io.read_until(b'\n', &mut content).await? == 0 {
                return Ok(None);
            }
            if &content[start..] == b".\r\n" {
                content.truncate(start);
                return Ok(Some(content));
            }
            if content[start] == b'.' {
                content.remove(start);
            }
        }
    }

    async fn conclude(&mut self, mail: Mail, content: Vec<u8>, fault: Option<&'static str>) -> io::Result<bool> {
        let refusal = refusal(mail.ruling.as_ref(), Stage::End);
        let answer = mail.ruling.as_ref().map(|ruling| Arc::clone(&ruling.answer));
        let act = answer.as_ref().map_or(Act::Respond, |answer| answer.act.clone());
        let accepted = format!("250 2.0.0 Ok: queued as {:012X}", rand::random::<u64>() >> 16);
        let reply = match (fault, &refusal) {
            (Some(fault), _) => fault.to_owned(),
            (None, Some(refusal)) => refusal.reply.clone(),
            (None, None) => accepted,
        };
        let is_positive = reply.starts_with('2');
        let delivered = fault.is_none()
            && answer
                .as_ref()
                .and_then(|answer| answer.delivered)
                .unwrap_or(is_positive && act == Act::Respond);
        let id = header(&content, "message-id").unwrap_or_default();
        let mut identity = DefaultHasher::new();
        id.hash(&mut identity);
        let push = RecordedPush {
            token: mail.to.unwrap_or_default(),
            id,
            topic: Some(mail.from),
            collapse_id: mail.envelope_id.map(|id| delivery_of(&id)),
            delivered,
            status: reply[..3].parse().unwrap_or(0),
            reason: (!is_positive).then(|| reply.clone()),
            payload: Bytes::from(content),
            ..self.record()
        };
        let reason = push.reason.clone();
        let identity = delivered.then(|| u128::from(identity.finish()));
        self.server
            .records
            .log
            .record(self.connection, identity, reason.as_deref(), || push);
        if let Some(ruling) = &mail.ruling {
            sleep(Duration::from_millis(ruling.delay_ms)).await;
        }
        match act {
            Act::Respond | Act::Goaway { processed: true, .. } => self.reply(&reply).await.map(|()| true),
            Act::Reset { .. } | Act::Close | Act::Goaway { processed: false, .. } => Ok(false),
            Act::BlackHole | Act::Freeze => std::future::pending().await,
        }
    }
}

/// The refusal that a ruling gives at `stage`, if any.
fn refusal(ruling: Option<&Ruling>, stage: Stage) -> Option<Refusal> {
    let reason = ruling?.answer.reason.as_deref()?;
    Refusal::parse(reason).filter(|refusal| refusal.at == stage)
}

/// The mailbox in angle brackets after `word`, and the parameters.
fn path<'a>(rest: &'a str, word: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let (given, rest) = rest.split_at_checked(word.len())?;
    let rest = rest.strip_prefix('<').filter(|_| given.eq_ignore_ascii_case(word))?;
    let (mailbox, parameters) = rest.split_once('>')?;
    let is_plain = mailbox.contains('@') && !mailbox.contains([' ', '<', ',']);
    is_plain.then(|| (mailbox, parameters.split_whitespace().collect()))
}

/// The reply to a mail that breaks a rule.
fn fault(content: &[u8], manners: &Manners) -> Option<&'static str> {
    let is_bare = |pair: &[u8]| (pair[0] == b'\r') != (pair[1] == b'\n');
    if manners.size.is_some_and(|size| content.len() > size) {
        Some("552 5.3.4 message size exceeds limit")
    } else if !content.is_ascii() || content.contains(&0) {
        Some("554 5.6.3 not 7bit")
    } else if content.windows(2).any(is_bare) || content.first() == Some(&b'\n') {
        Some("550 5.5.2 bare line feed or return")
    } else if content
        .split(|byte| *byte == b'\n')
        .any(|line| line.len() > MAX_LINE + 1)
    {
        Some("500 5.5.2 line too long")
    } else if ["from", "date", "message-id"]
        .iter()
        .any(|name| header(content, name).is_none())
    {
        Some("550 5.6.0 a header is missing")
    } else {
        None
    }
}

/// The value of a header.
fn header(content: &[u8], name: &str) -> Option<String> {
    let content = String::from_utf8_lossy(content);
    let (head, _) = content.split_once("\r\n\r\n")?;
    head.split("\r\n").find_map(|line| {
        let (given, value) = line.split_once(':')?;
        given.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

fn decode(text: &str) -> String {
    let bytes = STANDARD.decode(text).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
