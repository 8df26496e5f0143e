//! A string that must not be shown.

use std::{cell::Cell, fmt};

use serde::{Deserialize, Deserializer, Serializer};

thread_local! {
    static HIDES: Cell<bool> = const { Cell::new(false) };
}

/// Runs `serialize`, in which every secret is serialized as `null`: so what may be shown of a credential has no list of its
/// own that could lack a member.
pub(crate) fn hiding<T>(serialize: impl FnOnce() -> T) -> T {
    let before = HIDES.replace(true);
    let done = serialize();
    HIDES.set(before);
    done
}

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

/// Serializes a secret in the clear, for `#[serde(serialize_with)]` on the fields of what is sealed as a whole; as `null` in
/// [`hiding`].
pub(crate) fn reveal<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    if HIDES.get() {
        return serializer.serialize_none();
    }
    serializer.serialize_str(secret.reveal())
}

/// The same for a secret that may be absent.
#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
pub(crate) fn reveal_some<S: Serializer>(secret: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => reveal(secret, serializer),
        None => serializer.serialize_none(),
    }
}
