//! The content of an e-mail, independent of the provider.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check_life;
use crate::{
    address::NamedMailbox,
    invalid::Invalid,
    provider::{ProviderPayload, mailchimp, sendgrid},
    tolerant::{self, objects},
};

/// Life of an e-mail in seconds if the caller gives none: three days.
const LIFE_S: u32 = 3 * 24 * 3600;

/// Longest subject and longest value of a header, in bytes (RFC 5322 §2.1.1: 998 octets a line).
const MAX_LINE_BYTES: usize = 998;

/// Longest plain text, in bytes.
const MAX_TEXT_BYTES: usize = 65_536;

/// Longest HTML, in bytes.
const MAX_HTML_BYTES: usize = 131_072;

/// Longest preheader, in bytes.
const MAX_PREHEADER_BYTES: usize = 256;

/// Most further headers.
const MAX_HEADERS: usize = 10;

/// Most attachments.
const MAX_ATTACHMENTS: usize = 5;

/// Most bytes of all attachments together.
const MAX_ATTACHED_BYTES: usize = 131_072;

/// The content of an e-mail.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Email {
    /// The subject line.
    #[schema(required = true)]
    pub subject: String,
    /// The plain text part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The HTML part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// The hidden first line of the HTML part, which mail programs show beside the subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preheader: Option<String>,
    /// The author, at a domain from which the app may send. A gateway fills in the app's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<NamedMailbox>,
    /// Where answers go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<NamedMailbox>,
    /// Further headers: `X-…`, `References` and `In-Reply-To`.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "tolerant::or_default"
    )]
    pub headers: BTreeMap<String, String>,
    /// Files inside the message.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "tolerant::or_default")]
    pub attachments: Vec<Attachment>,
    /// Seconds after acceptance during which it is worth delivering; 0 means now or never. Default three days.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "tolerant::whole")]
    pub ttl: Option<u32>,
    /// Overrides for `SendGrid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sendgrid: Option<ProviderPayload>,
    /// Overrides for Mailchimp Transactional.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mailchimp: Option<ProviderPayload>,
}

/// A file inside an e-mail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Attachment {
    /// The file's name.
    pub name: String,
    /// The media type of the content.
    #[serde(rename = "type", default = "octet_stream", deserialize_with = "or_octet_stream")]
    #[schema(default = "application/octet-stream")]
    pub media_type: String,
    /// The bytes in base64.
    pub content: String,
    /// Makes it inline, as `cid:…` in the HTML part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_id: Option<String>,
}

objects!(Email, Attachment);

fn octet_stream() -> String {
    "application/octet-stream".to_owned()
}

fn or_octet_stream<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_else(octet_stream))
}

impl Email {
    /// Time to live in seconds.
    pub fn ttl_s(&self) -> u32 {
        self.ttl.unwrap_or(LIFE_S)
    }

    /// Checks the rules that the types do not enforce.
    ///
    /// # Errors
    /// The first member that breaks a rule; its path begins at this struct.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        check_life(self.ttl_s())?;
        if !is_line(&self.subject) {
            return Err(Invalid::new("subject", LINE));
        }
        let parts = [
            ("text", &self.text, MAX_TEXT_BYTES),
            ("html", &self.html, MAX_HTML_BYTES),
        ];
        if parts
            .iter()
            .all(|(_, part, _)| part.as_ref().is_none_or(String::is_empty))
        {
            return Err(Invalid::new("text", "must be given, or html"));
        }
        for (name, part, most) in parts {
            if part.as_ref().is_some_and(|part| part.len() > most) {
                return Err(Invalid::new(name, format_args!("must be at most {most} bytes")));
            }
        }
        let is_long = |line: &String| line.len() > MAX_PREHEADER_BYTES || line.chars().any(char::is_control);
        if self.preheader.as_ref().is_some_and(is_long) {
            return Err(Invalid::new(
                "preheader",
                "must be at most 256 bytes without control characters",
            ));
        }
        for (name, mailbox) in [("from", &self.from), ("reply_to", &self.reply_to)] {
            let checked = mailbox.as_ref().map_or(Ok(()), NamedMailbox::check);
            checked.map_err(|invalid| invalid.within(name))?;
        }
        let payloads = [
            ("sendgrid", &self.sendgrid, sendgrid::OWN),
            ("mailchimp", &self.mailchimp, mailchimp::OWN),
        ];
        for (name, payload, own) in payloads {
            if let Some(payload) = payload {
                payload.check(own).map_err(|invalid| invalid.within(name))?;
            }
        }
        self.check_headers()?;
        self.check_attachments()
    }

    fn check_headers(&self) -> Result<(), Invalid> {
        if self.headers.len() > MAX_HEADERS {
            return Err(Invalid::new("headers", "must be at most 10"));
        }
        for (name, value) in &self.headers {
            let is_own = name.len() > 2
                && name.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("x-"))
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            let is_thread = ["references", "in-reply-to"]
                .iter()
                .any(|known| name.eq_ignore_ascii_case(known));
            if !is_own && !is_thread {
                return Err(Invalid::new("headers", "must be named X-…, References or In-Reply-To"));
            }
            if !is_line(value) {
                return Err(Invalid::new(format!("headers.{name}"), LINE));
            }
        }
        Ok(())
    }

    fn check_attachments(&self) -> Result<(), Invalid> {
        if self.attachments.len() > MAX_ATTACHMENTS {
            return Err(Invalid::new("attachments", "must be at most 5"));
        }
        let mut bytes = 0;
        for (index, attachment) in self.attachments.iter().enumerate() {
            let size = attachment.check();
            bytes += size.map_err(|invalid| invalid.within(&format!("attachments[{index}]")))?;
        }
        if bytes > MAX_ATTACHED_BYTES {
            return Err(Invalid::new("attachments", "must be at most 131072 bytes together"));
        }
        Ok(())
    }
}

