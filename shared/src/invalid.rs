//! Bad input: which field breaks which rule, so that the sender can mend it.

use std::fmt;

/// One field that breaks one rule. It never carries the value: content and addresses do not belong in errors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct Invalid {
    /// Where: a dotted path from the top of the document, such as `push.title` or `to.recipients[3]`.
    pub field: String,
    /// The rule that was broken, as a sentence without subject: "must be 1 to 128 bytes".
    pub rule: String,
}

impl Invalid {
    /// The field at `field` breaks `rule`.
    pub fn new(field: impl Into<String>, rule: impl fmt::Display) -> Self {
        Self {
            field: field.into(),
            rule: rule.to_string(),
        }
    }

    /// The same complaint seen from one level further out.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = if self.field.is_empty() {
            outer.to_owned()
        } else if self.field.starts_with('[') {
            format!("{outer}{}", self.field)
        } else {
            format!("{outer}.{}", self.field)
        };
        self
    }

    /// What is wrong with a document and where, without quoting any of it.
    pub fn of_json(error: &serde_path_to_error::Error<serde_json::Error>) -> Self {
        let path = error.path().to_string();
        let path = if path == "." { "" } else { &path };
        let inner = error.inner();
        let rule = match inner.classify() {
            serde_json::error::Category::Syntax | serde_json::error::Category::Eof => {
                let broken = || {
                    let (line, column) = (inner.line(), inner.column());
                    format!("must be JSON; broken at line {line} column {column}")
                };
                rule_beyond_grammar(&inner.to_string()).map_or_else(broken, str::to_owned)
            }
            serde_json::error::Category::Io => "cannot be read".to_owned(),
            serde_json::error::Category::Data => {
                let message = inner.to_string();
                // serde blames the object that holds the field; the sender looks for the field.
                for (complaint, rule) in [
                    ("missing field `", "must be given"),
                    ("duplicate field `", "must be given once"),
                ] {
                    let field = message.strip_prefix(complaint).and_then(|rest| rest.split_once('`'));
                    if let Some((field, _)) = field {
                        let invalid = Self::new(field, rule);
                        return if path.is_empty() { invalid } else { invalid.within(path) };
                    }
                }
                without_values(&message)
            }
        };
        Invalid::new(if path.is_empty() { "body" } else { path }, rule)
    }
}

/// The rule for what the grammar of JSON allows and serde's reader does not.
fn rule_beyond_grammar(message: &str) -> Option<&'static str> {
    let rules = [
        ("number out of range", "must be a number that a double can hold"),
        ("recursion limit exceeded", "must be nested less deeply"),
        ("lone leading surrogate", PAIRS),
        ("unexpected end of hex escape", PAIRS),
    ];
    let broken = rules.into_iter().find(|(complaint, _)| message.starts_with(complaint));
    broken.map(|(_, rule)| rule)
}

const PAIRS: &str = "must be text whose surrogates stand in pairs";

/// The rule that a message of serde's states, in words of JSON. Messages quote the offending value in front of `expected`;
/// only the expectation is kept.
fn without_values(message: &str) -> String {
    let message = message.rsplit_once(" at line ").map_or(message, |(before, _)| before);
    if let Some((before, expected)) = message.rsplit_once(", expected ") {
        if before.starts_with("unknown field ") {
            return format!("is not known; known here: {}", expected.trim_start_matches("one of "));
        }
        if before.starts_with("invalid ") || before.starts_with("unknown variant ") {
            let not_null = if before == "invalid type: null" {
                ", not null"
            } else {
                ""
            };
            return format!("must be {}{not_null}", in_words_of_json(expected));
        }
    }
    // Rules of ours begin with `must`, perhaps behind a field. A library's message may quote the value.
    let expected = match message {
        time if time.starts_with("failed to parse") => INSTANT,
        ours if ours.starts_with("must ") || ours.contains(": must ") => return ours.to_owned(),
        uuid if uuid.contains("UUID") => "a UUID",
        _ => "of another form",
    };
    format!("must be {expected}")
}

const INSTANT: &str = "an instant as in RFC 3339, such as 2026-12-24T18:00:00Z";

fn in_words_of_json(expected: &str) -> &str {
    match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number, not negative",
        "i8" | "i16" | "i32" | "i64" => "a whole number",
        "a nonzero u32" => "a whole number from 1 to 4294967295",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a borrowed string" | "string or map" | "map with a single key" => "a string",
        "a map" => "an object",
        "unit" => "null",
        "a timestamp string" => INSTANT,
        "a formatted UUID string" => "a UUID",
        expected if expected.starts_with("struct ") || expected.starts_with("internally tagged enum ") => "an object",
        expected if expected.starts_with("tuple ") || expected.contains(" element") => "a list",
        expected if expected.starts_with("enum ") || expected == "variant identifier" => "one of the known words",
        expected => expected,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read")]
    struct Sample {
        number: Option<u32>,
        list: Option<Vec<bool>>,
        object: Option<std::collections::BTreeMap<String, String>>,
        inner: Option<Box<Sample>>,
        id: Option<crate::id::JobId>,
        at: Option<jiff::Timestamp>,
        class: Option<crate::channel::Class>,
    }

    #[test]
    fn rules_speak_of_json_and_quote_no_value() {
        let at = format!("must be {INSTANT}");
        for (json, field, rule) in [
            (
                r#"{"number":-5551234}"#,
                "number",
                "must be a whole number from 0 to 4294967295",
            ),
            (
                r#"{"number":"5551234"}"#,
                "number",
                "must be a whole number from 0 to 4294967295",
            ),
            (r#"{"list":"5551234"}"#, "list", "must be a list"),
            (r#"{"list":[true,null]}"#, "list[1]", "must be true or false, not null"),
            (
                r#"{"number":1e999}"#,
                "number",
                "must be a number that a double can hold",
            ),
            (r#"{"object":{"a":"\ud800"}}"#, "object.a", PAIRS),
            (r#"{"object":{"a":"\ud800x"}}"#, "object.a", PAIRS),
            (
                r#"{"class":5551234}"#,
                "class",
                "must be one of `urgent`, `normal`, `bulk`",
            ),
            (r#"{"list":[5551234]}"#, "list[0]", "must be true or false"),
            (r#"{"object":["5551234"]}"#, "object", "must be an object"),
            (r#"{"inner":"5551234"}"#, "inner", "must be an object"),
            (
                r#"{"class":"5551234"}"#,
                "class",
                "must be one of `urgent`, `normal`, `bulk`",
            ),
            (
                r#"{"clas":"5551234"}"#,
                "clas",
                "is not known; known here: `number`, `list`, `object`, `inner`, `id`, `at`, `class`",
            ),
            (r#"{"id":"5551234"}"#, "id", "must be a UUID"),
            (r#"{"id":5551234}"#, "id", "must be a UUID"),
            (r#"{"at":"5551234"}"#, "at", &at),
            (r#"{"at":"2026-55-51"}"#, "at", &at),
            (r#"{"at":"2026-11-26T08:00:00+99"}"#, "at", &at),
            (r#"{"at":"2026-11-26 5551234"}"#, "at", &at),
            (r#"{"at":5551234}"#, "at", &at),
            (r#"{"number":1,"number":5551234}"#, "number", "must be given once"),
        ] {
            let mut reader = serde_json::Deserializer::from_str(json);
            let error = serde_path_to_error::deserialize::<_, Sample>(&mut reader).unwrap_err();
            let invalid = Invalid::of_json(&error);
            assert_eq!((invalid.field.as_str(), invalid.rule.as_str()), (field, rule));
        }
    }
}
