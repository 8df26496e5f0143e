//! What the page adds to the schemas that are derived from the code: descriptions, defaults, limits, and the form of ids.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::{Member, page};

/// The rules of a schema that no row of the page states: which members go together, and what a library checks.
static RULES: LazyLock<Map<String, Value>> =
    LazyLock::new(|| serde_json::from_str(include_str!("rules.json")).expect("the rules are JSON"));

/// Completes the schema with this name, as it is in `OpenAPI` or `AsyncAPI`.
pub fn complete(name: &str, schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    form_of_id(name, schema);
    let is_asked = page().is_asked(name);
    for member in page().members_of(name) {
        let property = schema.get_mut("properties").and_then(|all| all.get_mut(member.name));
        if let Some(property) = property.and_then(Value::as_object_mut) {
            complete_member(member, property);
            limit(member, property);
            if is_asked && !member.default.starts_with("required") {
                allow_null(property);
            }
        }
    }
    if let Some(rules) = RULES.get(name) {
        schema.insert("allOf".to_owned(), rules.clone());
    }
}

/// States the limits of a number, a text or a list as far as they are numbers and forms.
fn limit(member: Member, schema: &mut Map<String, Value>) {
    let limits = member.limits;
    let range = limits
        .split([' ', ',', ';'])
        .next()
        .and_then(|first| first.split_once('–'));
    let range = range.and_then(|(least, most)| Some((least.parse::<u64>().ok()?, most.parse::<u64>().ok()?)));
    let [least, most] = match member.kind {
        "integer" => ["minimum", "maximum"],
        "string" => ["minLength", "maxLength"],
        kind if kind.starts_with("list<") => ["minItems", "maxItems"],
        _ => return,
    };
    if let Some(range) = range {
        schema.insert(least.to_owned(), json!(range.0));
        schema.insert(most.to_owned(), json!(range.1));
    }
    if member.kind == "integer" {
        let listed = limits.split(';').next().unwrap_or_default().replace(" or ", ", ");
        let listed: Option<Vec<u64>> = listed.split(", ").map(|number| number.parse().ok()).collect();
        if let Some(numbers) = listed {
            schema.insert("enum".to_owned(), json!(numbers));
        }
    }
    if limits.contains(", distinct") {
        schema.insert("uniqueItems".to_owned(), json!(true));
    }
    let pattern = match limits {
        limits if limits.contains("printable ASCII without spaces") => "^[!-~]*$",
        limits if limits.contains("printable ASCII") => "^[ -~]*$",
        limits if limits.starts_with("starts with `https://`") => "^https://",
        _ => return,
    };
    if member.kind == "string" && !limits.contains("hexadecimal") {
        schema.insert("pattern".to_owned(), json!(pattern));
    }
}

/// Requests may state `null` for what is absent.
fn allow_null(schema: &mut Map<String, Value>) {
    if let Some(reference) = schema.remove("$ref") {
        schema.insert("oneOf".to_owned(), json!([{ "$ref": reference }, { "type": "null" }]));
    } else if let Some(kind) = schema.get("type").filter(|kind| kind.is_string()) {
        let either = json!([kind, "null"]);
        schema.insert("type".to_owned(), either);
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.push(Value::Null);
    }
}

fn complete_member(member: Member, schema: &mut Map<String, Value>) {
    let is_shown = member.default_value().is_some()
        || ["–", "required", "always"]
            .iter()
            .any(|word| member.default.starts_with(word));
    let limits = match member.limits {
        "–" => String::new(),
        limits => format!(" Limits: {limits}."),
    };
    let default = match member.default {
        _ if is_shown => String::new(),
        default => format!(" If absent: {default}."),
    };
    let description = format!("{}{limits}{default}", member.meaning);
    // The description of an optional reference is derived beside the reference.
    for either in schema
        .get_mut("oneOf")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        either.as_object_mut().and_then(|either| either.remove("description"));
    }
    schema.insert("description".to_owned(), description.into());
    match (schema.get("default"), member.default_value()) {
        (None, Some(value)) => drop(schema.insert("default".to_owned(), value)),
        (Some(Value::Null), _) => drop(schema.remove("default")),
        _ => {}
    }
    // References have the form already.
    if !schema.contains_key("$ref") && !schema.contains_key("oneOf") {
        form_of_id(member.kind, schema);
    }
}

fn form_of_id(name: &str, schema: &mut Map<String, Value>) {
    let ids = page().section("ids").map_or(&[][..], |section| &section.rows);
    let Some(row) = ids.iter().find(|row| row[0].trim_matches('`') == name) else {
        return;
    };
    let (pattern, length) = (row[1], row[2].trim_end_matches(" bytes"));
    if let Some(pattern) = pattern.strip_prefix('`').and_then(|pattern| pattern.strip_suffix('`')) {
        schema.insert("pattern".to_owned(), pattern.into());
    }
    let (least, most) = length.split_once('–').unwrap_or((length, length));
    for (bound, value) in [("minLength", least), ("maxLength", most)] {
        if let Ok(value) = value.parse::<u64>() {
            schema.insert(bound.to_owned(), json!(value));
        }
    }
}
