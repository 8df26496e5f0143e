//! Countries, and which of them a telephone number belongs to.

use std::{fmt, str::FromStr, sync::LazyLock};

use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;

/// A country by its code of ISO 3166-1 alpha-2, such as `CH`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Country([u8; 2]);

/// Prefixes of telephone numbers without `+`, in order, each with its country. `testbed/conformance/countries.py` makes the
/// file from the metadata of Google's libphonenumber.
static PREFIXES: LazyLock<Vec<(&'static str, Country)>> = LazyLock::new(|| {
    let lines = include_str!("prefixes.txt").lines();
    let mut all: Vec<_> = lines
        .filter_map(|line| {
            let (country, prefixes) = line.split_once(' ')?;
            let country: Country = country.parse().ok()?;
            Some(prefixes.split(' ').map(move |prefix| (prefix, country)))
        })
        .flatten()
        .collect();
    all.sort_unstable();
    all
});

/// Digits of the longest prefix.
const LONGEST_PREFIX: usize = 8;

impl Country {
    /// The country of `number`, in E.164 with `+`; `None` if its prefix belongs to none: satellite networks, other
    /// international services, and area codes of North America that are not assigned.
    pub fn of_number(number: &str) -> Option<Self> {
        let digits = number.strip_prefix('+')?;
        let longest = LONGEST_PREFIX.min(digits.len());
        (1..=longest).rev().find_map(|length| {
            let prefix = digits.get(..length)?;
            let found = PREFIXES.binary_search_by_key(&prefix, |(known, _)| known).ok()?;
            Some(PREFIXES[found].1)
        })
    }

    /// Its code.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for Country {
    type Err = Invalid;

    fn from_str(code: &str) -> Result<Self, Invalid> {
        match *code.as_bytes() {
            [a, b] if a.is_ascii_uppercase() && b.is_ascii_uppercase() => Ok(Self([a, b])),
            _ => Err(Invalid::new("country", "must be two letters of ISO 3166-1, such as CH")),
        }
    }
}

impl TryFrom<String> for Country {
    type Error = Invalid;

    fn try_from(code: String) -> Result<Self, Invalid> {
        code.parse()
    }
}

impl From<Country> for String {
    fn from(country: Country) -> Self {
        country.as_str().to_owned()
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_belong_to_the_country_of_their_longest_prefix() {
        for (number, country) in [
            ("+41791234567", Some("CH")),
            ("+12025550123", Some("US")),
            ("+14165550123", Some("CA")),
            ("+18765550123", Some("JM")),
            ("+12425550123", Some("BS")),
            ("+18095550123", Some("DO")),
            ("+17875550123", Some("PR")),
            ("+447400123456", Some("GB")),
            ("+447781123456", Some("GG")),
            ("+441481256789", Some("GG")),
            ("+447797123456", Some("JE")),
            ("+79161234567", Some("RU")),
            ("+77011234567", Some("KZ")),
            ("+393123456789", Some("IT")),
            ("+4741234567", Some("NO")),
            ("+61412345678", Some("AU")),
            ("+821012345678", Some("KR")),
            // Satellites, premium rates, and what nobody has.
            ("+881612345678", None),
            ("+882161234567", None),
            ("+97912345678", None),
            ("+19995550123", None),
            ("+21012345678", None),
            ("41791234567", None),
            ("+", None),
            ("+é1", None),
        ] {
            let found = Country::of_number(number);
            assert_eq!(found.map(|found| found.to_string()).as_deref(), country, "{number}");
        }
    }

    #[test]
    fn every_line_of_the_table_is_read() {
        let prefixes = include_str!("prefixes.txt").split_whitespace();
        let prefixes = prefixes.filter(|word| word.starts_with(|first: char| first.is_ascii_digit()));
        assert_eq!(prefixes.clone().count(), PREFIXES.len());
        assert!(PREFIXES.len() > 700 && prefixes.clone().all(|prefix| prefix.len() <= LONGEST_PREFIX));
        let countries: std::collections::BTreeSet<_> = PREFIXES.iter().map(|(_, country)| country).collect();
        assert!(countries.len() > 230, "{}", countries.len());
        assert!("ch".parse::<Country>().is_err() && "CHE".parse::<Country>().is_err());
    }
}
