//! `peal bounce`: reads a mail that came to the bounce address, and tells a gateway what became of the mail that it is about.
//!
//! For the pipe of a mail server. What cannot be reported now ends with the code 75 (`EX_TEMPFAIL`), so that the server tries again;
//! what is no report, or is about a mail that Peal did not send, ends with 0, because there is nobody to send it back to.

use std::{
    io::{Read, Write},
    time::Duration,
};

use clap::Args;
use mail_parser::{Message, MessageParser, MimeHeaders, PartType};
use reqwest::StatusCode;
use serde::Serialize;
use shared::{
    id::AppId,
    reference::{self, HEADER},
};

use super::{Answer, Failure};

/// Most bytes of a mail that are read. Reports quote headers, at most the whole mail.
const MAIL_BYTES_MAX: u64 = 32 << 20;

/// How long a gateway may take.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct BounceArgs {
    /// The base URL of a gateway, such as `https://peal.example`.
    #[arg(long, value_name = "URL", env = "PEAL_URL")]
    url: String,
    /// The app whose bounce address this is.
    #[arg(long)]
    app: AppId,
    /// The address to which the mail came, with what follows its `+`: `${original_recipient}` of Postfix.
    #[arg(long, value_name = "ADDRESS")]
    recipient: Option<String>,
}

/// What a mail says about another one, as the gateway takes it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Bounce {
    reference: String,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
}

pub(super) async fn run(args: BounceArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let mut mail = Vec::new();
    std::io::stdin().take(MAIL_BYTES_MAX).read_to_end(&mut mail)?;
    let bounce = match read(&mail, args.recipient.as_deref()) {
        Ok(bounce) => bounce,
        Err(why) => {
            writeln!(out, "ignored: {why}")?;
            return Ok(Answer::Yes);
        }
    };
    let url = format!("{}/v1/callbacks/smtp/{}", args.url.trim_end_matches('/'), args.app);
    let http = reqwest::Client::builder().timeout(ANSWERED_WITHIN).build();
    let posted = http.map(|http| http.post(url).json(&[&bounce]));
    let posted = posted.map_err(failed)?.send().await.map_err(failed)?;
    match posted.status() {
        StatusCode::NO_CONTENT => writeln!(out, "reported: {}", bounce.action)?,
        StatusCode::UNPROCESSABLE_ENTITY => writeln!(out, "ignored: the mail was not sent by this app")?,
        status => {
            return Err(Failure::Http(format!(
                "the gateway answers with the status {}",
                status.as_u16()
            )));
        }
    }
    Ok(Answer::Yes)
}

fn failed(error: reqwest::Error) -> Failure {
    Failure::Http(error.without_url().to_string())
}

/// What `mail`, which came to `recipient`, says.
fn read(mail: &[u8], recipient: Option<&str>) -> Result<Bounce, &'static str> {
    let message = MessageParser::default().parse(mail).ok_or("it is no mail")?;
    let (action, status, envelope_id) = said(&message).ok_or("it is no report")?;
    // The envelope's id is signed and reliable; next what was returned of the mail; last the address.
    let reference = envelope_id
        .filter(|id| reference::Reference::claimed(id).is_some())
        .or_else(|| in_headers(mail))
        .or_else(|| in_address(&message, recipient));
    Ok(Bounce {
        reference: reference.ok_or("it is about no mail of Peal")?,
        action,
        status,
    })
}

/// What happened: the word, the enhanced status code, and the id of the envelope. `None` if the mail is no report, or reports only
/// that another try follows.
fn said(message: &Message<'_>) -> Option<(&'static str, Option<String>, Option<String>)> {
    let report = message.parts.iter().find_map(|part| {
        let kind = part.content_type()?;
        let is_message = kind.c_type.eq_ignore_ascii_case("message");
        let subtype = kind.c_subtype.as_deref().filter(|_| is_message)?.to_ascii_lowercase();
        ["delivery-status", "global-delivery-status", "feedback-report"]
            .contains(&subtype.as_str())
            .then(|| (subtype, String::from_utf8_lossy(part.contents()).into_owned()))
    });
    let Some((kind, text)) = report else {
        return said_in_words(message);
    };
    if kind == "feedback-report" {
        let is_abuse = field(&text, "Feedback-Type").is_some_and(|kind| kind.eq_ignore_ascii_case("abuse"));
        return is_abuse.then_some(("abuse", None, None));
    }
    let action = field(&text, "Action")?.to_ascii_lowercase();
    let action = match action.split_whitespace().next()? {
        "failed" => "failed",
        "delivered" => "delivered",
        _ => return None,
    };
    let status = field(&text, "Status").and_then(|text| status(&text));
    // Some servers write a general status, and the one of the other server beside it.
    let more = field(&text, "Diagnostic-Code").and_then(|text| status_within(&text));
    let status = match status {
        Some(status) if status.ends_with(".0.0") => more.or(Some(status)),
        status => status.or(more),
    };
    let envelope_id = field(&text, "Original-Envelope-Id").map(|text| from_xtext(&text));
    Some((action, status, envelope_id))
}

