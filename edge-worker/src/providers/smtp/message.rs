//! One e-mail as bytes (RFC 5322, MIME).
//!
//! The body depends on the content alone, so it is made once for all recipients; the headers are made for each. The
//! library encodes text, but takes some parts as they are: names of headers, message ids, media types and addresses.
//! So these come only from values that cannot hold a line break.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use mail_builder::{
    headers::{Header as _, HeaderType, address::Address, content_type::ContentType, date::Date, raw::Raw, text::Text},
    mime::MimePart,
};

use shared::{
    address::NamedMailbox,
    content::email::{Attachment, Email},
};

use super::dkim::{self, Signer};
use crate::providers::html::with_preheader;

/// A file within a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct File<'a> {
    pub(super) name: &'a str,
    /// The media type. One that is malformed is replaced by `application/octet-stream`.
    pub(super) media_type: &'a str,
    pub(super) content: &'a [u8],
    /// For what the HTML part shows as `cid:…`.
    pub(super) content_id: Option<&'a str>,
}

/// The parts of a message that all its recipients share.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Parts<'a> {
    pub(super) text: Option<&'a str>,
    pub(super) html: Option<&'a str>,
    /// Shown beside the subject in lists of messages, hidden in the HTML part.
    pub(super) preheader: Option<&'a str>,
    pub(super) files: &'a [File<'a>],
}

/// What is written above the body, for one recipient.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) from: &'a NamedMailbox,
    pub(super) to: &'a NamedMailbox,
    pub(super) reply_to: Option<&'a NamedMailbox>,
    pub(super) subject: &'a str,
    /// What comes before `@` in the `Message-ID`. The same for every attempt, so that readers recognize copies.
    pub(super) id: &'a str,
    pub(super) date: Timestamp,
    /// Further headers. Those whose name is not plain are left out.
    pub(super) others: &'a [(&'a str, &'a str)],
    /// Where one click unsubscribes (RFC 8058), an absolute https URL.
    pub(super) unsubscribe: Option<&'a str>,
}

/// A body with the headers that describe it, and the hash that signatures name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body<'a> {
    /// `Content-Type` and others, each ended by a line break.
    headers: &'a str,
    content: &'a [u8],
    hash: &'a [u8],
}

/// A rendition begins with the hash. Then come the headers, an empty line and the content.
const HASH_BYTES: usize = 32;

impl<'a> Body<'a> {
    /// The body of `email`, for [`Self::read`].
    pub(super) fn rendered(email: &Email) -> Bytes {
        let files: Vec<(&Attachment, Vec<u8>)> = {
            let all = email.attachments.iter();
            all.map(|file| (file, file.bytes().unwrap_or_default())).collect()
        };
        let files: Vec<File<'_>> = files
            .iter()
            .map(|(file, content)| File {
                name: &file.name,
                media_type: &file.media_type,
                content,
                content_id: file.content_id.as_deref(),
            })
            .collect();
        Self::of_parts(&Parts {
            text: email.text.as_deref(),
            html: email.html.as_deref(),
            preheader: email.preheader.as_deref(),
            files: &files,
        })
    }

    fn of_parts(parts: &Parts<'_>) -> Bytes {
        let mut rendition = vec![0; HASH_BYTES];
        root(parts).write_part(&mut rendition);
        let (_, content) = split(&rendition[HASH_BYTES..]).unwrap_or_default();
        let hash = dkim::body_hash(content);
        rendition[..HASH_BYTES].copy_from_slice(hash.as_ref());
        rendition.into()
    }

    /// Reads what [`Self::rendered`] wrote.
    pub(super) fn read(rendition: &'a Bytes) -> Option<Self> {
        let (hash, part) = rendition.split_at_checked(HASH_BYTES)?;
        let (headers, content) = split(part)?;
        Some(Self {
            headers: std::str::from_utf8(headers).ok()?,
            content,
            hash,
        })
    }

