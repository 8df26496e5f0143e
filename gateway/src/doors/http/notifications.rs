//! `/v1/notifications/{notification_id}`: the status of a notification, and withdrawing it.

use std::sync::Arc;

use axum::extract::{Query, State, rejection::QueryRejection};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use shared::{
    id::{EventId, NotificationId},
    invalid::Invalid,
    nats::cancelled,
};
use utoipa::{IntoParams, ToSchema};

use super::{
    api::Api,
    auth::{Caller, ToHandleSent, ToReadStatus},
    named::Named,
    openapi,
    problem::{Document, NOT_FOUND, Problem, STATUS_UNAVAILABLE},
};
use crate::records::{
    receipts::{History, Unanswered},
    status::Status,
};

/// Get the status of a notification
///
/// Ask a gateway of the region that accepted it. The status comes from the receipts of every region; those of a region
/// that is cut off are added when it is reachable again. `delivered` means that the provider accepted the push.
#[utoipa::path(
    get,
    path = "/v1/notifications/{notification_id}",
    operation_id = "getNotification",
    tag = "notifications",
    params(("notification_id" = NotificationId, Path, description = "The id of the notification")),
    responses(
        (status = 200, description = "The status as far as it is known", body = Status),
        openapi::AnyRefusal,
        (status = 503, description = "The receipts cannot be read", body = Document,
            content_type = "application/problem+json"),
    ),
    security(("api_key" = ["notifications:read"])),
)]
pub(crate) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller<ToReadStatus>,
    Named(id): Named<NotificationId>,
) -> Result<axum::Json<Status>, Problem> {
    let now = api.context.clock.now();
    match api.receipts.history(&caller.app.id, id, now).await {
        Ok(Some(history)) => Ok(axum::Json(status(&api, &caller, id, history).await)),
        Ok(None) => Err(unknown()),
        Err(error) => Err(unreadable(error)),
    }
}

/// The status that follows from `history`, with what was reported later.
async fn status(api: &Api, caller: &Caller<ToReadStatus>, id: NotificationId, history: History) -> Status {
    let regions = history.regions_with_feedback();
    let feedback = api.feedback.of(&caller.app.id, id, &regions).await;
    Status::of(id, history).with_feedback(feedback)
}

/// The query of a list of notifications.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct NotificationQuery {
    /// The caller's event id.
    event_id: EventId,
}

/// The notifications that match; an event id names at most one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StatusList)]
pub(crate) struct StatusList {
    /// The status of each.
    notifications: Vec<Status>,
    /// The cursor of the next page; null if this page is the last.
    next: Option<String>,
}

/// Find a notification by its event id
///
/// For services that publish over NATS, and so get no notification id as answer. The list is empty if no notification with
/// this event id is known yet.
#[utoipa::path(
    get,
    path = "/v1/notifications",
    operation_id = "findNotifications",
    tag = "notifications",
    params(NotificationQuery),
    responses(
        (status = 200, description = "The notification, or none", body = StatusList),
        openapi::AnyRefusal,
        (status = 503, description = "The receipts cannot be read", body = Document,
            content_type = "application/problem+json"),
    ),
    security(("api_key" = ["notifications:read"])),
)]
pub(crate) async fn find(
    State(api): State<Arc<Api>>,
    caller: Caller<ToReadStatus>,
    query: Result<Query<NotificationQuery>, QueryRejection>,
) -> Result<axum::Json<StatusList>, Problem> {
    let rule = "must have event_id, 1 to 255 printable ASCII characters without spaces, and nothing else yet";
    let Query(query) = query.map_err(|_| Problem::from(Invalid::new("query", rule)))?;
    let id = NotificationId::of(&caller.app.id, &caller.trial().name(&query.event_id));
    let history = api.receipts.history(&caller.app.id, id, api.context.clock.now());
    let found = history.await.map_err(unreadable)?;
    let found = match found {
        Some(history) => Some(status(&api, &caller, id, history).await),
        None => None,
    };
    Ok(axum::Json(StatusList {
        notifications: found.into_iter().collect(),
        next: None,
    }))
}

/// Withdraw a notification
///
/// Ask a gateway of the region that accepted it. Deliveries that were not sent yet end as `cancelled`, in each region
/// as soon as the withdrawal arrives there. Deliveries that were sent cannot be recalled. Repeating is safe.
#[utoipa::path(
    delete,
    path = "/v1/notifications/{notification_id}",
    operation_id = "cancelNotification",
    tag = "notifications",
    params(("notification_id" = NotificationId, Path, description = "The id of the notification")),
    responses(
        (status = 202, description = "The withdrawal is stored"),
        openapi::AnyRefusal,
        (status = 503, description = "The withdrawal was not stored, or the receipts cannot be read; repeat",
            body = Document, content_type = "application/problem+json"),
    ),
    security(("api_key" = ["notifications:write"])),
)]
pub(crate) async fn cancel(
    State(api): State<Arc<Api>>,
    caller: Caller<ToHandleSent>,
    Named(id): Named<NotificationId>,
) -> Result<StatusCode, Problem> {
    let context = &api.context;
    let history = api
        .receipts
        .history(&caller.app.id, id, context.clock.now())
        .await
        .map_err(unreadable)?;
    if history.is_none() {
        return Err(unknown());
    }
    cancelled::cancel(
        &context.js,
        &context.border,
        &context.here,
        &caller.app.id,
        id,
        context.clock.now(),
    )
    .await?;
    Ok(StatusCode::ACCEPTED)
}

fn unknown() -> Problem {
    Problem::new(NOT_FOUND, "No notification with this id is known; it may be too old.")
}

fn unreadable(error: Unanswered) -> Problem {
    Problem::new(STATUS_UNAVAILABLE, error.to_string())
}