/// What a mail without parts for programs says, if a mail server wrote it.
fn said_in_words(message: &Message<'_>) -> Option<(&'static str, Option<String>, Option<String>)> {
    let from = message.from()?.first()?.address()?.to_ascii_lowercase();
    let local = from.split('@').next()?;
    if !["mailer-daemon", "postmaster"].contains(&local) {
        return None;
    }
    let words = message.parts.iter().find_map(|part| match &part.body {
        PartType::Text(text) => Some(text.as_ref()),
        _ => None,
    })?;
    // Below stands the mail that came back.
    let words = words.split("Return-Path:").next().unwrap_or(words);
    let status = status_within(words)?;
    status.starts_with('5').then_some(("failed", Some(status), None))
}

/// The value of the first field of this name, unfolded, without its type and what is in brackets.
fn field(text: &str, name: &str) -> Option<String> {
    let mut lines = text.lines().skip_while(|line| {
        let found = line.split_once(':').map(|(found, _)| found.trim());
        !found.is_some_and(|found| found.eq_ignore_ascii_case(name))
    });
    let (_, first) = lines.next()?.split_once(':')?;
    let more = lines.take_while(|line| line.starts_with([' ', '\t']));
    let value: Vec<&str> = std::iter::once(first).chain(more).map(str::trim).collect();
    let value = value.join(" ");
    (!value.is_empty()).then_some(value)
}

/// An enhanced status code at the beginning of `text`.
fn status(text: &str) -> Option<String> {
    let code = text.split(|c: char| !(c.is_ascii_digit() || c == '.')).next()?;
    let code = code.trim_end_matches('.');
    let parts: Vec<&str> = code.split('.').collect();
    let is_number = |part: &&str| (1..=3).contains(&part.len());
    let is_code = parts.len() == 3 && ["2", "4", "5"].contains(&parts[0]) && parts.iter().all(is_number);
    is_code.then(|| code.to_owned())
}

/// The first enhanced status code in `text` that stands by itself.
fn status_within(text: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || "()<>;:,#-".contains(c));
    words.filter(|word| word.len() >= 5).find_map(|word| {
        let code = status(word)?;
        // `5.1.1.10` is an address.
        (word.trim_end_matches(['.', ']', '"']) == code).then_some(code)
    })
}

/// The text that was written as xtext (RFC 3461 §4).
fn from_xtext(text: &str) -> String {
    let mut parts = text.split('+');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                plain.push(byte.into());
                plain.push_str(&part[2..]);
            }
            None => plain.push_str(part),
        }
    }
    plain
}

/// The reference in the header of the mail that came back. It may be a part, a part of text with headers, or quoted in the text.
fn in_headers(mail: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(mail);
    let mut rest = text.as_ref();
    loop {
        let at = rest.to_ascii_lowercase().find(&HEADER.to_ascii_lowercase())?;
        rest = &rest[at + HEADER.len()..];
        let value = rest.strip_prefix(':').unwrap_or_default().trim_start();
        let end = value.find(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c)));
        let found = &value[..end.unwrap_or(value.len())];
        if reference::Reference::claimed(found).is_some() {
            return Some(found.to_owned());
        }
    }
}