    /// The whole message for one recipient, signed by `signers`. `None` if a key cannot sign.
    pub(super) fn addressed(&self, head: &Head<'_>, signers: &[&Signer]) -> Option<Vec<u8>> {
        let mut headers = head.write();
        headers.push_str(self.headers);
        let mut message = Vec::with_capacity(headers.len() + self.content.len() + 1024 * signers.len() + 2);
        for signer in signers {
            message.extend_from_slice(signer.sign(&headers, self.hash, head.date)?.as_bytes());
        }
        message.extend_from_slice(headers.as_bytes());
        message.extend_from_slice(b"\r\n");
        message.extend_from_slice(self.content);
        Some(message)
    }
}

/// The headers of a part, each ended by a line break, and its content.
fn split(part: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = part.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some((&part[..end + 2], &part[end + 4..]))
}

impl Head<'_> {
    fn write(&self) -> String {
        let mut out = Vec::with_capacity(1024);
        let mut write = |name: &str, value: HeaderType<'_>| {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            value.write_header(&mut out, name.len() + 2);
        };
        write("From", address(self.from));
        write("To", address(self.to));
        if let Some(reply_to) = self.reply_to {
            write("Reply-To", address(reply_to));
        }
        write("Subject", Text::new(self.subject).into());
        write("Date", Date::new(self.date.as_second()).into());
        let id = format!("<{}@{}>", self.id, self.from.email.domain());
        write("Message-ID", Raw::new(id).into());
        write("MIME-Version", Raw::new("1.0").into());
        for (name, value) in self.others.iter().filter(|(name, _)| is_header_name(name)) {
            // As text, the library would encode a long word, and a bounced mail would hold no readable reference.
            let plain = is_plain(value).then(|| Raw::new(*value).into());
            write(name, plain.unwrap_or_else(|| Text::new(*value).into()));
        }
        if let Some(url) = self.unsubscribe.filter(|url| is_plain(url)) {
            write("List-Unsubscribe", Raw::new(format!("<{url}>")).into());
            write("List-Unsubscribe-Post", Raw::new("List-Unsubscribe=One-Click").into());
        }
        String::from_utf8_lossy(&out).into_owned()
    }
}

fn address(mailbox: &NamedMailbox) -> HeaderType<'_> {
    let name = mailbox.name.as_deref().filter(|name| !name.is_empty());
    Address::new_address(name, mailbox.email.reveal()).into()
}

/// Whether `name` can name a header (RFC 5322 §2.2).
fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
}

/// Whether `text` is printable ASCII without spaces and brackets.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>'))
}

/// The outermost part: `multipart/mixed` of the text and the files, as far as there are several.
fn root<'a>(parts: &Parts<'a>) -> MimePart<'a> {
    let html = parts.html.map(|html| with_preheader(html, parts.preheader));
    let html = html.map(|html| sendable(&html).into_owned());
    // Without HTML nothing can show a file inline.
    let (inline, attached): (Vec<_>, Vec<_>) = parts
        .files
        .iter()
        .partition(|file| html.is_some() && file.content_id.is_some());
    let html = html.map(|html| {
        let html = MimePart::new("text/html", html);
        several("multipart/related", html, inline.into_iter().map(part))
    });
    let text = parts.text.map(|text| MimePart::new("text/plain", sendable(text)));
    let shown = match (text, html) {
        (Some(text), html) => several("multipart/alternative", text, html),
        (None, Some(html)) => html,
        (None, None) => MimePart::new("text/plain", ""),
    };
    several("multipart/mixed", shown, attached.into_iter().map(part))
}

/// `first` alone, or a multipart of it and `others`.
fn several<'a>(
    kind: &'static str,
    first: MimePart<'a>,
    others: impl IntoIterator<Item = MimePart<'a>>,
) -> MimePart<'a> {
    let mut others = others.into_iter().peekable();
    if others.peek().is_none() {
        return first;
    }
    let all: Vec<_> = std::iter::once(first).chain(others).collect();
    MimePart::new(kind, all)
}

