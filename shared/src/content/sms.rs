//! The content of a text message, independent of the provider.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{check_life, segments::Alphabet};
use crate::{
    channel::words,
    invalid::Invalid,
    provider::{ProviderPayload, twilio, vonage},
    tolerant::{self, objects},
};

/// Life of a text message in seconds if the caller gives none: a day.
const LIFE_S: u32 = 24 * 3600;

/// Longest text in characters: ten segments of 153 septets, rounded up; Twilio takes 1600.
const MAX_CHARACTERS: usize = 1600;

/// Most segments of a message if the caller names no number.
const SEGMENTS: u32 = 4;

/// Most segments that a caller may name.
const MAX_SEGMENTS: u32 = 10;

/// Segments of a message whose text Peal does not know: 1600 characters in UCS-2, the most that Twilio takes.
const UNKNOWN_SEGMENTS: u32 = 24;

/// Overrides with the text of a message, in lower case: of Twilio and of Vonage.
const TEXT_OVERRIDES: [&str; 2] = ["body", "text"];

/// Overrides by which a message becomes another than its text, in lower case: templates and media of Twilio, alphabets and binary
/// messages of Vonage.
const CONTENT_OVERRIDES: [&str; 6] = ["contentsid", "contentvariables", "mediaurl", "sendasmms", "type", "udh"];

/// The content of a text message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Sms {
    /// The message.
    #[schema(required = true)]
    pub text: String,
    /// The sender: a number as in E.164, a short code of 3 to 8 digits, or 1 to 11 letters and digits. A gateway fills in the
    /// app's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Seconds after acceptance during which it is worth delivering; 0 means now or never. Default a day.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "tolerant::whole")]
    pub ttl: Option<u32>,
    /// The alphabet. Twilio chooses itself.
    #[serde(skip_serializing_if = "is_auto", deserialize_with = "tolerant::or_default")]
    pub encoding: Encoding,
    /// Most segments; a message that needs more is refused. Default 4.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "tolerant::whole")]
    #[schema(minimum = 1, maximum = 10)]
    pub max_segments: Option<u32>,
    /// Overrides for Twilio: fields of its form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub twilio: Option<ProviderPayload>,
    /// Overrides for Vonage: fields of its form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vonage: Option<ProviderPayload>,
}

objects!(Sms);

words!(
    /// How a text is encoded on its way to the phone.
    Encoding, "encoding", {
        /// The 7-bit alphabet if it has every character, else UCS-2.
        Auto = "auto",
        /// The 7-bit alphabet of 3GPP TS 23.038; a text with other characters is refused.
        Gsm7 = "gsm7",
        /// Two bytes a character.
        Ucs2 = "ucs2",
    }
    default Auto
);

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_auto(encoding: &Encoding) -> bool {
    *encoding == Encoding::Auto
}

impl Sms {
    /// Time to live in seconds.
    pub fn ttl_s(&self) -> u32 {
        self.ttl.unwrap_or(LIFE_S)
    }

    /// The alphabet in which it is sent.
    pub fn alphabet(&self) -> Alphabet {
        match self.encoding {
            Encoding::Auto => Alphabet::of(&self.text),
            Encoding::Gsm7 => Alphabet::Gsm7,
            Encoding::Ucs2 => Alphabet::Ucs2,
        }
    }

    /// The most segments in which any provider sends it, also with the overrides of its request.
    pub fn segments_max(&self) -> u32 {
        let overrides = [&self.twilio, &self.vonage].into_iter().flatten();
        let overridden = overrides.flat_map(|over| &over.payload).map(|(name, value)| {
            let name = name.to_ascii_lowercase();
            match value.as_str() {
                _ if CONTENT_OVERRIDES.contains(&name.as_str()) => UNKNOWN_SEGMENTS,
                // The provider chooses the alphabet; in UCS-2 it needs the most.
                Some(text) if TEXT_OVERRIDES.contains(&name.as_str()) => Alphabet::Ucs2.segments(text).count,
                _ => 1,
            }
        });
        let own = self.alphabet().segments(&self.text).count;
        overridden.fold(own, u32::max)
    }

