//! `/v1/apps` and `/v1/regions`: tenants with their keys and credentials, and the regions of the mesh. They are read from this
//! region's copy of the configuration, and written by an admin gateway at the hub.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Json as Answer,
    extract::{Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shared::{
    app::App,
    id::{AppId, Region},
    invalid::Invalid,
    nats::{config::Tenants, key_use},
    objects,
    site::Site,
    tolerant::or_default,
};
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};

use super::{
    api::Api,
    auth::{Administrator, ToReadApps, ToWriteApps, lacking, unknown},
    body::{Json, Verbatim, parse},
    named::{KeyId, NO_APP, Named},
    openapi,
    problem::{ADMIN_UNREACHABLE, FORBIDDEN, NOT_FOUND, Problem, RATE_LIMITED, UNAUTHENTICATED, VERSION_CONFLICT},
};
use crate::{
    admin::{
        change::Change,
        desk::{Mode, Refusal},
        document::{AppDocument, KeyDocument, keys_of},
        relay::{Act, Done, Unreachable},
    },
    context::Context,
};

/// How long an answer to a write waits until this region knows what was written.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);

/// The query of a write.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct WriteQuery {
    /// Only answer what would change; nothing is stored.
    #[serde(default)]
    plan: bool,
}

impl WriteQuery {
    fn mode(query: Result<Query<Self>, QueryRejection>) -> Result<Mode, Problem> {
        let Query(query) = query.map_err(|_| Invalid::new("plan", "must be true or false, and the only parameter"))?;
        Ok(if query.plan { Mode::Plan } else { Mode::Write })
    }
}

/// Apps.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AppList {
    /// Each without its secrets.
    apps: Vec<AppDocument>,
}

/// What a write would change.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChangePlan {
    /// By member.
    changes: Vec<Change>,
    /// Keys that would be made.
    keys: usize,
}

/// A region of the mesh.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schema(as = Site)]
pub(crate) struct SiteDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    region: Option<Region>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nats: Option<String>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    helpers: Vec<Region>,
}

objects!(SiteDocument);

/// Regions.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RegionList {
    /// In alphabetical order.
    regions: Vec<SiteDocument>,
}

/// List apps
///
/// An operator's key lists all, the key of an app only that app.
#[utoipa::path(
    get,
    path = "/v1/apps",
    operation_id = "listApps",
    tag = "apps",
    responses((status = 200, description = "The apps", body = AppList), openapi::AnyRefusal),
    security(("api_key" = ["apps:read"])),
)]
pub(crate) async fn list(State(api): State<Arc<Api>>, by: Administrator<ToReadApps>) -> Answer<AppList> {
    let tenants = api.context.config.tenants();
    let mut apps: Vec<_> = tenants.apps.values().filter(|app| may_see(&by, &app.id)).collect();
    apps.sort_by(|a, b| a.id.cmp(&b.id));
    let used = last_uses(&api, &tenants, &apps).await;
    let apps = apps.into_iter().map(|app| shown(&api, &tenants, app, &used)).collect();
    Answer(AppList { apps })
}

/// Get an app
///
/// Without its secrets. The header `ETag` has its version.
#[utoipa::path(
    get,
    path = "/v1/apps/{app}",
    operation_id = "getApp",
    tag = "apps",
    params(("app" = AppId, Path, description = "The name of the app")),
    responses((status = 200, description = "The app", body = AppDocument), openapi::AnyRefusal),
    security(("api_key" = ["apps:read"])),
)]
pub(crate) async fn get(
    State(api): State<Arc<Api>>,
    by: Administrator<ToReadApps>,
    Named(id): Named<AppId>,
) -> Result<Response, Problem> {
    let tenants = api.context.config.tenants();
    let app = tenants.apps.get(&id).filter(|app| may_see(&by, &app.id));
    let app = app.ok_or_else(|| Problem::new(NOT_FOUND, NO_APP))?;
    let version = tenants.version_of_app(&id);
    let used = last_uses(&api, &tenants, &[app]).await;
    let app = shown(&api, &tenants, app, &used);
    Ok(([(header::ETAG, tag(version))], Answer(app)).into_response())
}

