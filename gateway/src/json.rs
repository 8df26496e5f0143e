//! Reads JSON that a caller wrote, at whichever door.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use shared::{contract, invalid::Invalid};
use utoipa::ToSchema;

/// Why a document cannot be read.
#[derive(Debug, Clone)]
pub(crate) enum Unread {
    /// It is not one JSON document; where it is broken.
    Malformed(String),
    /// A member breaks a rule.
    Invalid(Invalid),
    /// A member or word that is reserved and not built yet.
    NotBuilt(Invalid),
}

impl From<Invalid> for Unread {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

/// Reads a document. The error for a reserved member or word, which is not built yet, differs from that for an unknown one.
/// Tracking the path costs time, so a document is read without it first, and with it only if something is wrong.
///
/// # Errors
/// The first thing that is wrong with it.
pub(crate) fn parse<T: DeserializeOwned + ToSchema>(bytes: &[u8]) -> Result<T, Unread> {
    let error = match serde_json::from_slice(bytes) {
        Ok(document) => return Ok(document),
        Err(error) => error,
    };
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Err(error) if is_json_text(bytes) => {
            let document = serde_json::from_slice(bytes).unwrap_or_default();
            match contract::not_built(&contract::page().objects_of(&T::name()), &document) {
                Some(reserved) => Err(Unread::NotBuilt(reserved)),
                None => Err(Invalid::of_json(&error).into()),
            }
        }
        _ => Err(Unread::Malformed(format!(
            "The document is broken at line {} column {}.",
            error.line(),
            error.column()
        ))),
    }
}

/// The text of a document that [`parse`] has read.
///
/// # Errors
/// When it is not one JSON document.
pub(crate) fn parse_raw(bytes: &[u8]) -> Result<Box<RawValue>, Unread> {
    let broken =
        |error: serde_json::Error| Unread::Malformed(format!("The document is broken at line {}.", error.line()));
    serde_json::from_slice(bytes).map_err(broken)
}

/// Whether these bytes are one document by the grammar of JSON. serde also refuses numbers that a double cannot hold and what
/// is nested deeply.
fn is_json_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok() && serde_json::from_slice::<IgnoredAny>(bytes).is_ok()
}
