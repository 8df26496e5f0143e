//! The documents for programs and `docs/contract.md` agree.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use shared::{
    body,
    contract::{Member, page},
    receipt::Receipt,
};
use utoipa::{PartialSchema, ToSchema};

/// Schemas of lists and of what operators read: the page describes these in words.
const IN_WORDS: [&str; 11] = [
    "AddressList",
    "AppList",
    "ControlList",
    "Listed",
    "ReadyResponse",
    "RegionList",
    "Replayed",
    "ScheduleList",
    "StatusList",
    "SuppressionList",
    "TopicsResponse",
];

/// Every schema of an object, of both documents.
fn objects() -> BTreeMap<String, Value> {
    let api: Value = serde_json::from_str(&gateway::documents::openapi()).expect("the document is JSON");
    let mut schemas = api["components"]["schemas"]
        .as_object()
        .expect("there are schemas")
        .clone();
    for (name, schema) in [
        (body::Members::name(), body::Members::schema()),
        (Receipt::name(), Receipt::schema()),
    ] {
        schemas.insert(
            name.into_owned(),
            serde_json::to_value(schema).expect("schemas always serialize"),
        );
    }
    let is_object = |schema: &Value| schema.get("properties").is_some();
    schemas.into_iter().filter(|(_, schema)| is_object(schema)).collect()
}

/// The members of a schema by name.
fn members(schema: &str) -> BTreeMap<&'static str, Member> {
    let members = page().members_of(schema).into_iter();
    members.map(|member| (member.name, member)).collect()
}

fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
    names.into_iter().collect()
}

#[test]
fn schemas_have_the_members_that_are_built_and_no_others() {
    let objects = objects();
    for (name, schema) in objects.iter().filter(|(name, _)| !IN_WORDS.contains(&name.as_str())) {
        let properties = schema["properties"].as_object().unwrap();
        let built = members(name);
        assert_eq!(
            names(properties.keys().map(String::as_str)),
            names(built.keys().copied()),
            "{name}"
        );

        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        let required = names(required.filter_map(Value::as_str));
        for (member, row) in &built {
            let expected = row.default == "required" || row.default == "always";
            // An answer may always have what a request may leave out.
            let may_be = expected || row.default.starts_with("required") || row.default.starts_with("always");
            let is_answer_to_both = page()
                .objects_of(name)
                .iter()
                .any(|object| page().section(object).unwrap().side == "both");
            let is = required.contains(member);
            assert!(is || !expected, "{name}.{member} is required by the page");
            assert!(
                !is || may_be || is_answer_to_both,
                "{name}.{member} is not required by the page"
            );

            let default = properties[*member].get("default");
            if let (Some(default), Some(expected)) = (default, row.default_value()) {
                assert_eq!(*default, expected, "{name}.{member}");
            }
        }
    }
}

#[test]
fn what_is_built_over_http_has_a_schema() {
    let objects = objects();
    for (name, section) in page().sections() {
        // What a file holds has no schema, nor has what is sent to an app's own endpoint.
        let is_served = section.side != "event" && !section.doors.contains(&"mesh.toml");
        if is_served && section.members().any(|member| member.reserved.is_none()) {
            for schema in &section.schemas {
                assert!(objects.contains_key(*schema), "{name}: {schema}");
            }
        }
    }
}

#[test]
fn enums_of_schemas_are_the_words_of_the_page() {
    let api: Value = serde_json::from_str(&gateway::documents::openapi()).unwrap();
    for (schema, words) in [
        ("Channel", "channel"),
        ("Class", "class"),
        ("Priority", "priority"),
        ("Provider", "provider"),
        ("AddressKind", "kind"),
        ("Environment", "environment"),
        ("ApnsPushType", "apns_push_type"),
        ("AddressState", "address_state"),
        ("Progress", "progress"),
        ("Late", "late"),
        ("SuppressionReason", "suppression_reason"),
    ] {
        let shown = api["components"]["schemas"][schema]["enum"].as_array().unwrap();
        let built = page()
            .words(words)
            .into_iter()
            .filter(|(_, reserved)| reserved.is_none());
        let built: Vec<_> = built.map(|(word, _)| Value::from(word)).collect();
        assert_eq!(*shown, built, "{schema}");
    }
}

#[test]
fn ids_have_a_pattern_and_lengths() {
    let api: Value = serde_json::from_str(&gateway::documents::openapi()).unwrap();
    let schemas = &api["components"]["schemas"];
    let event = &schemas["EventId"];
    assert_eq!(
        (&event["pattern"], &event["minLength"], &event["maxLength"]),
        (&"^[!-~]{1,255}$".into(), &1.into(), &255.into())
    );
    assert_eq!(
        (&schemas["JobId"]["format"], &schemas["JobId"]["maxLength"]),
        (&"uuid".into(), &36.into())
    );
    let region = &schemas["Attempt"]["properties"]["by"];
    assert_eq!(region["maxLength"], 32);
}

#[test]
fn every_body_of_a_request_is_on_the_page() {
    let api: Value = serde_json::from_str(&gateway::documents::openapi()).unwrap();
    let operations = api["paths"].as_object().unwrap().values().filter_map(Value::as_object);
    let mut bodies = 0;
    for operation in operations.flat_map(serde_json::Map::values) {
        let Some(content) = operation.pointer("/requestBody/content").and_then(Value::as_object) else {
            continue;
        };
        assert_eq!(content.len(), 1, "{content:?}");
        let schema = &content.values().next().unwrap()["schema"];
        let either = schema.get("oneOf").and_then(Value::as_array).into_iter().flatten();
        for schema in std::iter::once(schema)
            .chain(either)
            .filter_map(|schema| schema.get("$ref")?.as_str())
        {
            let name = schema.rsplit('/').next().unwrap();
            assert!(!page().objects_of(name).is_empty(), "{name}");
            bodies += 1;
        }
    }
    assert!(bodies >= 6, "only {bodies} bodies were found");
}

#[test]
fn the_example_of_an_app_is_taken() {
    let (language, example) = page().section("app").unwrap().examples[0];
    assert_eq!(language, "toml");
    let file = std::env::temp_dir().join(format!("peal-contract-{}.toml", std::process::id()));
    std::fs::write(&file, example).unwrap();
    let read = gateway::provision::read(&file);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(read.unwrap().apps.len(), 1);
}
