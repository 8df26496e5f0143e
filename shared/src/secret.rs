//! A string that must not be shown.

use std::fmt;

use serde::{Deserialize, Deserializer, Serializer};

/// A string that `Debug` hides. It is serialized only where a field asks for it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// Reads a secret without the line feed at the end of its file, for `#[serde(deserialize_with)]`.
pub(crate) fn one_line<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(Secret(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Serializes a secret in the clear, for `#[serde(serialize_with)]` on the fields of what is sealed as a whole.
pub(crate) fn reveal<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.reveal())
}

/// The same for a secret that may be absent.
#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
pub(crate) fn reveal_some<S: Serializer>(secret: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => serializer.serialize_some(secret.reveal()),
        None => serializer.serialize_none(),
    }
}
