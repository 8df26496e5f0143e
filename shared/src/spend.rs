//! Caps on what an app's text messages cost, counted in segments, as networks bill them.

use std::collections::HashSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, de};
use uuid::Uuid;

use crate::{
    address::Phone,
    country::Country,
    digest::derive,
    invalid::Invalid,
    tolerant::{self, objects},
};

/// Most caps of one app.
const CAPS_MAX: usize = 100;

/// Most segments that a cap may allow in a window.
const SEGMENTS_MAX: u64 = 1_000_000_000;

/// Most digits of a prefix.
const PREFIX_DIGITS_MAX: usize = 7;

/// The lengths of windows, in seconds: an hour and a day.
const WINDOWS_S: [u32; 2] = [3600, 86_400];

/// The most segments that an app may send in a window to the numbers that the cap covers: those of `country` that begin with
/// `prefix`. What is absent excludes no number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct SpendCap {
    /// The country of the numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<Country>,
    /// How the numbers begin, from `+` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The most segments in a window.
    #[serde(deserialize_with = "whole")]
    pub segments: u64,
    /// The length of a window in seconds.
    #[serde(deserialize_with = "whole")]
    pub window_s: u32,
}

objects!(SpendCap);

pub(crate) fn whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(deserializer: D) -> Result<T, D::Error> {
    tolerant::whole(deserializer)?.ok_or_else(|| de::Error::custom("must be given"))
}

/// The time in which something is counted together. Windows begin at midnight UTC, or a multiple of their length after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first moment of the window.
    pub start: Timestamp,
    /// The first moment after the window.
    pub end: Timestamp,
}

impl SpendCap {
    /// Checks the caps of an app.
    ///
    /// # Errors
    /// The first cap that breaks a rule; its path begins at the list.
    pub fn check(caps: &[Self]) -> Result<(), Invalid> {
        if caps.len() > CAPS_MAX {
            return Err(Invalid::new("", format_args!("must be at most {CAPS_MAX} caps")));
        }
        let mut known = HashSet::new();
        for (index, cap) in caps.iter().enumerate() {
            let invalid = |member: &str, rule: &str| Err(Invalid::new(format!("[{index}]{member}"), rule));
            if cap.prefix.as_deref().is_some_and(|prefix| !is_prefix(prefix)) {
                return invalid(".prefix", "must be + and 1 to 7 digits, the first not 0");
            }
            if !(1..=SEGMENTS_MAX).contains(&cap.segments) {
                return invalid(".segments", "must be 1 to 1000000000");
            }
            if !WINDOWS_S.contains(&cap.window_s) {
                return invalid(".window_s", "must be 3600 or 86400");
            }
            if !known.insert(cap.id()) {
                return invalid("", "must differ from the others in country, prefix or window_s");
            }
        }
        Ok(())
    }

    /// Whether a message to `phone` counts.
    pub fn covers(&self, phone: &Phone) -> bool {
        let number = phone.reveal();
        let begins_so = |prefix: &String| number.starts_with(prefix.as_str());
        self.prefix.as_ref().is_none_or(begins_so)
            && self
                .country
                .is_none_or(|country| Country::of_number(number) == Some(country))
    }

    /// Names the cap among those of its app. A change of `segments` keeps the name, and so what was counted.
    pub fn id(&self) -> Uuid {
        let country = self.country.map(|country| country.to_string());
        let prefix = self.prefix.as_deref();
        let window = self.window_s.to_string();
        derive(
            "spend-cap",
            &[
                country.as_deref().unwrap_or_default(),
                prefix.unwrap_or_default(),
                &window,
            ],
        )
    }

    /// How few numbers the cap covers, so that caps can be sorted: a longer prefix first, then a country.
    pub fn breadth(&self) -> (usize, bool, u32) {
        let digits = self.prefix.as_ref().map_or(0, String::len);
        (usize::MAX - digits, self.country.is_none(), self.window_s)
    }

    /// The window of this cap that contains `now`.
    pub fn window(&self, now: Timestamp) -> Window {
        Window::of(self.window_s, now)
    }
}

impl Window {
    /// The window of `length_s` seconds that contains `now`.
    pub fn of(length_s: u32, now: Timestamp) -> Self {
        let length = i64::from(length_s).max(1);
        let second = now.as_second();
        let start = Timestamp::from_second(second - second.rem_euclid(length)).unwrap_or(now);
        Self {
            start,
            end: start
                .checked_add(SignedDuration::from_secs(length))
                .unwrap_or(Timestamp::MAX),
        }
    }
}

