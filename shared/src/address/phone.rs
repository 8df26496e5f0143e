//! Phone numbers.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::invalid::Invalid;

const RULE: &str = "must be a number in the form of E.164: + and 7 to 15 digits, the first not 0";

/// A phone number in the form of E.164, such as `+41791234567`. It is personal data, so it is not shown.
#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Phone(String);

impl Phone {
    /// The number itself with its `+`, for the provider's request only.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The number without its `+`, as some providers want it.
    pub fn digits(&self) -> &str {
        &self.0[1..]
    }
}

impl FromStr for Phone {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits = text.strip_prefix('+').unwrap_or_default();
        let is_number =
            (7..=15).contains(&digits.len()) && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
        if is_number {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new("phone", RULE))
        }
    }
}

impl fmt::Debug for Phone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Phone(hidden)")
    }
}

impl<'de> Deserialize<'de> for Phone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|invalid: Invalid| de::Error::custom(invalid.rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_in_the_form_of_e164_are_numbers() {
        let phone: Phone = "+41791234567".parse().unwrap();
        assert_eq!((phone.reveal(), phone.digits()), ("+41791234567", "41791234567"));
        assert!(!format!("{phone:?}").contains("41"));
        for bad in [
            "",
            "+",
            "0791234567",
            "41791234567",
            "+0791234567",
            "+123456",
            "+1234567890123456",
            "+41 79 123",
            "+4179123456a",
            "+٤١٧٩١٢٣٤٥",
        ] {
            assert_eq!(bad.parse::<Phone>().unwrap_err().field, "phone", "{bad}");
        }
    }
}
