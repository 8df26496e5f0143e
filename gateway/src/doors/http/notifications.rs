//! `/v1/notifications/{id}`: what became of a notification, and withdrawing it.

use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;
use shared::{id::NotificationId, nats::cancelled};

use super::{
    api::Api,
    auth::{Caller, ToAsk, ToSend},
    named::Named,
    openapi,
    problem::{Document, NOT_FOUND, Problem, STATUS_UNAVAILABLE},
};
use crate::records::{receipts::Unanswered, status::Status};

/// Ask what became of a notification
///
/// Asked of the region that accepted it. Answered from the receipts of every region that can be reached; those of a
/// region that is cut off come when it is back. Push ends at `delivered`, which says that the provider accepted it.
#[utoipa::path(
    get,
    path = "/v1/notifications/{notification_id}",
    operation_id = "getNotification",
    tag = "notifications",
    params(("notification_id" = NotificationId, Path, description = "The notification")),
    responses(
        (status = 200, description = "What is known", body = Status),
        openapi::AnyRefusal,
        (status = 503, description = "The receipts cannot be read", body = Document,
            content_type = "application/problem+json"),
    ),
    security(("api_key" = ["notifications:read"])),
)]
pub(crate) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller<ToAsk>,
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
/// Asked of the region that accepted it. What was not sent yet ends as `cancelled`, in every region as soon as it hears of
/// it; what was sent stays sent. Repeating is harmless.
#[utoipa::path(
    delete,
    path = "/v1/notifications/{notification_id}",
    operation_id = "cancelNotification",
    tag = "notifications",
    params(("notification_id" = NotificationId, Path, description = "The notification")),
    responses(
        (status = 202, description = "It is withdrawn"),
        openapi::AnyRefusal,
        (status = 503, description = "Not stored, or the receipts cannot be read; repeat", body = Document,
            content_type = "application/problem+json"),
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
    cancelled::cancel(&context.js, &context.here, &caller.app.id, id, context.clock.now()).await?;
    Ok(StatusCode::ACCEPTED)
}

fn unknown() -> Problem {
    Problem::new(
        NOT_FOUND,
        "No notification with this id is known, or it is too long ago.",
    )
}

fn unreadable(error: Unanswered) -> Problem {
    Problem::new(STATUS_UNAVAILABLE, error.to_string())
}
