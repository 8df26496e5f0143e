//! `/v1/notifications/{notification_id}`: the status of a notification, and withdrawing it.

use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;
use shared::{id::NotificationId, nats::cancelled};

use super::{
    api::Api,
    auth::{Caller, ToReadStatus, ToSend},
    named::Named,
    openapi,
    problem::{Document, NOT_FOUND, Problem, STATUS_UNAVAILABLE},
};
use crate::records::{receipts::Unanswered, status::Status};

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
        Ok(Some(history)) => Ok(axum::Json(Status::of(id, history))),
        Ok(None) => Err(unknown()),
        Err(error) => Err(unreadable(error)),
    }
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
    caller: Caller<ToSend>,
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
