//! SMTP: the credential.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use crate::{address::Mailbox, channel::words, invalid::Invalid, secret::Secret};

/// Most keys with which one mail is signed.
const MAX_DKIM: usize = 4;

/// Most connections that a credential may ask for.
const MAX_CONNECTIONS: u16 = 100;

words!(
    /// When the encryption of a connection begins. There is no mail without it.
    Tls, "tls", {
        /// After the command `STARTTLS` (RFC 3207).
        StartTls = "starttls",
        /// With the first byte (RFC 8314).
        Implicit = "tls",
    }
);

impl Tls {
    /// The port of submission (RFC 8314 §3.3).
    const fn port(self) -> u16 {
        match self {
            Self::StartTls => 587,
            Self::Implicit => 465,
        }
    }
}

/// A server that takes the app's mail, and how to get in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The server's name, which its certificate must have.
    pub host: String,
    /// The port; 587 for `starttls` and 465 for `tls` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
    /// When the encryption begins.
    #[serde(default = "starttls")]
    pub tls: Tls,
    /// The user. Absent for a server that knows its clients by their network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's password.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::secret::reveal_some"
    )]
    pub password: Option<Secret>,
    /// Where bounces go; the mailbox of the mail's author if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounces: Option<Mailbox>,
    /// Whether each mail gets a bounce address of its own: `bounces` with `+` and the delivery's id before the `@` (VERP).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verp: bool,
    /// The ARN of the topic to which Amazon SES, behind this server, publishes what becomes of mails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sns_topic: Option<String>,
    /// The keys that sign; a mail is signed by those whose domain is its author's or above it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dkim: Vec<Dkim>,
    /// Connections of one worker at one time; the worker's setting if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<NonZeroU16>,
    /// How a worker names itself to the server; by its network address if absent (RFC 5321 §4.1.3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hello: Option<String>,
}

/// A key with which a domain signs its mail (RFC 6376).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dkim {
    /// The domain.
    pub domain: String,
    /// The name under which the domain publishes the key: `<selector>._domainkey.<domain>`.
    pub selector: String,
    /// The key in PEM: RSA of at least 2048 bits, or Ed25519.
    #[serde(serialize_with = "crate::secret::reveal")]
    pub private_key: Secret,
}

const fn starttls() -> Tls {
    Tls::StartTls
}

impl Credential {
    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port.map_or_else(|| self.tls.port(), NonZeroU16::get)
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        if !is_name(&self.host) {
            return Err(Invalid::new("host", NAME));
        }
        if self.hello.as_ref().is_some_and(|hello| !is_name(hello)) {
            return Err(Invalid::new("hello", NAME));
        }
        let is_word = |text: &str| (1..=512).contains(&text.len()) && !text.chars().any(char::is_control);
        match (&self.user, &self.password) {
            (None, None) => {}
            (Some(user), Some(password)) => {
                for (field, text) in [("user", user.as_str()), ("password", password.reveal())] {
                    if !is_word(text) {
                        return Err(Invalid::new(field, "must be 1 to 512 bytes without control characters"));
                    }
                }
            }
            (Some(_), None) => return Err(Invalid::new("password", "must be given with user")),
            (None, Some(_)) => return Err(Invalid::new("user", "must be given with password")),
        }
        self.check_bounces()?;
        if self.sns_topic.as_deref().is_some_and(|topic| !is_topic(topic)) {
            return Err(Invalid::new("sns_topic", "must be the ARN of an SNS topic"));
        }
        if self
            .connections
            .is_some_and(|connections| connections.get() > MAX_CONNECTIONS)
        {
            return Err(Invalid::new("connections", "must be 1 to 100"));
        }
        if self.dkim.len() > MAX_DKIM {
            return Err(Invalid::new("dkim", "must be at most 4 keys"));
        }
        for (index, key) in self.dkim.iter().enumerate() {
            for (field, name) in [("domain", &key.domain), ("selector", &key.selector)] {
                if !is_name(name) {
                    return Err(Invalid::new(format!("dkim[{index}].{field}"), NAME));
                }
            }
        }
        Ok(())
    }

    fn check_bounces(&self) -> Result<(), Invalid> {
        if !self.verp {
            return Ok(());
        }
        let Some(bounces) = &self.bounces else {
            return Err(Invalid::new("bounces", "must be given with verp"));
        };
        // The longest local part has 64 bytes (RFC 5321 §4.5.3.1.1), of which `+` and an id take 33.
        let local = bounces.reveal().len() - bounces.domain().len() - 1;
        if local > 31 {
            return Err(Invalid::new(
                "bounces",
                "must have at most 31 bytes before the @ with verp",
            ));
        }
        Ok(())
    }
}

/// Whether `text` is `arn:<partition>:sns:<region>:<account>:<name>`.
fn is_topic(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    let is_plain = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic());
    matches!(parts[..], ["arn", _, "sns", _, _, _]) && parts.iter().all(is_plain) && text.len() <= 512
}

const NAME: &str = "must be a name of letters, digits, dots and inner hyphens, of at most 253 bytes";

fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refused(change: Value) -> String {
        let mut members = json!({ "host": "mail.example.com" });
        let Value::Object(change) = change else {
            panic!("changes are objects")
        };
        members.as_object_mut().unwrap().extend(change);
        let credential: Credential = serde_json::from_value(members).unwrap();
        credential
            .check()
            .map_or_else(|invalid| invalid.field, |()| String::new())
    }

    #[test]
    fn a_member_that_breaks_a_rule_is_named() {
        let key = |change: Value| {
            let mut key = json!({ "domain": "example.com", "selector": "a", "private_key": "x" });
            key.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            json!({ "dkim": [key] })
        };
        assert_eq!(refused(key(json!({}))), "");
        for (field, change) in [
            ("", json!({ "user": "u", "password": "p", "tls": "tls", "port": 2525 })),
            ("", json!({ "bounces": "bounces@example.com", "verp": true })),
            ("host", json!({ "host": "mail.example.com\r\n" })),
            ("host", json!({ "host": "" })),
            ("hello", json!({ "hello": "a b" })),
            ("password", json!({ "user": "u" })),
            ("user", json!({ "password": "p" })),
            ("user", json!({ "user": "a\nb", "password": "p" })),
            ("bounces", json!({ "verp": true })),
            (
                "bounces",
                json!({ "verp": true, "bounces": format!("{}@example.com", "b".repeat(32)) }),
            ),
            ("connections", json!({ "connections": 101 })),
            ("sns_topic", json!({ "sns_topic": "arn:aws:sqs:eu-west-1:1:a" })),
            ("", json!({ "sns_topic": "arn:aws:sns:eu-west-1:123456789012:bounces" })),
            ("dkim[0].domain", key(json!({ "domain": "a;b" }))),
            ("dkim[0].selector", key(json!({ "selector": "a; d=evil" }))),
        ] {
            assert_eq!(refused(change.clone()), field, "{change}");
        }
    }

    #[test]
    fn the_port_is_that_of_submission_and_secrets_stay_hidden() {
        let read = |members: Value| serde_json::from_value::<Credential>(members).unwrap();
        assert_eq!(read(json!({ "host": "a.b" })).port(), 587);
        assert_eq!(read(json!({ "host": "a.b", "tls": "tls" })).port(), 465);
        let secret = read(json!({ "host": "a.b", "user": "u", "password": "hunter2" }));
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert!(serde_json::to_string(&secret).unwrap().contains("hunter2"));
    }
}