/// Create or replace an app
///
/// The whole app is replaced. A credential, or the secret of the alerts, that is given as it is shown stays as it is; one that is
/// left out is removed. Keys stay; those without an `id` are made where the app has none like them. The key of an app may
/// change only what concerns nobody else, such as credentials and routes.
#[utoipa::path(
    put,
    path = "/v1/apps/{app}",
    operation_id = "putApp",
    tag = "apps",
    params(
        ("app" = AppId, Path, description = "The name of the app"),
        ("If-Match" = Option<String>, Header, description = "The version that it must have", pattern = "^\"[0-9a-f]+\"$"),
        WriteQuery,
    ),
    request_body = AppDocument,
    responses(
        (status = 200, description = "Replaced; with `plan`, what would change", body = AppOrPlan),
        (status = 201, description = "Created", body = AppDocument),
        openapi::AdminRefusal,
    ),
    security(("api_key" = ["apps:write"])),
)]
pub(crate) async fn put(
    State(api): State<Arc<Api>>,
    by: Administrator<ToWriteApps>,
    Named(id): Named<AppId>,
    query: Result<Query<WriteQuery>, QueryRejection>,
    headers: HeaderMap,
    Verbatim(body): Verbatim,
) -> Result<Response, Problem> {
    let mode = WriteQuery::mode(query)?;
    let document: AppDocument = parse(&body)?;
    if document.id != id {
        return Err(Invalid::new("id", "must be the name in the path").into());
    }
    let act = Act::PutApp {
        // As it was sent: a document that was read does not write its secrets.
        document: Box::new(parse_json(&body)?),
        if_match: Some(if_match(&headers)?.unwrap_or_else(|| version_of(&api, &id))),
        mode,
    };
    let Done::App(written) = carry_out(&api, &by, act).await? else {
        return Err(unreachable());
    };
    if mode == Mode::Plan {
        let (changes, keys) = (written.changes, written.keys);
        return Ok(Answer(ChangePlan { changes, keys }).into_response());
    }
    let is_known = |tenants: &Tenants| {
        let mut keys = written.app.keys.iter().filter_map(|key| key.id.as_ref());
        tenants.version_of_app(&id) == written.version && keys.all(|key| tenants.keys.contains_key(key))
    };
    known(&api, is_known).await;
    let status = if written.is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, [(header::ETAG, tag(&written.version))], Answer(written.app)).into_response())
}

/// What a write of an app answers.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes the answers")]
pub(crate) enum AppOrPlan {
    App(Box<AppDocument>),
    Plan(ChangePlan),
}

/// Delete an app
///
/// Only an operator's key may, and the app must be suspended. Its keys are revoked. What waits for the app is not sent.
#[utoipa::path(
    delete,
    path = "/v1/apps/{app}",
    operation_id = "deleteApp",
    tag = "apps",
    params(
        ("app" = AppId, Path, description = "The name of the app"),
        ("If-Match" = Option<String>, Header, description = "The version that it must have", pattern = "^\"[0-9a-f]+\"$"),
    ),
    responses((status = 204, description = "Deleted"), openapi::AdminRefusal),
    security(("api_key" = ["apps:write"])),
)]
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    by: Administrator<ToWriteApps>,
    Named(app): Named<AppId>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let if_match = if_match(&headers)?.unwrap_or_else(|| version_of(&api, &app));
    let act = Act::DeleteApp {
        app: app.clone(),
        if_match: Some(if_match),
    };
    carry_out(&api, &by, act).await?;
    known(&api, |tenants| !tenants.apps.contains_key(&app)).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a key of an app
///
/// The answer has the key itself, which is stored nowhere and cannot be read again. The key of an app makes no key with scopes that
/// it lacks.
#[utoipa::path(
    post,
    path = "/v1/apps/{app}/keys",
    operation_id = "makeKey",
    tag = "apps",
    params(("app" = AppId, Path, description = "The name of the app")),
    request_body = KeyDocument,
    responses((status = 201, description = "The key", body = KeyDocument), openapi::AdminRefusal),
    security(("api_key" = ["apps:write"])),
)]
pub(crate) async fn issue_key(
    State(api): State<Arc<Api>>,
    by: Administrator<ToWriteApps>,
    Named(app): Named<AppId>,
    Json(key): Json<KeyDocument>,
) -> Result<(StatusCode, Answer<KeyDocument>), Problem> {
    key.check_new()?;
    let Done::Key(key) = carry_out(&api, &by, Act::IssueKey { app, key }).await? else {
        return Err(unreachable());
    };
    let is_known = |tenants: &Tenants| key.id.as_ref().is_some_and(|id| tenants.keys.contains_key(id));
    known(&api, is_known).await;
    Ok((StatusCode::CREATED, Answer(key)))
}