fn part<'a>(file: &File<'a>) -> MimePart<'a> {
    let media_type = if is_media_type(file.media_type) {
        file.media_type
    } else {
        "application/octet-stream"
    };
    // Left to itself the library writes text without encoding, with whatever control characters it has.
    let part = MimePart::new(
        ContentType::new(media_type).attribute("name", file.name),
        base64_lines(file.content),
    )
    .transfer_encoding("base64");
    match file.content_id.filter(|id| is_plain(id)) {
        Some(id) => part.inline().cid(id),
        None => part.attachment(file.name),
    }
}

/// `text` without what a mail must not hold (RFC 5322 §2.3, §4.1) and the library lets through: returns without line
/// feeds, with which one server may see the end of a mail where another sees none, and control characters.
fn sendable(text: &str) -> Cow<'_, str> {
    let is_unsendable = |c: char| c.is_ascii_control() && !matches!(c, '\t' | '\n');
    if !text.contains(is_unsendable) {
        return text.into();
    }
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    text.replace(is_unsendable, "").into()
}

/// `bytes` in base64, in lines of the length that MIME permits (RFC 2045 §6.8).
fn base64_lines(bytes: &[u8]) -> Vec<u8> {
    let encoded = STANDARD.encode(bytes);
    encoded.as_bytes().chunks(76).collect::<Vec<_>>().join(&b"\r\n"[..])
}