    /// Checks the rules that the types do not enforce.
    ///
    /// # Errors
    /// The first member that breaks a rule; its path begins at this struct.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        check_life(self.ttl_s())?;
        if !(1..=MAX_CHARACTERS).contains(&self.text.chars().count()) {
            return Err(Invalid::new("text", "must be 1 to 1600 characters"));
        }
        if self.from.as_deref().is_some_and(|from| !is_sender(from)) {
            return Err(Invalid::new(
                "from",
                "must be a number as in E.164, 3 to 8 digits, or 1 to 11 letters and digits with a letter",
            ));
        }
        if self.encoding == Encoding::Gsm7 && Alphabet::of(&self.text) != Alphabet::Gsm7 {
            return Err(Invalid::new("text", "must have only characters of the encoding gsm7"));
        }
        let most = self.max_segments.unwrap_or(SEGMENTS);
        if !(1..=MAX_SEGMENTS).contains(&most) {
            return Err(Invalid::new("max_segments", "must be 1 to 10"));
        }
        let needed = self.alphabet().segments(&self.text).count;
        if needed > most {
            let rule = format!("must need at most {most} segments (max_segments), needs {needed}");
            return Err(Invalid::new("text", rule));
        }
        let payloads = [
            ("twilio", &self.twilio, twilio::OWN),
            ("vonage", &self.vonage, vonage::OWN),
        ];
        for (name, payload, own) in payloads {
            if let Some(payload) = payload {
                payload.check_form(own).map_err(|invalid| invalid.within(name))?;
            }
        }
        Ok(())
    }
}

/// Whether this may be a sender of text messages. A sender of letters has at most 11 characters (3GPP TS 23.040 §9.1.2.5).
pub(crate) fn is_sender(text: &str) -> bool {
    let are_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let is_number = text.parse::<crate::address::Phone>().is_ok();
    let is_short_code = (3..=8).contains(&text.len()) && are_digits(text);
    let is_word = (1..=11).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b' ')
        && text.bytes().any(|b| b.is_ascii_alphabetic())
        && text.trim() == text;
    is_number || is_short_code || is_word
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn overrides_cannot_hide_segments() {
        let segments = |sms: Value| serde_json::from_value::<Sms>(sms).unwrap().segments_max();
        let long = "a".repeat(161);
        for (sms, expected) in [
            (json!({ "text": "Hi" }), 1),
            (json!({ "text": long }), 2),
            (json!({ "text": "a".repeat(71), "encoding": "ucs2" }), 2),
            (
                json!({ "text": "Hi", "twilio": { "payload": { "SmartEncoded": true } } }),
                1,
            ),
            (json!({ "text": "Hi", "twilio": { "payload": { "Body": long } } }), 3),
            (json!({ "text": "Hi", "vonage": { "payload": { "TEXT": long } } }), 3),
            (
                json!({ "text": "Hi", "twilio": { "payload": { "ContentSid": "HX1" } } }),
                24,
            ),
            (
                json!({ "text": "Hi", "vonage": { "payload": { "type": "unicode" } } }),
                24,
            ),
        ] {
            assert_eq!(segments(sms.clone()), expected, "{sms}");
        }
    }

    #[test]
    fn a_member_that_breaks_a_rule_is_named() {
        let sms = |text: &str, from: Option<&str>| Sms {
            text: text.into(),
            from: from.map(Into::into),
            max_segments: Some(10),
            ..Sms::default()
        };
        for (field, sms) in [
            ("", sms("Hi", None)),
            ("", sms(&"ä".repeat(1530), Some("+41791234567"))),
            ("", sms("Hi", Some("12345"))),
            ("", sms("Hi", Some("Peal 24"))),
            ("text", sms("", None)),
            ("text", sms(&"a".repeat(1601), None)),
            ("from", sms("Hi", Some("12"))),
            ("from", sms("Hi", Some("Much too long"))),
            ("from", sms("Hi", Some("a\nb"))),
            ("from", sms("Hi", Some(""))),
        ] {
            let broken = sms.check().map_or_else(|invalid| invalid.field, |()| String::new());
            assert_eq!(broken, field, "{sms:?}");
        }
    }
}