/// Revoke a key of an app
///
/// Gateways of this region refuse it at once, those of other regions as soon as they are reachable.
#[utoipa::path(
    delete,
    path = "/v1/apps/{app}/keys/{key_id}",
    operation_id = "revokeKey",
    tag = "apps",
    params(
        ("app" = AppId, Path, description = "The name of the app"),
        ("key_id" = String, Path, description = "The id of the key"),
    ),
    responses((status = 204, description = "Revoked"), openapi::AdminRefusal),
    security(("api_key" = ["apps:write"])),
)]
pub(crate) async fn revoke_key(
    State(api): State<Arc<Api>>,
    by: Administrator<ToWriteApps>,
    Named((app, KeyId(key_id))): Named<(AppId, KeyId)>,
) -> Result<StatusCode, Problem> {
    let act = Act::RevokeKey {
        app,
        key_id: key_id.clone(),
    };
    carry_out(&api, &by, act).await?;
    known(&api, |tenants| !tenants.keys.contains_key(&key_id)).await;
    Ok(StatusCode::NO_CONTENT)
}

/// List the regions of the mesh
///
/// Only an operator's key may.
#[utoipa::path(
    get,
    path = "/v1/regions",
    operation_id = "listRegions",
    tag = "apps",
    responses((status = 200, description = "The regions", body = RegionList), openapi::AnyRefusal),
    security(("api_key" = ["apps:read"])),
)]
pub(crate) async fn list_regions(
    State(api): State<Arc<Api>>,
    by: Administrator<ToReadApps>,
) -> Result<Answer<RegionList>, Problem> {
    if by.only().is_some() {
        return Err(not_an_operator());
    }
    let tenants = api.context.config.tenants();
    let regions = tenants.regions.iter().map(|(region, site)| SiteDocument {
        region: Some(region.clone()),
        nats: site.nats.clone(),
        helpers: site.helpers.clone(),
    });
    Ok(Answer(RegionList {
        regions: regions.collect(),
    }))
}

/// Add a region, or change it
///
/// Only an operator's key may.
#[utoipa::path(
    put,
    path = "/v1/regions/{region}",
    operation_id = "putRegion",
    tag = "apps",
    params(("region" = Region, Path, description = "The name of the region"), WriteQuery),
    request_body = SiteDocument,
    responses((status = 200, description = "What changed; with `plan`, what would", body = ChangePlan), openapi::AdminRefusal),
    security(("api_key" = ["apps:write"])),
)]
pub(crate) async fn put_region(
    State(api): State<Arc<Api>>,
    by: Administrator<ToWriteApps>,
    Named(region): Named<Region>,
    query: Result<Query<WriteQuery>, QueryRejection>,
    Json(site): Json<SiteDocument>,
) -> Result<Answer<ChangePlan>, Problem> {
    let mode = WriteQuery::mode(query)?;
    if by.only().is_some() {
        return Err(not_an_operator());
    }
    if site.region.as_ref().is_some_and(|named| *named != region) {
        return Err(Invalid::new("region", "must be the name in the path").into());
    }
    let SiteDocument { nats, helpers, .. } = site;
    let version = api.context.config.tenants().version_of_region(&region).to_owned();
    let act = Act::PutRegion {
        region,
        if_match: Some(version),
        site: Site { nats, helpers },
        mode,
    };
    let Done::Region(changes) = carry_out(&api, &by, act).await? else {
        return Err(unreachable());
    };
    Ok(Answer(ChangePlan { changes, keys: 0 }))
}

