//! `GET /v1/exports`: every recipient of an app, one on each line (NDJSON), as an import takes them.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Query, Request, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use http::header;
use serde::{Deserialize, Serialize};
use shared::{id::Region, invalid::Invalid};
use tokio::time::{Instant, timeout_at};
use utoipa::{IntoParams, ToSchema};

use super::{
    answer::Answer,
    api::Api,
    auth::{Caller, ToExport},
    connections::Connection,
    imports::NDJSON,
    openapi,
    problem::{Document, Problem},
};
use crate::recipients::{
    export::{Cursor, Export},
    import::ImportLine,
};

/// How long an export may keep its place. The caller gets the rest by another request, behind other callers.
const EXPORT_LASTS_AT_MOST: Duration = Duration::from_mins(10);

/// Where an export begins.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExportQuery {
    /// The `cursor` of the last line that was read, or the `next` of an export that was not complete.
    cursor: Option<String>,
}

/// The last line of an export that is not complete.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExportEnd {
    /// The regions that did not answer; recipients who live there are missing. Empty if the export lasted too long.
    unreachable: Vec<Region>,
    /// The cursor to continue with what is missing.
    next: String,
}

/// What a line of an export is.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes the lines, which are written one by one")]
enum ExportedLine {
    Recipient(Box<ImportLine>),
    End(ExportEnd),
}

/// Export recipients
///
/// Every recipient of the app in every region, one on each line (NDJSON), with the tokens of its devices and the secrets of its
/// receivers, as an import takes them. After a break continue with the `cursor` of the last line. A recipient who is changed
/// meanwhile may come twice. A complete export has recipients alone; one that is not ends with a line that names the
/// regions that did not answer. An app has one export at a time on each gateway.
#[utoipa::path(
    get,
    path = "/v1/exports",
    operation_id = "exportRecipients",
    tag = "recipients",
    params(ExportQuery),
    responses(
        (status = 200, description = "A recipient on each line", body = inline(ExportedLine),
            content_type = "application/x-ndjson"),
        openapi::AnyRefusal,
        (status = 503, description = "Other exports are in progress; repeat", body = Document,
            content_type = "application/problem+json"),
    ),
    security(("api_key" = ["recipients:export"])),
)]
pub(crate) async fn export(
    State(api): State<Arc<Api>>,
    caller: Caller<ToExport>,
    query: Result<Query<ExportQuery>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|_| Invalid::new("query", "may have cursor"))?;
    let cursor: Option<Cursor> = query.cursor.map(|cursor| cursor.parse()).transpose().map_err(|()| {
        let rule = "must be the `cursor` of a line, or the `next` of a former answer";
        Invalid::new("cursor", rule)
    })?;
    let app = caller.leave();
    let place = api.exports.enter(&app.id).inspect_err(|problem| {
        if problem.quota_frees_after().is_some() {
            api.context.telemetry.metrics.limited("exports", &app.id);
        }
    })?;
    // A connection is not idle while its export lasts.
    let in_progress = request.extensions().get::<Arc<Connection>>().map(Connection::continues);
    let answer = Answer::default();
    let reading = Body::new(answer.reading());
    let export = Export::new(api.homes.clone(), &app, cursor);
    tokio::spawn(async move {
        let read = run(&api, export, &answer).await;
        drop(place);
        if read {
            answer.complete();
        }
        drop(in_progress);
    });
    Ok(([(header::CONTENT_TYPE, NDJSON)], reading).into_response())
}

/// Writes page after page, each once the former is read. Returns whether the caller has read all.
async fn run(api: &Api, mut export: Export, answer: &Answer) -> bool {
    let ends_at = Instant::now() + EXPORT_LASTS_AT_MOST;
    while Instant::now() < ends_at && !api.exports.lifecycle.is_finishing() {
        let Some(lines) = export.page().await else { break };
        for line in lines {
            answer.push(&serde_json::to_vec(&line).expect("a recipient always serializes"));
        }
        // One that reads little at a time keeps its place no longer than others.
        if !matches!(timeout_at(ends_at, answer.read()).await, Ok(Ok(()))) {
            return false;
        }
    }
    if let Some((next, unreachable)) = export.missing() {
        let end = ExportEnd {
            unreachable,
            next: next.to_string(),
        };
        answer.push(&serde_json::to_vec(&end).expect("an end always serializes"));
    }
    answer.read().await.is_ok()
}
