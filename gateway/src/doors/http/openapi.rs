//! `/v1/openapi.json`: this API, described by the code that serves it.

use std::{collections::BTreeMap, sync::LazyLock};

use http::{HeaderName, header};
use serde_json::Value;
use shared::contract::schema;
use utoipa::{
    IntoResponses, Modify, OpenApi, ToSchema,
    openapi::{
        Content, Ref, RefOr, Response, ResponseBuilder,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{
    auth::client,
    problem::{self, Document},
};

/// What the routes do not say themselves.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Peal",
        description = "Hands notifications to a delivery mesh. Errors are RFC 9457 problem documents with a stable `code`. \
            The page docs/contract.md of Peal's documentation lists every member, also those that are not built yet; a \
            request with one of them is refused with the code `not_built`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(client::Described)),
    modifiers(&ApiKey),
    tags(
        (name = "notifications", description = "Send, and ask what became of it"),
        (name = "recipients", description = "Who can be reached"),
        (name = "addresses", description = "The devices of a recipient"),
        (name = "preferences", description = "What a recipient agreed to"),
        (name = "suppressions", description = "Mailboxes and numbers that are not sent to"),
        (name = "topics", description = "Groups of recipients to broadcast to"),
        (name = "apps", description = "Tenants, their keys and credentials, and the regions of the mesh"),
        (name = "controls", description = "What is held or ended while everything runs"),
        (name = "operations", description = "For those who run the mesh"),
    ),
)]
pub(crate) struct Description;

struct ApiKey;

impl Modify for ApiKey {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("peal_<key id>_<secret>")
            .description(Some(
                "An API key. It speaks for one app, within the scopes that each operation names. Instead of sending it, a \
                 request may be signed with its secret: `Authorization: Peal-HMAC-SHA256 key=…, time=…, nonce=…, \
                 signature=…`.",
            ))
            .build();
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("api_key", SecurityScheme::Http(scheme));
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .description(Some(
                "A client token: a JWT (HS256) that a service signs with the secret of an API key, for one recipient and at \
                 most a day. An operation takes one of the recipient that its path names, if `scope` has the word that the \
                 operation names.",
            ))
            .build();
        components.add_security_scheme("client_token", SecurityScheme::Http(scheme));
    }
}

/// Adds to the schemas what the page of the contract states of their members.
pub(super) fn complete(api: &mut Value) {
    let schemas = api.pointer_mut("/components/schemas").and_then(Value::as_object_mut);
    for (name, schema) in schemas.into_iter().flatten() {
        schema::complete(name, schema);
    }
    let paths = api.get_mut("paths").and_then(Value::as_object_mut);
    let operations = paths
        .into_iter()
        .flat_map(|paths| paths.values_mut().filter_map(Value::as_object_mut));
    let operations = operations.flat_map(|path| {
        path.values_mut()
            .filter_map(|operation| operation.get_mut("parameters"))
    });
    for parameter in operations.filter_map(Value::as_array_mut).flatten() {
        if let Some(schema) = parameter.get_mut("schema") {
            forbid_null(schema);
        }
    }
}

/// A parameter is absent or a text: `null` would be the text of these four letters.
fn forbid_null(schema: &mut Value) {
    let is_null = |kind: &Value| kind == "null" || kind["type"] == "null";
    for name in ["type", "oneOf"] {
        if let Some(Value::Array(kinds)) = schema.get_mut(name) {
            kinds.retain(|kind| !is_null(kind));
            if let [only] = kinds.as_mut_slice() {
                let only = only.take();
                if name == "type" {
                    schema[name] = only;
                } else {
                    *schema = only;
                }
            }
        }
    }
}

/// The description itself
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    operation_id = "getOpenApi",
    tag = "operations",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)),
)]
pub(crate) async fn document() -> ([(HeaderName, &'static str); 1], &'static str) {
    static DOCUMENT: LazyLock<String> = LazyLock::new(super::describe);
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

/// How every request may be refused.
pub(crate) struct AnyRefusal;

/// How one that reads what a recipient's home knows may be refused.
pub(crate) struct ReadRefusal;

/// How one that an admin gateway carries out may be refused.
pub(crate) struct AdminRefusal;

impl IntoResponses for AdminRefusal {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        BTreeMap::from([
            refusal("4XX", "Refused"),
            refusal("503", "No admin gateway answers; repeat"),
        ])
    }
}

/// How one that stores may be refused.
pub(crate) struct WriteRefusal;

impl IntoResponses for AnyRefusal {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        BTreeMap::from([refusal("4XX", "Refused")])
    }
}

impl IntoResponses for ReadRefusal {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        BTreeMap::from([refusal("4XX", "Refused"), refusal("503", "Its home does not answer")])
    }
}

impl IntoResponses for WriteRefusal {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        BTreeMap::from([refusal("4XX", "Refused"), refusal("503", "Not stored; repeat")])
    }
}

fn refusal(status: &str, description: &str) -> (String, RefOr<Response>) {
    let document = Ref::from_schema_name(Document::name());
    let response = ResponseBuilder::new()
        .description(description)
        .content(problem::PROBLEM_JSON, Content::new(Some(document)))
        .build();
    (status.to_owned(), response.into())
}
