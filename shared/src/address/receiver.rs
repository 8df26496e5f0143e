//! Receivers of webhooks.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Disabled, Trouble};
use crate::{channel::words, invalid::Invalid, secret::Secret, signature::SigningKey};

/// Longest URL in bytes.
const MAX_URL_BYTES: usize = 2048;

words!(
    /// The form in which a receiver wants the body.
    Format, "format", {
        /// `{"type": …, "timestamp": …, "data": …}`, signed by the rules of Standard Webhooks.
        Signed = "signed",
        /// `{"text": …}`, as chats such as Slack, Mattermost and Agit take it.
        Chat = "chat",
    }
    default Signed
);

/// An HTTP receiver. Its URL may contain a secret, so it is not shown.
#[derive(Clone, PartialEq)]
pub struct Receiver {
    url: String,
    /// The form of the body.
    pub format: Format,
    /// Signs what is posted: `whsec_` and 24 to 64 bytes in base64 (Standard Webhooks). `None` for chats.
    pub secret: Option<Secret>,
    /// The secret before the last one, while it still signs.
    former: Option<FormerSecret>,
    /// Since when it fails, if it does, and whether it is disabled.
    pub trouble: Option<Trouble>,
}

/// What is stored of a receiver beside what its registration says.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) former: Option<FormerSecret>,
    pub(super) trouble: Option<Trouble>,
}

/// How long a secret still signs after another has replaced it, so that the receiver has time to learn the new one.
const FORMER_SECRET_SIGNS: Duration = Duration::from_hours(24);

/// A secret that another has replaced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct FormerSecret {
    #[serde(serialize_with = "crate::secret::reveal")]
    secret: Secret,
    /// Until when it signs.
    until: Timestamp,
}

impl Receiver {
    /// Checks a receiver. A worker decides whether the URL's addresses may be reached when it connects.
    ///
    /// # Errors
    /// `url` or `secret`, with its rule.
    pub fn new(url: &str, format: Format, secret: Option<Secret>) -> Result<Self, Invalid> {
        let rule = "must be an absolute https URL of at most 2048 bytes without user and fragment";
        let bad = || Invalid::new("url", rule);
        let parsed: url::Url = url.parse().map_err(|_| bad())?;
        let is_plain = parsed.username().is_empty() && parsed.password().is_none() && parsed.fragment().is_none();
        if parsed.scheme() != "https" || !parsed.has_host() || !is_plain || parsed.as_str().len() > MAX_URL_BYTES {
            return Err(bad());
        }
        match (format, &secret) {
            (Format::Signed, Some(secret)) => drop(SigningKey::new(secret)?),
            (Format::Signed, None) => return Err(Invalid::new("secret", "must be given for signed receivers")),
            (Format::Chat, None) => {}
            (Format::Chat, Some(_)) => return Err(Invalid::new("secret", "must not be given for chat receivers")),
        }
        Ok(Self {
            url: parsed.into(),
            format,
            secret,
            former: None,
            trouble: None,
        })
    }

    /// This receiver, registered at `now` in place of `known`, which has the same URL. If its secret is another, that of
    /// `known` still signs for a day. The trouble of `known` is forgotten.
    #[must_use]
    pub fn in_place_of(mut self, known: Self, now: Timestamp) -> Self {
        self.former = match (&self.secret, known.secret) {
            (None, _) => None,
            (Some(new), Some(secret)) if *new != secret => now
                .checked_add(FORMER_SECRET_SIGNS)
                .ok()
                .map(|until| FormerSecret { secret, until }),
            (Some(_), _) => known.former,
        };
        self
    }

    /// Why nothing is posted to it, if that is so.
    pub fn disabled(&self) -> Option<&Disabled> {
        self.trouble.as_ref()?.disabled.as_ref()
    }

    pub(super) fn set_history(&mut self, History { former, trouble }: History) {
        (self.former, self.trouble) = (former, trouble);
    }

    pub(super) fn take_history(&mut self) -> History {
        History {
            former: self.former.take(),
            trouble: self.trouble.take(),
        }
    }

    /// The secrets that sign at `now`, the newest first.
    pub fn secrets(&self, now: Timestamp) -> impl Iterator<Item = &Secret> {
        let former = self.former.as_ref().filter(|former| former.until > now);
        self.secret.iter().chain(former.map(|former| &former.secret))
    }

    /// The URL in its normalised form, for the request only.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};

    use super::*;

    fn secret(bytes: usize) -> Secret {
        format!("whsec_{}", STANDARD.encode(vec![7; bytes])).into()
    }

    #[test]
    fn a_signed_receiver_has_a_secret_and_a_chat_none() {
        let new = |url: &str, format, secret| Receiver::new(url, format, secret).map_err(|invalid| invalid.field);
        let url = "https://Example.com:443/hook?a=b";
        let receiver = new(url, Format::Signed, Some(secret(32))).unwrap();
        assert_eq!(receiver.url(), "https://example.com/hook?a=b");
        assert!(!format!("{receiver:?}").contains("example"));
        new(url, Format::Chat, None).unwrap();
        for (url, format, given, field) in [
            (url, Format::Signed, None, "secret"),
            (url, Format::Signed, Some(secret(23)), "secret"),
            (url, Format::Signed, Some(secret(65)), "secret"),
            (url, Format::Signed, Some("whsec_".to_owned().into()), "secret"),
            (url, Format::Chat, Some(secret(32)), "secret"),
            ("http://example.com/", Format::Chat, None, "url"),
            ("https://ann:x@example.com/", Format::Chat, None, "url"),
            ("https://example.com/#top", Format::Chat, None, "url"),
            ("/hook", Format::Chat, None, "url"),
            ("https://", Format::Chat, None, "url"),
        ] {
            assert_eq!(new(url, format, given).unwrap_err(), field, "{url}");
        }
        let long = format!("https://example.com/{}", "a".repeat(2048));
        assert_eq!(new(&long, Format::Chat, None).unwrap_err(), "url");
    }

    #[test]
    fn a_secret_that_was_replaced_signs_for_another_day() {
        let of = |given: &Secret| Receiver::new("https://example.com/", Format::Signed, Some(given.clone())).unwrap();
        let live = |receiver: &Receiver, hour: i64| {
            let at = Timestamp::from_second(hour * 3600).unwrap();
            receiver.secrets(at).cloned().collect::<Vec<_>>()
        };
        let at = |hour: i64| Timestamp::from_second(hour * 3600).unwrap();
        let [one, two, three] = [24, 32, 40].map(secret);
        let second = of(&two).in_place_of(of(&one), at(0));
        assert_eq!(live(&second, 23), [two.clone(), one.clone()]);
        assert_eq!(live(&second, 24), std::slice::from_ref(&two));
        let again = of(&two).in_place_of(second.clone(), at(12));
        assert_eq!(
            live(&again, 13),
            [two.clone(), one],
            "registering again changes nothing"
        );
        let third = of(&three).in_place_of(again, at(13));
        assert_eq!(live(&third, 14), [three, two], "two at most");
        let chat = Receiver::new("https://example.com/", Format::Chat, None).unwrap();
        assert_eq!(live(&chat.in_place_of(third, at(14)), 15), []);
    }
}