/// Has an admin gateway do it.
pub(super) async fn carry_out<R>(api: &Api, by: &Administrator<R>, act: Act) -> Result<Done, Problem> {
    let key = by.key.as_ref().ok_or_else(|| {
        Problem::new(
            UNAUTHENTICATED,
            "This write takes the API key itself: an admin gateway checks it again.",
        )
    })?;
    let turn = api.relay.enter(&by.title());
    let Some(_turn) = turn else {
        let detail = "Another write of this caller is in progress. Nothing was stored; repeat after 1 s.";
        return Err(Problem::new(RATE_LIMITED, detail));
    };
    match Box::pin(api.relay.ask(key.reveal(), act)).await {
        Ok(done) => done.map_err(Problem::from),
        Err(Unreachable) => Err(unreachable()),
    }
}

pub(super) fn unreachable() -> Problem {
    let detail = "No admin gateway answers, perhaps because this region is cut off from the hub. What exists is served meanwhile. \
        Something may have been written: read before you repeat.";
    Problem::new(ADMIN_UNREACHABLE, detail)
}

/// The version that this region knows: whoever states none means that one.
fn version_of(api: &Api, app: &AppId) -> String {
    api.context.config.tenants().version_of_app(app).to_owned()
}

/// Waits until this gateway knows what was written, so that whoever was answered can use it here.
pub(super) async fn known(api: &Api, is_known: impl Fn(&Tenants) -> bool) {
    let config = &api.context.config;
    let mut changes = config.changes();
    let waiting = async {
        while !is_known(&config.tenants()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    if timeout(KNOWN_WITHIN, waiting).await.is_err() {
        tracing::warn!("this region does not know yet what an admin gateway wrote");
    }
}

fn may_see<R>(by: &Administrator<R>, app: &AppId) -> bool {
    by.only().is_none_or(|own| own == app)
}

/// When the keys of `apps` were last used, by their ids; nothing if that cannot be read.
async fn last_uses(api: &Api, tenants: &Tenants, apps: &[&Arc<App>]) -> HashMap<String, Timestamp> {
    let Context { js, border, clock, .. } = &*api.context;
    let keys = apps.iter().flat_map(|app| keys_of(tenants, &app.id));
    let keys: Vec<&str> = keys.map(|key| key.key_id.as_str()).collect();
    let used = key_use::read(js, border, &keys, clock.now()).await;
    used.unwrap_or_else(|error| {
        tracing::warn!(%error, "apps are shown without when their keys were used");
        HashMap::new()
    })
}

fn shown(api: &Api, tenants: &Tenants, app: &App, used: &HashMap<String, Timestamp>) -> AppDocument {
    let keys = keys_of(tenants, &app.id).map(|key| {
        let used_at = used.get(&key.key_id).copied();
        KeyDocument::of(key, None).used(used_at)
    });
    AppDocument::of(app, &api.context.mesh_key, keys.collect())
}

pub(super) fn tag(version: &str) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).expect("versions are hexadecimal")
}

/// The version that the thing must have; of `*`, and of weak ones, none is (RFC 9110 §13.1.1).
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    match version {
        Some(version) => Ok(Some(version.to_owned())),
        None => Err(Invalid::new("If-Match", "must be one version as ETag has it, in double quotes").into()),
    }
}

fn parse_json(body: &[u8]) -> Result<serde_json::Value, Problem> {
    serde_json::from_slice(body).map_err(|_| Invalid::new("body", "must be JSON").into())
}

fn not_an_operator() -> Problem {
    Problem::new(FORBIDDEN, "Only an operator's key may read and write regions.")
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unauthenticated => unknown(),
            Refusal::Lacking(scope) => lacking(scope),
            Refusal::Suspended => Self::suspended(),
            Refusal::NotFound(what) => Self::new(NOT_FOUND, format!("There is no such {what} that this key may see.")),
            Refusal::OperatorOnly(member) => Self::new(
                FORBIDDEN,
                format!("Only an operator's key may change {member}. Nothing was stored."),
            ),
            Refusal::Invalid { field, rule } => Invalid::new(field, rule).into(),
            Refusal::TooMany(max) => Self::new(
                RATE_LIMITED,
                format!("There may be at most {max}. Remove one that is not needed any more; nothing was stored."),
            ),
            Refusal::VersionConflict => Self::new(
                VERSION_CONFLICT,
                "Read it again, and repeat with its new version. Nothing was stored.",
            ),
            Refusal::Unavailable(why) => {
                tracing::warn!(why, "an admin gateway could not write");
                unreachable()
            }
        }
    }
}
