//! What a server's reply means for a delivery (RFC 5321 §4.2, enhanced status codes of RFC 3463).

use std::fmt;

use smtp_proto::Response;

use crate::providers::{Outcome, Reason};

/// What was asked when the server replied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The greeting, `EHLO` and `STARTTLS`.
    Connect,
    /// `AUTH`.
    Login,
    /// `MAIL`: nothing is known of the recipient yet.
    Sender,
    /// `RCPT`.
    Recipient,
    /// `DATA`, before any content.
    Data,
    /// The content.
    Content,
}

/// An enhanced status code: class, subject, detail. The library reads a larger number, such as Microsoft's 5.7.708, as
/// 255.
pub(super) type Status = [u8; 3];

/// The code of a reply and its enhanced status, if it has one. Its text is not kept: it may repeat the mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    pub(super) status: Option<Status>,
}

impl Reply {
    pub(super) fn of(response: &Response<String>) -> Self {
        Self {
            code: response.code,
            status: Some(response.esc).filter(|status| *status != [0; 3]),
        }
    }

    /// Whether the server did what it was asked.
    pub(super) const fn is_positive(self) -> bool {
        matches!(self.code, 200..=299)
    }

    /// Subject and detail of the status, whatever its class: some servers send one of another class than the code.
    fn detail(self) -> Option<(u8, u8)> {
        self.status.map(|[_, subject, detail]| (subject, detail))
    }

    fn reason(self) -> Reason {
        self.to_string().into()
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "smtp_{}", self.code)?;
        match self.status {
            Some([class, subject, detail]) => write!(f, "_{class}.{subject}.{detail}"),
            None => Ok(()),
        }
    }
}

/// The outcome of a refusal.
///
/// An address is removed only if the status says that the mailbox does not exist: a bare 550 may as well mean policy.
/// What the server has against the sender is no fault of the recipient or of this message, so it pauses the credential
/// and is tried again.
pub(super) fn judge(phase: Phase, reply: Reply) -> Outcome {
    let reason = reply.reason();
    match (phase, reply.code, reply.detail()) {
        // Not a reply to what was asked, such as 250 to DATA: the two have lost each other.
        (_, 0..=399 | 503 | 600.., _) => Outcome::endpoint("protocol", None),
        // 454: the server cannot check the password now (RFC 4954 §6).
        (Phase::Connect, 400..=499, _) | (Phase::Login, 421 | 454, _) => Outcome::endpoint(reason, None),
        // RFC 4954 §6: no or not enough authentication.
        (Phase::Connect | Phase::Login, _, _) | (_, 530 | 534 | 535 | 538, _) => Outcome::credential(reason, None),
        (_, 400..=499, _) => Outcome::retry_later(reason, None),
        // Too large, for the server or for the mailbox.
        (_, _, Some((3, 4) | (2, 3))) | (_, 552, None | Some((_, 0))) => Outcome::rejected(reason),
        // Policy and authentication (SPF, DKIM, DMARC, relaying, reputation), or the sender's mailbox or domain.
        (_, _, Some((7, _) | (1, 7 | 8))) | (Phase::Sender, 550 | 551 | 553, _) => Outcome::credential(reason, None),
        // No such mailbox, moved away, disabled, or its domain takes no mail (RFC 7505).
        (Phase::Recipient | Phase::Content, _, Some((1, 1 | 6 | 10) | (2, 1))) => {
            Outcome::AddressGone { reason, since: None }
        }
        _ => Outcome::rejected(reason),
    }
}

/// The name under which the server keeps the message, from the text of its last reply, as Postfix, Exim, Amazon SES and
/// others word it. Anything else is not kept: it may hold the mailbox.
pub(super) fn queue_id(text: &str) -> Option<String> {
    let after = |mark: &str| text.split_once(mark).map(|(_, rest)| rest);
    let id = after("queued as ")
        .or_else(|| after(" id="))
        .or_else(|| after("Ok ").filter(|rest| !rest.contains(' ')))?;
    let id = id.split_whitespace().next()?;
    let is_plain = id
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    (is_plain && (4..=80).contains(&id.len())).then(|| id.to_owned())
}

