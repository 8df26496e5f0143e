//! Reading JSON that a caller or another version of Peal wrote.
//!
//! `null` is read as if the member were absent, and an object only from an object. Types refuse unknown members, so that a
//! caller's typing error is found. JSON that Peal itself stored or sent may have members of a newer version: they are dropped and
//! the rest is read again, which costs nothing if there are none.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, Unexpected, Visitor},
    forward_to_deserialize_any,
};
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

/// Whether this is the default, which need not be written.
pub fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads a member that has a default, for `deserialize_with`: `null` is the default.
///
/// # Errors
/// When the value is neither `null` nor of the type.
pub fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads an optional whole number, for `deserialize_with`. JSON does not tell `3.0` from `3`.
///
/// # Errors
/// When the value is neither `null` nor a whole number that fits `T`, an unsigned integer.
pub fn whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(deserializer: D) -> Result<Option<T>, D::Error> {
    deserializer.deserialize_option(Whole(PhantomData))
}

struct Whole<T>(PhantomData<T>);

impl<'de, T: TryFrom<u64>> Visitor<'de> for Whole<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = u64::MAX >> (u64::BITS as usize - 8 * size_of::<T>());
        write!(f, "a whole number from 0 to {most}")
    }

    fn visit_none<E: de::Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<T>, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Option<T>, E> {
        let fits = T::try_from(number).map(Some);
        fits.map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Option<T>, E> {
        // Doubles hold every whole number up to 2^53.
        if number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
            return self.visit_u64(number as u64);
        }
        Err(E::invalid_value(Unexpected::Float(number), &self))
    }
}

/// Reads a struct from an object only. The code that serde derives would also take a list, as the members in the order in
/// which the code declares them.
#[derive(Debug)]
pub struct OnlyObject<D>(pub D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for OnlyObject<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// Implements `Deserialize` for structs that derive it with `#[serde(remote = "Self")]`, so that each is read from an object
/// only.
#[macro_export]
macro_rules! only_objects {
    ($($name:ty),+ $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::deserialize($crate::tolerant::OnlyObject(deserializer))
            }
        }
    )+};
}

/// Implements `Serialize` too, for structs that derive both with `#[serde(remote = "Self")]`.
#[macro_export]
macro_rules! objects {
    ($($name:ty),+ $(,)?) => {$(
        $crate::only_objects!($name);

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                Self::serialize(self, serializer)
            }
        }
    )+};
}
pub(crate) use objects;

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

/// Those of a list that a newer program may have stored which can be read; the others are as if they were absent.
pub fn each_known<T: DeserializeOwned>(values: Vec<Value>) -> Vec<T> {
    let read_one = |value: Value| read(value.to_string().as_bytes()).ok();
    values.into_iter().filter_map(read_one).collect()
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
    fn a_whole_number_may_be_written_as_a_fraction() {
        let read =
            |json: &str| whole::<_, u8>(&mut serde_json::Deserializer::from_str(json)).map_err(|e| e.to_string());
        assert_eq!(read("null"), Ok(None));
        for (json, number) in [("3", 3), ("3.0", 3), ("25.5e1", 255), ("0", 0), ("-0.0", 0)] {
            assert_eq!(read(json), Ok(Some(number)), "{json}");
        }
        for json in ["256", "-1", "3.5", "1e300", "\"3\"", "[]", "true"] {
            assert!(
                read(json).unwrap_err().contains("a whole number from 0 to 255"),
                "{json}"
            );
        }
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
