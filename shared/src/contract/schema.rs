//! What the page adds to the schemas that are derived from the code: descriptions, defaults, and the form of ids.

use serde_json::{Map, Value, json};

use super::{Member, Section, page};

/// Completes the schema with this name, as it is in `OpenAPI` or `AsyncAPI`.
pub fn complete(name: &str, schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    form_of_id(name, schema);
    for object in page().objects_of(name) {
        for member in page().section(object).into_iter().flat_map(Section::members) {
            let property = schema.get_mut("properties").and_then(|all| all.get_mut(member.name));
            if let Some(property) = property.and_then(Value::as_object_mut) {
                complete_member(member, property);
            }
        }
    }
}

fn complete_member(member: Member, schema: &mut Map<String, Value>) {
    let description = match member.limits {
        "–" => member.meaning.to_owned(),
        limits => format!("{} Limits: {limits}.", member.meaning),
    };
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