/// The outcomes of what a server sends, whatever was asked, for the fuzz tests.
#[cfg(any(fuzzing, test))]
pub fn judged(bytes: &[u8]) -> Vec<Outcome> {
    let mut receiver = smtp_proto::response::parser::ResponseReceiver::default();
    let Ok(response) = receiver.parse(&mut bytes.iter()) else {
        return Vec::new();
    };
    let reply = Reply::of(&response);
    if reply.is_positive() {
        return vec![Outcome::Accepted {
            provider_id: queue_id(&response.message),
        }];
    }
    let phases = [
        Phase::Connect,
        Phase::Login,
        Phase::Sender,
        Phase::Recipient,
        Phase::Data,
        Phase::Content,
    ];
    let phases = phases.into_iter();
    phases.map(|phase| judge(phase, reply)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(code: u16, text: &str) -> Reply {
        let mut receiver = smtp_proto::response::parser::ResponseReceiver::default();
        let line = format!("{code} {text}\r\n");
        Reply::of(&receiver.parse(&mut line.as_bytes().iter()).unwrap())
    }

    #[test]
    fn a_status_is_read_however_large_its_detail_is() {
        for (text, status) in [
            ("5.1.1 no such user", Some([5, 1, 1])),
            ("5.7.26 unauthenticated", Some([5, 7, 26])),
            ("5.7.708 access denied", Some([5, 7, 255])),
            ("4.7.650 throttled", Some([4, 7, 255])),
            ("no such user", None),
            ("10.0.0.1 is blocked", None),
        ] {
            assert_eq!(reply(550, text).status, status, "{text}");
        }
    }

    #[test]
    fn every_reply_has_an_outcome() {
        use Phase::{Connect, Content, Data, Login, Recipient, Sender};
        let gone = |reason: &'static str| Outcome::AddressGone {
            reason: reason.into(),
            since: None,
        };
        let retry = |reason: &'static str| Outcome::retry_later(reason, None);
        let credential = |reason: &'static str| Outcome::credential(reason, None);
        let endpoint = |reason: &'static str| Outcome::endpoint(reason, None);
        let rejected = |reason: &'static str| Outcome::rejected(reason);
        for (phase, code, text, outcome) in [
            (Connect, 421, "4.3.2 too many connections", endpoint("smtp_421_4.3.2")),
            (Connect, 554, "no SMTP service here", credential("smtp_554")),
            (Login, 535, "5.7.8 bad password", credential("smtp_535_5.7.8")),
            (Login, 534, "5.7.9 mechanism is too weak", credential("smtp_534_5.7.9")),
            (Login, 454, "4.7.0 temporary failure", endpoint("smtp_454_4.7.0")),
            (Sender, 530, "5.7.0 must issue STARTTLS", credential("smtp_530_5.7.0")),
            (Sender, 451, "4.7.1 slow down", retry("smtp_451_4.7.1")),
            (Sender, 452, "4.3.1 disk full", retry("smtp_452_4.3.1")),
            (Sender, 552, "5.3.4 too large", rejected("smtp_552_5.3.4")),
            (Sender, 552, "too large", rejected("smtp_552")),
            (Sender, 553, "5.7.1 not yours", credential("smtp_553_5.7.1")),
            (Sender, 550, "5.1.8 no such domain", credential("smtp_550_5.1.8")),
            (Sender, 550, "5.1.1 no such user", credential("smtp_550_5.1.1")),
            (Sender, 501, "5.5.4 bad parameter", rejected("smtp_501_5.5.4")),
            (Sender, 503, "5.5.1 out of order", endpoint("protocol")),
            (Recipient, 550, "5.1.1 no such user", gone("smtp_550_5.1.1")),
            (Recipient, 550, "5.1.10 null MX", gone("smtp_550_5.1.10")),
            (Recipient, 556, "5.1.10 null MX", gone("smtp_556_5.1.10")),
            (Recipient, 551, "5.1.6 moved", gone("smtp_551_5.1.6")),
            (Recipient, 550, "5.2.1 disabled", gone("smtp_550_5.2.1")),
            (Recipient, 550, "mailbox unavailable", rejected("smtp_550")),
            (Recipient, 550, "5.1.2 bad domain", rejected("smtp_550_5.1.2")),
            (Recipient, 501, "5.1.3 bad syntax", rejected("smtp_501_5.1.3")),
            (Recipient, 552, "5.2.2 mailbox full", rejected("smtp_552_5.2.2")),
            (Recipient, 452, "4.2.2 mailbox full", retry("smtp_452_4.2.2")),
            (Recipient, 450, "4.2.0 greylisted", retry("smtp_450_4.2.0")),
            (Recipient, 421, "4.4.2 good-bye", retry("smtp_421_4.4.2")),
            (
                Recipient,
                554,
                "5.7.1 relay access denied",
                credential("smtp_554_5.7.1"),
            ),
            (Recipient, 550, "5.7.708 no access", credential("smtp_550_5.7.255")),
            (Recipient, 450, "4.1.1 not yet", retry("smtp_450_4.1.1")),
            (Data, 554, "5.5.1 no recipients", rejected("smtp_554_5.5.1")),
            (Data, 250, "ok", endpoint("protocol")),
            (Content, 550, "5.7.26 DMARC", credential("smtp_550_5.7.26")),
            (Content, 554, "5.6.0 malformed", rejected("smtp_554_5.6.0")),
            (Content, 552, "5.2.3 too large", rejected("smtp_552_5.2.3")),
            (Content, 451, "4.3.0 try again", retry("smtp_451_4.3.0")),
            (Content, 550, "5.1.1 no such user", gone("smtp_550_5.1.1")),
            (Content, 554, "spam", rejected("smtp_554")),
            (Content, 354, "more", endpoint("protocol")),
        ] {
            assert_eq!(judge(phase, reply(code, text)), outcome, "{phase:?} {code} {text}");
        }
    }

    #[test]
    fn no_reply_is_without_an_outcome_and_none_accepts() {
        for code in 0..=999 {
            for detail in [None, Some((1, 1)), Some((2, 1)), Some((7, 1)), Some((9, 255))] {
                let status = detail.map(|(subject, detail)| [5, subject, detail]);
                for phase in [
                    Phase::Connect,
                    Phase::Login,
                    Phase::Sender,
                    Phase::Recipient,
                    Phase::Data,
                    Phase::Content,
                ] {
                    let outcome = judge(phase, Reply { code, status });
                    assert!(!matches!(outcome, Outcome::Accepted { .. } | Outcome::Ambiguous { .. }));
                }
            }
        }
    }

    #[test]
    fn a_queue_id_is_kept_only_if_it_cannot_be_a_mailbox() {
        for (text, id) in [
            ("Ok: queued as 224B824BD40", Some("224B824BD40")),
            ("OK id=1rVbcd-0004yZ-2q", Some("1rVbcd-0004yZ-2q")),
            ("Ok 0100018f2a-11ee-000000", Some("0100018f2a-11ee-000000")),
            ("Ok ann@example.com", None),
            ("queued as <ann@example.com>", None),
            ("Message accepted for delivery", None),
            ("OK  1700000000 gsmtp", None),
        ] {
            assert_eq!(queue_id(text).as_deref(), id, "{text}");
        }
    }
}