/// The short reference in the address to which the report came.
fn in_address(message: &Message<'_>, recipient: Option<&str>) -> Option<String> {
    let header = |name: &'static str| message.header_raw(name).map(str::trim).map(str::to_owned);
    let given = recipient.map(str::to_owned);
    let addresses = [given, header("X-Original-To"), header("Delivered-To"), header("To")];
    addresses.into_iter().flatten().find_map(|address| {
        let (_, rest) = address.split_once('+')?;
        let (found, _) = rest.split_once('@')?;
        reference::is_short(found).then(|| found.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use shared::{
        channel::Channel,
        id::{AddressId, JobId, NotificationId},
        reference::Reference,
        testing::id_key,
    };

    use super::*;

    fn reference() -> Reference {
        let id = "11111111-2222-8333-8444-555555555555";
        Reference {
            channel: Channel::Email,
            notification: id.parse::<NotificationId>().unwrap(),
            job: Some(id.parse::<JobId>().unwrap()),
            address: id.parse::<AddressId>().unwrap(),
            sent_at: Some(Timestamp::from_second(1_764_000_000).unwrap()),
        }
    }

    fn long() -> String {
        let (app, home) = ("shop".parse().unwrap(), "eu".parse().unwrap());
        reference().sign(&id_key(7), &app, &home).unwrap()
    }

    fn short() -> String {
        let (app, home) = ("shop".parse().unwrap(), "eu".parse().unwrap());
        reference().sign_short(&id_key(7), &app, &home).unwrap()
    }

    fn dsn(per_message: &str, per_recipient: &str, returned: &str) -> String {
        format!(
            "From: MAILER-DAEMON@mx.example (Mail Delivery System)\r\nTo: bounces@shop.example\r\nSubject: Undelivered\r\n\
             MIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=delivery-status; boundary=\"b\"\r\n\r\n\
             --b\r\nContent-Type: text/plain\r\n\r\nSorry.\r\n\
             --b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example\r\n{per_message}\r\n\
             Final-Recipient: rfc822; ann@example.com\r\n{per_recipient}\r\n\
             --b\r\nContent-Type: {returned}\r\n--b--\r\n"
        )
    }

    fn headers() -> String {
        format!(
            "text/rfc822-headers\r\n\r\nSubject: Shipped\r\nX-Peal-Reference: {}\r\n",
            long()
        )
    }

    #[test]
    fn a_report_names_its_mail_by_envelope_header_or_address() {
        let failed = "Action: failed\r\nStatus: 5.1.1\r\nDiagnostic-Code: smtp; 550 5.1.1 no such user\r\n";
        let none = "text/rfc822-headers\r\n\r\nSubject: Shipped\r\n";
        let envelope = format!("Original-Envelope-Id: {}\r\n", long());
        let expected = |reference: String| {
            Ok(Bounce {
                reference,
                action: "failed",
                status: Some("5.1.1".into()),
            })
        };
        assert_eq!(read(dsn(&envelope, failed, none).as_bytes(), None), expected(long()));
        assert_eq!(read(dsn("", failed, &headers()).as_bytes(), None), expected(long()));
        let whole = format!("message/rfc822\r\n\r\nX-Peal-Reference:\r\n {}\r\n\r\nHello", long());
        assert_eq!(read(dsn("", failed, &whole).as_bytes(), None), expected(long()));
        let address = format!("bounces+{}@shop.example", short());
        let plain = dsn("", failed, none);
        assert_eq!(read(plain.as_bytes(), Some(&address)), expected(short()));
        let to = plain.replace("bounces@shop.example", &address);
        assert_eq!(read(to.as_bytes(), None), expected(short()));
        assert_eq!(read(plain.as_bytes(), None), Err("it is about no mail of Peal"));
    }

    #[test]
    fn the_status_is_that_of_the_server_that_refused() {
        let status = |fields: &str| read(dsn("", fields, &headers()).as_bytes(), None).map(|bounce| bounce.status);
        for (fields, expected) in [
            ("Action: failed\r\nStatus: 5.2.1 (disabled)\r\n", Some("5.2.1")),
            (
                "Action: failed\r\nStatus: 5.0.0\r\nDiagnostic-Code: smtp; 550-5.1.1 The account does\r\n 550 not exist\r\n",
                Some("5.1.1"),
            ),
            (
                "Action: failed\r\nStatus: 5.0.0\r\nDiagnostic-Code: smtp; 550 Unknown\r\n",
                Some("5.0.0"),
            ),
            (
                "action: Failed\r\nDiagnostic-Code: X-Postfix; 127.0.0.1 said (5.7.26)\r\n",
                Some("5.7.26"),
            ),
            (
                "Action: failed\r\nDiagnostic-Code: smtp; 550 blocked 5.1.1.10\r\n",
                None,
            ),
        ] {
            assert_eq!(status(fields).unwrap().as_deref(), expected, "{fields}");
        }
        for waiting in [
            "Action: delayed\r\nStatus: 4.4.1\r\n",
            "Action: expanded\r\nStatus: 2.0.0\r\n",
            "",
        ] {
            assert_eq!(status(waiting), Err("it is no report"));
        }
    }

    #[test]
    fn complaints_and_servers_that_write_to_people_are_understood_and_answers_are_not() {
        let abuse = dsn("", "", &headers())
            .replace("message/delivery-status", "message/feedback-report")
            .replace("Reporting-MTA: dns; mx.example", "Feedback-Type: abuse");
        assert_eq!(read(abuse.as_bytes(), None).unwrap().action, "abuse");
        let words = |from: &str| {
            let reference = long();
            format!(
                "From: {from}\r\nTo: bounces@shop.example\r\nSubject: failure notice\r\n\r\nHi. <ann@example.com>: 550 5.1.1 unknown\r\n\
                 --- Below this line is a copy of the message.\r\n\r\nReturn-Path: <x>\r\nX-Peal-Reference: {reference}\r\n"
            )
        };
        let qmail = read(words("MAILER-DAEMON@mx.example").as_bytes(), None).unwrap();
        assert_eq!((qmail.action, qmail.status.as_deref()), ("failed", Some("5.1.1")));
        assert_eq!(read(words("ann@example.com").as_bytes(), None), Err("it is no report"));
        for odd in [&b""[..], b"\0", b"From: MAILER-DAEMON@x\r\n\r\n"] {
            assert!(read(odd, None).is_err());
        }
    }

    /// Mails that Debian's Exim 4.96 sent back after another server had answered `550 5.1.1` to `RCPT`: for a mail that was sent with
    /// `RET=HDRS ENVID=…`, and for one without. References stand for those of real mails.
    #[test]
    fn what_a_mail_server_really_sends_is_understood() {
        for mail in [
            include_str!("testdata/exim-headers.eml"),
            include_str!("testdata/exim-whole.eml"),
        ] {
            let bounce = read(mail.replace("REFERENCE", &long()).as_bytes(), None).unwrap();
            assert_eq!((bounce.action, bounce.status.as_deref()), ("failed", Some("5.1.1")));
            assert_eq!(bounce.reference, long());
        }
    }
}