impl Attachment {
    /// The content's size in bytes, if the attachment breaks no rule.
    fn check(&self) -> Result<usize, Invalid> {
        let is_name = (1..=128).contains(&self.name.len()) && !self.name.contains(|c: char| c == '/' || c.is_control());
        if !is_name {
            return Err(Invalid::new(
                "name",
                "must be 1 to 128 bytes without slash and control characters",
            ));
        }
        let is_token = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
        };
        let halves = self.media_type.split_once('/').filter(|_| self.media_type.len() <= 127);
        if !halves.is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype)) {
            return Err(Invalid::new(
                "type",
                "must be a media type such as text/plain (RFC 6838 §4.2)",
            ));
        }
        let is_id = |id: &String| {
            (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic() && b != b'<' && b != b'>')
        };
        if self.content_id.as_ref().is_some_and(|id| !is_id(id)) {
            return Err(Invalid::new(
                "content_id",
                "must be 1 to 128 printable ASCII characters",
            ));
        }
        let bytes = self.bytes().ok_or_else(|| Invalid::new("content", "must be base64"))?;
        Ok(bytes.len())
    }

    /// The bytes; `None` if the content is not base64, which is refused on acceptance.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.content).ok()
    }
}

const LINE: &str = "must be 1 to 998 bytes without control characters";

fn is_line(text: &str) -> bool {
    (1..=MAX_LINE_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::MAX_LIFE_S, *};

    fn refused(change: Value) -> String {
        let mut email = json!({ "subject": "Hi", "text": "There" });
        let Value::Object(change) = change else {
            panic!("changes are objects")
        };
        email.as_object_mut().unwrap().extend(change);
        let email: Email = serde_json::from_value(email).unwrap();
        email.check().map_or_else(|invalid| invalid.field, |()| String::new())
    }

    #[test]
    fn a_member_that_breaks_a_rule_is_named() {
        let attachment = |change: Value| {
            let mut attachment = json!({ "name": "a.txt", "content": "aGk=" });
            attachment
                .as_object_mut()
                .unwrap()
                .extend(change.as_object().unwrap().clone());
            json!({ "attachments": [attachment] })
        };
        assert_eq!(refused(attachment(json!({}))), "");
        for (field, change) in [
            ("", json!({ "text": null, "html": "<p>x" })),
            ("", json!({ "headers": { "X-Order": "42", "references": "<a@b>" } })),
            ("subject", json!({ "subject": "" })),
            ("subject", json!({ "subject": "a\r\nBcc: eve@example.com" })),
            ("subject", json!({ "subject": "a".repeat(999) })),
            ("text", json!({ "text": "" })),
            ("text", json!({ "text": "a".repeat(65_537) })),
            ("html", json!({ "html": "a".repeat(131_073) })),
            ("preheader", json!({ "preheader": "a\nb" })),
            (
                "from.name",
                json!({ "from": { "email": "a@example.com", "name": "a\r\nb" } }),
            ),
            ("headers", json!({ "headers": { "Bcc": "eve@example.com" } })),
            ("headers", json!({ "headers": { "X-A:\r\nBcc": "x" } })),
            (
                "headers.X-A",
                json!({ "headers": { "X-A": "a\r\nBcc: eve@example.com" } }),
            ),
            ("ttl", json!({ "ttl": MAX_LIFE_S + 1 })),
            ("attachments[0].name", attachment(json!({ "name": "../a" }))),
            (
                "attachments[0].type",
                attachment(json!({ "type": "text/plain\r\nX: y" })),
            ),
            ("attachments[0].content", attachment(json!({ "content": "no base64" }))),
            ("attachments[0].content_id", attachment(json!({ "content_id": "a>b" }))),
            (
                "attachments",
                attachment(json!({ "content": STANDARD.encode(vec![0; 131_073]) })),
            ),
        ] {
            assert_eq!(refused(change.clone()), field, "{change}");
        }
    }
}
