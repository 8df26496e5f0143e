//! Mailboxes: the addresses of e-mail.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use crate::{invalid::Invalid, tolerant::objects};

/// Longest mailbox in bytes (RFC 5321 §4.5.3.1.3: a path of 256 with its angle brackets).
const MAX_BYTES: usize = 254;

/// Longest part before the `@` in bytes (RFC 5321 §4.5.3.1.1).
const MAX_LOCAL_BYTES: usize = 64;

const RULE: &str = "must be a mailbox as in RFC 5321, of at most 254 bytes, such as ann@example.com";

/// A mailbox, `local@domain`, with the domain in lower case. It never holds white space, control characters, quotes or angle
/// brackets, so it may stand in an SMTP command and in a header as it is. It is personal data, so it is not shown.
#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Mailbox(String);

impl Mailbox {
    /// The mailbox itself, for the provider's request only.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The part behind the `@`, in lower case.
    pub fn domain(&self) -> &str {
        self.0.rsplit_once('@').map_or("", |(_, domain)| domain)
    }
}

impl FromStr for Mailbox {
    type Err = Invalid;

    /// # Errors
    /// The rule of its form. Quoted local parts and address literals are refused; a domain of other than ASCII letters must
    /// be written in its `xn--` form.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parts = text.rsplit_once('@').filter(|_| text.len() <= MAX_BYTES);
        match parts {
            Some((local, domain)) if is_local(local) && is_domain(domain) => {
                Ok(Self(format!("{local}@{}", domain.to_ascii_lowercase())))
            }
            _ => Err(Invalid::new("email", RULE)),
        }
    }
}

/// A dot-string (RFC 5321 §4.1.2).
fn is_local(text: &str) -> bool {
    let is_atext = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b);
    let is_atom = |atom: &str| !atom.is_empty() && atom.bytes().all(is_atext);
    text.len() <= MAX_LOCAL_BYTES && text.split('.').all(is_atom)
}

/// At least two labels of letters, digits and inner hyphens, the last not a number (RFC 1123 §2.1).
pub(crate) fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.contains('.') && text.split('.').all(is_label) && !last.bytes().all(|b| b.is_ascii_digit())
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mailbox(hidden)")
    }
}

impl<'de> Deserialize<'de> for Mailbox {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|invalid: Invalid| de::Error::custom(invalid.rule))
    }
}

/// A mailbox with the name that mail programs show beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schema(as = Mailbox)]
pub struct NamedMailbox {
    /// The mailbox.
    #[schema(value_type = String)]
    pub email: Mailbox,
    /// The name to show. At most 128 bytes, without control characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

objects!(NamedMailbox);

/// Longest name beside a mailbox, in bytes.
const MAX_NAME_BYTES: usize = 128;

impl NamedMailbox {
    /// Checks the rules that the types do not enforce.
    ///
    /// # Errors
    /// `name`, with its rule.
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        let is_bad = |name: &String| name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control);
        if self.name.as_ref().is_some_and(is_bad) {
            return Err(Invalid::new(
                "name",
                "must be at most 128 bytes without control characters",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mailboxes_are_normalised_in_their_domain_only() {
        let mailbox: Mailbox = "Ann.B+news@Example.COM".parse().unwrap();
        assert_eq!(
            (mailbox.reveal(), mailbox.domain()),
            ("Ann.B+news@example.com", "example.com")
        );
        assert!(!format!("{mailbox:?}").contains("Ann"));
    }

    #[test]
    fn what_would_break_a_command_or_a_header_is_refused() {
        let long = format!("{}@example.com", "a".repeat(65));
        let longest = format!("a@{}.com", "b".repeat(63));
        longest.parse::<Mailbox>().unwrap();
        for bad in [
            "",
            "@",
            "ann",
            "ann@",
            "@example.com",
            "ann@localhost",
            "ann@example.com\r\nRCPT TO:<eve@example.com>",
            "ann@example.com, eve@example.com",
            "<ann@example.com>",
            "\"ann b\"@example.com",
            "ann@[127.0.0.1]",
            "ann@127.0.0.1",
            ".ann@example.com",
            "ann.@example.com",
            "a..b@example.com",
            "ann@-example.com",
            "ann@example..com",
            "ann@exämple.com",
            "ann @example.com",
            "ann@example.com ",
            "ann\0@example.com",
            long.as_str(),
        ] {
            assert_eq!(bad.parse::<Mailbox>().unwrap_err().field, "email", "{bad:?}");
        }
    }
}