/// Whether `text` is a media type without parameters: `type/subtype`, each a token (RFC 2045 §5.1).
fn is_media_type(text: &str) -> bool {
    let is_token = |text: &str| {
        let is_special = |byte| b"()<>@,;:\\\"/[]?=".contains(&byte);
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !is_special(byte))
    };
    text.split_once('/')
        .is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox(email: &str, name: Option<&str>) -> NamedMailbox {
        NamedMailbox {
            email: email.parse().unwrap(),
            name: name.map(str::to_owned),
        }
    }

    /// What tests vary in the headers.
    struct Vary<'a> {
        subject: &'a str,
        others: &'a [(&'a str, &'a str)],
        unsubscribe: Option<&'a str>,
    }

    const USUAL: Vary<'static> = Vary {
        subject: "Grüezi",
        others: &[],
        unsubscribe: None,
    };

    fn written(parts: &Parts<'_>, vary: &Vary<'_>) -> String {
        let from = mailbox("news@shop.example.com", Some("The \"Shop\", Zürich"));
        let to = mailbox("ann@example.net", None);
        let head = Head {
            from: &from,
            to: &to,
            reply_to: None,
            subject: vary.subject,
            id: "0190-42",
            date: Timestamp::from_second(1_764_000_000).unwrap(),
            others: vary.others,
            unsubscribe: vary.unsubscribe,
        };
        {
            let rendition = Body::of_parts(parts);
            let mail = Body::read(&rendition).unwrap().addressed(&head, &[]);
            String::from_utf8(mail.unwrap()).unwrap()
        }
    }

    const TEXT: Parts<'static> = Parts {
        text: Some("Hello"),
        html: None,
        preheader: None,
        files: &[],
    };

    #[test]
    fn a_plain_message_has_what_rfc_5322_and_mime_ask_for() {
        let mail = written(&TEXT, &USUAL);
        let (head, body) = mail.split_once("\r\n\r\n").unwrap();
        let head: Vec<_> = head.split("\r\n").collect();
        assert_eq!(body, "Hello");
        assert!(
            head[0].starts_with("From: ") && head[0].ends_with("<news@shop.example.com>"),
            "{head:?}"
        );
        assert!(head[0].is_ascii());
        assert_eq!(head[1], "To: <ann@example.net>");
        assert_eq!(head[2], "Subject: =?utf-8?Q?Gr=C3=BCezi?=");
        assert_eq!(head[3], "Date: Mon, 24 Nov 2025 16:00:00 +0000");
        assert_eq!(head[4], "Message-ID: <0190-42@shop.example.com>");
        assert_eq!(head[5], "MIME-Version: 1.0");
        assert!(head[6].starts_with("Content-Type: text/plain; charset="), "{head:?}");
    }

    #[test]
    fn one_click_unsubscription_has_both_headers() {
        let url = "https://mail.example.com/u/token";
        let mail = written(
            &TEXT,
            &Vary {
                unsubscribe: Some(url),
                ..USUAL
            },
        );
        assert!(mail.contains(&format!("List-Unsubscribe: <{url}>\r\n")), "{mail}");
        assert!(
            mail.contains("List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"),
            "{mail}"
        );
        let bad = "https://mail.example.com/u>\r\nBcc: <eve@example.com";
        assert!(
            !written(
                &TEXT,
                &Vary {
                    unsubscribe: Some(bad),
                    ..USUAL
                }
            )
            .contains("List-")
        );
    }

    #[test]
    fn a_long_word_stands_in_its_header_as_it_is() {
        let reference = "aB-_".repeat(24);
        let others = [("X-Peal-Reference", reference.as_str())];
        let mail = written(
            &TEXT,
            &Vary {
                others: &others,
                ..USUAL
            },
        );
        let unfolded = mail.replace("\r\n ", " ").replace("  ", " ");
        assert!(
            unfolded.contains(&format!("X-Peal-Reference: {reference}\r\n")),
            "{mail}"
        );
    }

    #[test]
    fn nothing_given_can_add_a_header_or_end_one() {
        let evil = "x\r\nBcc: eve@example.com\r\n\r\nbody";
        let others = [("X-Good", evil), (evil, "1"), ("X-Bad:", "1"), ("", "1")];
        let file = File {
            name: evil,
            media_type: evil,
            content: b"1",
            content_id: Some(evil),
        };
        let parts = Parts { files: &[file], ..TEXT };
        let mail = written(
            &parts,
            &Vary {
                subject: evil,
                others: &others,
                ..USUAL
            },
        );
        assert!(
            !mail.lines().any(|line| line.to_ascii_lowercase().starts_with("bcc")),
            "{mail}"
        );
        assert!(mail.contains("application/octet-stream"), "{mail}");
        assert!(!mail.contains("X-Bad"), "{mail}");
    }

    #[test]
    fn parts_are_nested_as_mail_programs_expect() {
        let inline = File {
            name: "logo.png",
            media_type: "image/png",
            content: &[0, 159, 146, 150],
            content_id: Some("logo"),
        };
        let attached = File {
            name: "rechnung-ä.pdf",
            media_type: "application/pdf",
            content: b"%PDF",
            content_id: None,
        };
        let files = [inline, attached];
        let parts = Parts {
            text: Some("Hello"),
            html: Some("<p>Hello</p>"),
            preheader: None,
            files: &files,
        };
        let mail = written(&parts, &USUAL);
        let kinds: Vec<_> = mail
            .match_indices("Content-Type: ")
            .map(|(at, mark)| {
                let rest = &mail[at + mark.len()..];
                &rest[..rest.find([';', '\r']).unwrap()]
            })
            .collect();
        assert_eq!(
            kinds,
            [
                "multipart/mixed",
                "multipart/alternative",
                "text/plain",
                "multipart/related",
                "text/html",
                "image/png",
                "application/pdf"
            ]
        );
        assert!(mail.contains("Content-ID: <logo>"), "{mail}");
        assert!(mail.is_ascii());
    }

    #[test]
    fn lines_are_short_and_end_as_smtp_asks() {
        let long = "Straße ".repeat(5_000) + "\n.\n..\r\r\nend\n";
        let parts = Parts {
            text: Some(&long),
            html: Some(&long),
            ..TEXT
        };
        let mail = written(
            &parts,
            &Vary {
                subject: &long[..900],
                ..USUAL
            },
        );
        for line in mail.split("\r\n") {
            assert!(!line.contains(['\r', '\n']) && line.len() <= 998, "{line:?}");
        }
        for text in ["bare\nline\n", "bare\rreturn", "nul\0"] {
            let mail = written(
                &Parts {
                    text: Some(text),
                    ..TEXT
                },
                &USUAL,
            );
            assert!(!mail.replace("\r\n", "").contains(['\r', '\n', '\0']), "{mail:?}");
        }
    }
}
