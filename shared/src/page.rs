//! How the pages look to which an app's links lead.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{invalid::Invalid, tolerant::objects};

/// Most bytes of a name.
const NAME_BYTES_MAX: usize = 64;

/// What people read and see of an app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Page {
    /// Its name for people; its id if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its colour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub color: Option<Color>,
}

objects!(Page);

impl Page {
    /// What is said of an app that says nothing.
    pub const fn none() -> Self {
        Self {
            name: None,
            color: None,
        }
    }

    /// Whether nothing is said.
    pub fn is_none(&self) -> bool {
        *self == Self::none()
    }

    /// Checks the name.
    ///
    /// # Errors
    /// The member that breaks a rule.
    pub fn check(&self) -> Result<(), Invalid> {
        let is_name = |name: &String| (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
        if !self.name.as_ref().is_none_or(is_name) {
            let rule = format_args!("must be 1 to {NAME_BYTES_MAX} bytes without control characters");
            return Err(Invalid::new("name", rule));
        }
        Ok(())
    }
}

/// A colour: red, green and blue, in sRGB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Color([u8; 3]);

impl Color {
    #[must_use]
    /// The colour of the text that is read best on this one: black or white, by the contrast of WCAG 2.2.
    pub fn of_text(self) -> Self {
        let [red, green, blue] = self.0.map(|value| {
            let value = f32::from(value) / 255.0;
            if value <= 0.04045 {
                value / 12.92
            } else {
                ((value + 0.055) / 1.055).powf(2.4)
            }
        });
        let luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
        // Where both contrasts, (1 + 0.05) / (l + 0.05) and (l + 0.05) / 0.05, are the same.
        if luminance > 0.179 {
            Self([0; 3])
        } else {
            Self([255; 3])
        }
    }
}

impl fmt::Display for Color {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [red, green, blue] = self.0;
        write!(f, "#{red:02x}{green:02x}{blue:02x}")
    }
}

impl FromStr for Color {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits = text
            .strip_prefix('#')
            .filter(|digits| digits.len() == 6 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let [_, red, green, blue] = number
            .ok_or_else(|| Invalid::new("color", "must be # and six hexadecimal digits"))?
            .to_be_bytes();
        Ok(Self([red, green, blue]))
    }
}

impl TryFrom<String> for Color {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|Invalid { rule, .. }| rule)
    }
}

impl From<Color> for String {
    fn from(color: Color) -> Self {
        color.to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_colour_is_six_digits_and_nothing_that_a_style_sheet_would_run() {
        let read = |color: &str| serde_json::from_value::<Page>(json!({ "color": color })).ok()?.color;
        assert_eq!(read("#2F5fd0").unwrap().to_string(), "#2f5fd0");
        for bad in [
            "",
            "#fff",
            "2f5fd0",
            "#2f5fd0;",
            "#2f5fdg",
            "#+f5fd0",
            "red",
            "#2f5fd0ff",
            "#\u{e9}\u{e9}\u{e9}",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn text_is_readable_on_every_colour() {
        let of_text = |color: &str| color.parse::<Color>().unwrap().of_text().to_string();
        for (color, text) in [
            ("#000000", "#ffffff"),
            ("#ffffff", "#000000"),
            ("#2f5fd0", "#ffffff"),
            ("#ffd400", "#000000"),
            ("#767676", "#000000"),
            ("#666666", "#ffffff"),
        ] {
            assert_eq!(of_text(color), text, "{color}");
        }
    }

    #[test]
    fn a_name_has_an_end() {
        let named = |name: &str| Page {
            name: Some(name.to_owned()),
            color: None,
        };
        named(&"a".repeat(64)).check().unwrap();
        for bad in ["", "a\nb", &"a".repeat(65)] {
            assert_eq!(named(bad).check().unwrap_err().field, "name");
        }
    }
}
