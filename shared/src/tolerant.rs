//! Reading JSON that another version of Peal may have written.
//!
//! Types refuse unknown members, so that a caller's typing error is found. JSON that Peal itself stored or sent may have
//! members of a newer version: they are dropped and the rest is read again, which costs nothing if there are none.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::invalid::Invalid;

/// Reads `json` and refuses unknown members.
///
/// # Errors
/// The first member that breaks a rule.
pub fn strictly<T: DeserializeOwned>(json: &[u8]) -> Result<T, Invalid> {
    // Only JSON that fails is read again with the path to the failure: tracking the path costs as much as reading.
    if let Ok(value) = serde_json::from_slice(json) {
        return Ok(value);
    }
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| Invalid::of_json(&error))?;
    reader
        .end()
        .map_err(|_| Invalid::new("body", "must be one JSON document"))?;
    Ok(value)
}

/// Members of a newer version that are ignored in one document. Each costs another reading, so that more would let a
/// hostile document take a processor for minutes.
const MAX_IGNORED_MEMBERS: usize = 32;

/// Reads `json` and ignores members that are not known, up to 32 of them.
///
/// # Errors
/// The first member that breaks a rule.
pub fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, Invalid> {
    if let Ok(value) = serde_json::from_slice(json) {
        return Ok(value);
    }
    let Ok(mut document) = serde_json::from_slice::<Value>(json) else {
        return strictly(json);
    };
    let mut ignored = 0;
    loop {
        let error = match serde_path_to_error::deserialize(&document) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if ignored == MAX_IGNORED_MEMBERS || !remove_unknown(&mut document, &error) {
            return Err(Invalid::of_json(&error));
        }
        ignored += 1;
    }
}

/// Removes the member that `error` calls unknown. `false` if it is another error.
fn remove_unknown(document: &mut Value, error: &serde_path_to_error::Error<serde_json::Error>) -> bool {
    use serde_path_to_error::Segment;

    let message = error.inner().to_string();
    let unknown = message
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split_once('`'));
    let Some((unknown, _)) = unknown else { return false };
    let mut path: Vec<_> = error.path().iter().collect();
    if matches!(path.last(), Some(Segment::Map { key }) if key == unknown) {
        path.pop();
    }
    let mut at = document;
    for segment in path {
        let inner = match segment {
            Segment::Map { key } => at.get_mut(key),
            Segment::Seq { index } => at.get_mut(index),
            Segment::Enum { .. } | Segment::Unknown => None,
        };
        let Some(inner) = inner else { return false };
        at = inner;
    }
    at.as_object_mut()
        .is_some_and(|members| members.remove(unknown).is_some())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        known: u32,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        list: Vec<Inner>,
    }

    #[test]
    fn members_of_a_newer_version_are_ignored_at_any_depth() {
        let json = br#"{"new":[1],"list":[{"known":1},{"known":2,"newer":{"x":1},"newest":null}]}"#;
        let expected = vec![Inner { known: 1 }, Inner { known: 2 }];
        assert_eq!(read::<Outer>(json).unwrap(), Outer { list: expected });
        assert_eq!(strictly::<Outer>(json).unwrap_err().field, "new");
    }

    #[test]
    fn a_document_of_unknown_members_is_refused_soon() {
        let members: Vec<_> = (0..100_000).map(|n| format!(r#""n{n}":1"#)).collect();
        let json = format!("{{{}}}", members.join(","));
        assert!(read::<Outer>(json.as_bytes()).is_err());
    }

    #[test]
    fn what_is_wrong_stays_wrong() {
        for (json, field) in [
            (r#"{"list":[{"known":"5551234"}]}"#, "list[0].known"),
            (r#"{"new":1}"#, "list"),
            (r#"{"list":"#, "list"),
            ("", "body"),
            (r#"{"list":[]} x"#, "body"),
        ] {
            let invalid = read::<Outer>(json.as_bytes()).unwrap_err();
            assert_eq!(invalid.field, field, "{invalid}");
            assert!(!invalid.to_string().contains("5551234"));
        }
    }
}
