//! What the page adds to the schemas that are derived from the code: descriptions, defaults, and the form of ids.

use serde_json::{Map, Value, json};

use super::{Member, page};

/// Completes the schema with this name, as it is in `OpenAPI` or `AsyncAPI`.
pub fn complete(name: &str, schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    form_of_id(name, schema);
    for member in page().members_of(name) {
        let property = schema.get_mut("properties").and_then(|all| all.get_mut(member.name));
        if let Some(property) = property.and_then(Value::as_object_mut) {
            complete_member(member, property);
        }
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
