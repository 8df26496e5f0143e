//! JSON values as YAML that people like to read.

use std::fmt::Write;

use serde_json::Value;

/// `value` as a YAML document.
pub(super) fn write(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

/// Writes a mapping or a list, one member a line, each line ended.
fn block(value: &Value, depth: usize, to: &mut String) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                indent(depth, to);
                to.push_str(&scalar(key));
                to.push(':');
                member(value, depth + 1, to);
            }
        }
        Value::Array(items) => {
            for value in items {
                indent(depth, to);
                to.push('-');
                member(value, depth + 1, to);
            }
        }
        other => to.push_str(&other.to_string()),
    }
}

/// Writes what stands behind a key or a dash.
fn member(value: &Value, depth: usize, to: &mut String) {
    let is_empty = match value {
        Value::Object(members) => members.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    };
    if !is_empty {
        to.push('\n');
        return block(value, depth, to);
    }
    let text = match value {
        Value::String(text) => scalar(text),
        other => other.to_string(),
    };
    // Writing to a string cannot fail.
    let _infallible = writeln!(to, " {text}");
}

/// Text as it is where nothing in it means anything to YAML, else as JSON, which YAML contains.
fn scalar(text: &str) -> String {
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if is_word {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

fn indent(depth: usize, to: &mut String) {
    to.extend(std::iter::repeat_n("  ", depth));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_as_blocks() {
        let value = json!({ "a": { "$ref": "#/x" }, "b": [1, "two words", { "c": null }], "d": {}, "e": "no" });
        let text = "a:\n  \"$ref\": \"#/x\"\nb:\n  - 1\n  - \"two words\"\n  -\n    c: null\nd: {}\ne: \"no\"\n";
        assert_eq!(write(&value), text);
    }
}