fn is_prefix(text: &str) -> bool {
    let digits = text.strip_prefix('+').unwrap_or_default();
    (1..=PREFIX_DIGITS_MAX).contains(&digits.len())
        && !digits.starts_with('0')
        && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cap(members: &Value) -> SpendCap {
        let mut cap = json!({ "segments": 10, "window_s": 3600 });
        cap.as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        serde_json::from_value(cap).unwrap()
    }

    #[test]
    fn a_cap_covers_the_numbers_of_its_country_and_prefix() {
        let covers = |members: &Value, number: &str| cap(members).covers(&number.parse().unwrap());
        for (members, number, covered) in [
            (json!({}), "+41791234567", true),
            (json!({ "country": "CH" }), "+41791234567", true),
            (json!({ "country": "CH" }), "+4915112345678", false),
            // Of one calling code, but another country.
            (json!({ "country": "US" }), "+18765550123", false),
            (json!({ "prefix": "+4179" }), "+41791234567", true),
            (json!({ "prefix": "+4178" }), "+41791234567", false),
            (json!({ "country": "CH", "prefix": "+4179" }), "+41791234567", true),
            (json!({ "country": "DE", "prefix": "+4179" }), "+41791234567", false),
            (json!({ "country": "CH" }), "+881612345678", false),
        ] {
            assert_eq!(covers(&members, number), covered, "{members} {number}");
        }
    }

    #[test]
    fn windows_begin_at_whole_hours_and_at_midnight() {
        let window = |window_s: u32, now: &str| {
            let window = cap(&json!({ "window_s": window_s })).window(now.parse().unwrap());
            [window.start.to_string(), window.end.to_string()]
        };
        assert_eq!(
            window(3600, "2026-11-26T22:59:59.999Z"),
            ["2026-11-26T22:00:00Z", "2026-11-26T23:00:00Z"]
        );
        assert_eq!(
            window(3600, "2026-11-26T23:00:00Z"),
            ["2026-11-26T23:00:00Z", "2026-11-27T00:00:00Z"]
        );
        assert_eq!(
            window(86_400, "2026-11-26T22:59:59Z"),
            ["2026-11-26T00:00:00Z", "2026-11-27T00:00:00Z"]
        );
        assert_eq!(
            window(3600, "1969-12-31T23:30:00Z"),
            ["1969-12-31T23:00:00Z", "1970-01-01T00:00:00Z"]
        );
    }

    #[test]
    fn a_cap_that_breaks_a_rule_is_named() {
        let check = |caps: Vec<Value>| {
            let caps: Vec<SpendCap> = caps.iter().map(cap).collect();
            SpendCap::check(&caps).map_or_else(|invalid| invalid.field, |()| "ok".to_owned())
        };
        let (all, daily) = (json!({}), json!({ "window_s": 86_400 }));
        let (country, prefix) = (json!({ "country": "CH" }), json!({ "prefix": "+41" }));
        assert_eq!(check(vec![all.clone(), daily, country.clone(), prefix.clone()]), "ok");
        let other_limit = json!({ "country": "CH", "segments": 20 });
        assert_eq!(check(vec![all, country, other_limit]), "[2]");
        for text in ["", "+", "41", "+041", "+41x", "+12345678", "+४"] {
            assert_eq!(
                check(vec![prefix.clone(), json!({ "prefix": text })]),
                "[1].prefix",
                "{text}"
            );
        }
        for segments in [0, 1_000_000_001] {
            assert_eq!(check(vec![json!({ "segments": segments })]), "[0].segments");
        }
        assert_eq!(check(vec![json!({ "window_s": 60 })]), "[0].window_s");
        let read = serde_json::from_value::<SpendCap>;
        assert_eq!(
            read(json!({ "segments": 10.0, "window_s": 3600 })).unwrap(),
            cap(&json!({}))
        );
        for bad in [
            json!({ "segments": null, "window_s": 3600 }),
            json!({ "segments": 1.5, "window_s": 3600 }),
            json!({ "segments": -1, "window_s": 3600 }),
            json!({ "segments": 1, "window_s": 3600, "more": 1 }),
            json!([null, null, 1, 3600]),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
        assert_eq!(check(vec![json!({}); 101]), "");
    }

    #[test]
    fn a_change_of_the_limit_keeps_what_was_counted() {
        let named = |members: Value| cap(&members).id();
        assert_eq!(named(json!({})), named(json!({ "segments": 20 })));
        assert_ne!(named(json!({})), named(json!({ "window_s": 86_400 })));
        assert_ne!(named(json!({ "country": "CH" })), named(json!({})));
        assert_ne!(named(json!({ "prefix": "+41" })), named(json!({})));
    }

    #[test]
    fn narrow_caps_come_first() {
        let mut caps = [
            cap(&json!({})),
            cap(&json!({ "country": "CH" })),
            cap(&json!({ "prefix": "+41" })),
            cap(&json!({ "prefix": "+4179" })),
        ];
        caps.sort_by_key(SpendCap::breadth);
        let prefixes: Vec<_> = caps.iter().map(|cap| cap.prefix.as_deref().unwrap_or("-")).collect();
        assert_eq!(prefixes, ["+4179", "+41", "-", "-"]);
        assert!(caps[2].country.is_some());
    }
}
