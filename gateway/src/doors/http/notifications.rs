//! `/v1/notifications/{notification_id}`: the status of a notification, changing what waits for its time, and withdrawing; and the
//! same of a group.

use std::sync::Arc;

use axum::extract::{Query, State, rejection::QueryRejection};
use futures::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use shared::{
    id::{EventId, GroupKey, NotificationId},
    invalid::Invalid,
    nats::{
        cancelled,
        direct::NoAnswer,
        planned::{self, Cancel, Change, Decision, Group, Known, Member},
        topology::RECEIPTS_MAX_AGE,
    },
};
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use super::{
    api::Api,
    auth::{Caller, ToHandleSent, ToReadStatus},
    begin_of_page,
    body::Json,
    limit,
    named::Named,
    openapi,
    problem::{ALREADY_FIRED, Document, NOT_FOUND, Problem, STATUS_UNAVAILABLE},
};
use crate::{
    intake::request::{NotificationChange, Terms},
    records::{
        receipts::{History, Unanswered},
        status::Status,
    },
};

/// Maximum number of notifications in one list.
const LISTED_MAX: usize = 100;

/// Notifications of a group that are read, or withdrawn, at a time.
const AT_ONCE: usize = 16;

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
    let status = look_up(&api, &caller, id).await?;
    status.map(axum::Json).ok_or_else(unknown)
}

/// The status of a notification; `None` if nothing is known of it.
async fn look_up(api: &Api, caller: &Caller<ToReadStatus>, id: NotificationId) -> Result<Option<Status>, Problem> {
    let (app, now) = (&caller.app.id, api.context.clock.now());
    let (history, known) = tokio::join!(
        api.receipts.history(app, id, now),
        planned::find(&api.context.js, app, id)
    );
    let known = match history.map_err(unreadable)? {
        // Receipts say what became of it. When it was to be sent is missing while the stream of plans does not answer.
        Some(history) => {
            let status = status(api, caller, id, history).await;
            return Ok(Some(match known {
                Ok(Some(Known::Decided(fate))) => status.planned_as(&fate.plan),
                Ok(Some(Known::Waiting(planned))) => status.planned_as(&planned.plan),
                Ok(None) | Err(_) => status,
            }));
        }
        None => known.map_err(silent)?,
    };
    Ok(known.map(|known| Status::of_planned(id, &known)))
}

/// The status that follows from `history`, with what was reported later.
async fn status(api: &Api, caller: &Caller<ToReadStatus>, id: NotificationId, history: History) -> Status {
    let regions = history.regions_with_feedback();
    let feedback = api.feedback.of(&caller.app.id, id, &regions).await;
    Status::of(id, history).with_feedback(feedback)
}

/// The query of a list of notifications: exactly one of `event_id` and `group_key`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct NotificationQuery {
    /// The caller's event id.
    event_id: Option<EventId>,
    /// The group, whose notifications are listed in the order in which they were accepted or planned.
    group_key: Option<GroupKey>,
    /// Maximum number of notifications of the group.
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<usize>,
    /// The `next` of the previous page of the group.
    cursor: Option<String>,
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

/// List notifications by event id or group
///
/// By event id for services that publish over NATS, and so get no notification id as answer: the list is empty if no
/// notification with this event id is known yet. By group: those that gateways of this region accepted or planned, as far as
/// anything is known of them.
#[utoipa::path(
    get,
    path = "/v1/notifications",
    operation_id = "findNotifications",
    tag = "notifications",
    params(NotificationQuery),
    responses(
        (status = 200, description = "The notifications", body = StatusList),
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
    let rule = "must have event_id, or group_key with limit and cursor, and nothing else yet";
    let broken = || Problem::from(Invalid::new("query", rule));
    let Query(query) = query.map_err(|_| broken())?;
    match (query.event_id, query.group_key) {
        (Some(event), None) if query.limit.is_none() && query.cursor.is_none() => {
            let id = NotificationId::of(&caller.app.id, &caller.trial().name(&event));
            let found = look_up(&api, &caller, id).await?;
            Ok(axum::Json(StatusList {
                notifications: found.into_iter().collect(),
                next: None,
            }))
        }
        (None, Some(group)) => {
            let count = limit(query.limit, LISTED_MAX)?;
            let from = begin_of_page(query.cursor.as_deref())?;
            list_group(&api, &caller, &group, from, count).await
        }
        _ => Err(broken()),
    }
}

async fn list_group(
    api: &Api,
    caller: &Caller<ToReadStatus>,
    key: &GroupKey,
    from: u64,
    count: usize,
) -> Result<axum::Json<StatusList>, Problem> {
    let group = Group {
        key,
        of_test_keys: caller.trial().test_key,
    };
    let page = planned::members(&api.context.js, &caller.app.id, group, from, count).await;
    let (members, next) = page.map_err(silent)?;
    let found: Vec<Option<Status>> = stream::iter(members)
        .map(|member| look_up(api, caller, member.notification))
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(axum::Json(StatusList {
        notifications: found.into_iter().flatten().map(|status| status.in_group(key)).collect(),
        next: next.map(|next| next.to_string()),
    }))
}

/// Change a notification that waits for its time
///
/// Ask a gateway of the region that planned it. After 200 the notification is as changed: nothing of what it was before is sent.
/// Contents are replaced as a whole.
#[utoipa::path(
    patch,
    path = "/v1/notifications/{notification_id}",
    operation_id = "changeNotification",
    tag = "notifications",
    params(("notification_id" = NotificationId, Path, description = "The id of the notification")),
    request_body = NotificationChange,
    responses(
        (status = 200, description = "The notification waits as changed", body = Status),
        openapi::AnyRefusal,
        (status = 503, description = "It is not known whether the change is stored; repeat",
            body = Document, content_type = "application/problem+json"),
    ),
    security(("api_key" = ["notifications:write"])),
)]
pub(crate) async fn change(
    State(api): State<Arc<Api>>,
    caller: Caller<ToHandleSent>,
    Named(id): Named<NotificationId>,
    Json(change): Json<NotificationChange>,
) -> Result<axum::Json<Status>, Problem> {
    let context = &api.context;
    let (js, app, now) = (&context.js, &caller.app.id, context.clock.now());
    let ids = context.config.id_key();
    let changed = planned::change(js, app, id, now, |planned| {
        let terms = Terms {
            app: &caller.app,
            by_test_key: planned.plan.test_key,
            ids: &ids,
            at: now,
            recipients_max: api.limits.recipients,
            regions: context.jobs_of_topic(&caller.app),
        };
        change.apply(planned, &terms)
    });
    let already = |detail: &'static str| Err(Problem::new(ALREADY_FIRED, detail));
    match changed.await? {
        Change::Changed(planned) => {
            api.intake.keep_member(app, id, &planned.plan, now).await?;
            Ok(axum::Json(Status::of_planned(id, &Known::Waiting(planned))))
        }
        Change::Refused(refused) => Err(refused.into()),
        Change::Decided(Decision::Cancelled) => already("It was cancelled. Send another, with another event id."),
        Change::Decided(_) => already("Its time has come, and it is being sent."),
        Change::Unknown => match api.receipts.history(app, id, now).await.map_err(unreadable)? {
            Some(_) => already("It was sent, or is being sent."),
            None => Err(unknown()),
        },
    }
}

/// What a withdrawal came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WithdrawalState {
    /// Nothing of it was or will be sent.
    Cancelled,
    /// It is in progress: what was not sent yet ends as `cancelled`, and the status decides.
    Cancelling,
}

/// The answer to a withdrawal.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Withdrawal {
    /// What it came to.
    state: WithdrawalState,
}

/// Withdraw a notification
///
/// Ask a gateway of the region that accepted it. `cancelled` means that the notification still waited for its `send_at`: nothing of
/// it is ever sent. `cancelling` means that it is in progress: deliveries that were not sent yet end as `cancelled`, in each region
/// as soon as the withdrawal arrives there; deliveries that were sent cannot be recalled. Repeating is safe.
#[utoipa::path(
    delete,
    path = "/v1/notifications/{notification_id}",
    operation_id = "cancelNotification",
    tag = "notifications",
    params(("notification_id" = NotificationId, Path, description = "The id of the notification")),
    responses(
        (status = 202, description = "The withdrawal is stored", body = Withdrawal),
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
) -> Result<(StatusCode, axum::Json<Withdrawal>), Problem> {
    let context = &api.context;
    let (app, now) = (&caller.app.id, context.clock.now());
    let state = match planned::cancel(&context.js, app, id, now).await? {
        Cancel::Cancelled => WithdrawalState::Cancelled,
        Cancel::Fired => withdraw(&api, &caller, id).await?,
        Cancel::Unknown => {
            let history = api.receipts.history(app, id, now).await.map_err(unreadable)?;
            if history.is_none() {
                return Err(unknown());
            }
            withdraw(&api, &caller, id).await?
        }
    };
    Ok((StatusCode::ACCEPTED, axum::Json(Withdrawal { state })))
}

/// Withdraws what is in progress.
async fn withdraw(api: &Api, caller: &Caller<ToHandleSent>, id: NotificationId) -> Result<WithdrawalState, Problem> {
    let context = &api.context;
    let (app, now) = (&caller.app.id, context.clock.now());
    cancelled::cancel(&context.js, &context.border, &context.here, app, id, now).await?;
    Ok(WithdrawalState::Cancelling)
}

/// The query of the withdrawal of a group.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct GroupQuery {
    /// The group.
    group_key: GroupKey,
}

/// What the withdrawal of a group came to.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct GroupWithdrawal {
    /// Notifications of which nothing was or will be sent.
    cancelled: usize,
    /// Notifications in progress: what was not sent yet ends as `cancelled`.
    cancelling: usize,
    /// Whether others of the group remain; repeat the request.
    more: bool,
}

/// Withdraw a group of notifications
///
/// Withdraws every notification with this `group_key` that gateways of this region accepted or planned before, as if each were
/// withdrawn by its id. Those that have ended are left out. Repeating is safe.
#[utoipa::path(
    delete,
    path = "/v1/notifications",
    operation_id = "cancelGroup",
    tag = "notifications",
    params(GroupQuery),
    responses(
        (status = 202, description = "The withdrawals are stored", body = GroupWithdrawal),
        openapi::AnyRefusal,
        (status = 503, description = "Not every withdrawal was stored, or the receipts cannot be read; repeat",
            body = Document, content_type = "application/problem+json"),
    ),
    security(("api_key" = ["notifications:write"])),
)]
pub(crate) async fn cancel_group(
    State(api): State<Arc<Api>>,
    caller: Caller<ToHandleSent>,
    query: Result<Query<GroupQuery>, QueryRejection>,
) -> Result<(StatusCode, axum::Json<GroupWithdrawal>), Problem> {
    let rule = "must have group_key, 1 to 128 printable ASCII characters without spaces, and nothing else";
    let Query(GroupQuery { group_key }) = query.map_err(|_| Problem::from(Invalid::new("query", rule)))?;
    let group = Group {
        key: &group_key,
        of_test_keys: caller.trial().test_key,
    };
    // The answer is to come before the caller gives up.
    let until = Instant::now() + api.limits.request_timeout() / 2;
    let (mut answer, mut from) = (GroupWithdrawal::default(), Some(1));
    while let Some(next) = from {
        if Instant::now() >= until {
            answer.more = true;
            break;
        }
        let page = planned::members(&api.context.js, &caller.app.id, group, next, LISTED_MAX).await;
        let (members, next) = page.map_err(silent)?;
        from = next;
        let states: Vec<Option<WithdrawalState>> = stream::iter(members)
            .map(|member| cancel_member(&api, &caller, member))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        for state in states.into_iter().flatten() {
            match state {
                WithdrawalState::Cancelled => answer.cancelled += 1,
                WithdrawalState::Cancelling => answer.cancelling += 1,
            }
        }
    }
    Ok((StatusCode::ACCEPTED, axum::Json(answer)))
}

/// Withdraws one notification of a group; `None` if it has ended.
async fn cancel_member(
    api: &Api,
    caller: &Caller<ToHandleSent>,
    Member { notification, since }: Member,
) -> Result<Option<WithdrawalState>, Problem> {
    let (app, now) = (&caller.app.id, api.context.clock.now());
    let planned = planned::cancel(&api.context.js, app, notification, now).await?;
    if planned == Cancel::Cancelled {
        return Ok(Some(WithdrawalState::Cancelled));
    }
    let history = api.receipts.history(app, notification, now).await.map_err(unreadable)?;
    let may_be_sent = match history {
        Some(history) => !Status::of(notification, history).is_done(),
        // A gateway may accept it just now. Of what came long ago the receipts are gone.
        None => planned == Cancel::Fired || now.duration_since(since).unsigned_abs() < RECEIPTS_MAX_AGE,
    };
    if may_be_sent {
        return withdraw(api, caller, notification).await.map(Some);
    }
    Ok(None)
}

fn unknown() -> Problem {
    Problem::new(NOT_FOUND, "No notification with this id is known; it may be too old.")
}

fn unreadable(error: Unanswered) -> Problem {
    Problem::new(STATUS_UNAVAILABLE, error.to_string())
}

pub(super) fn silent(error: NoAnswer) -> Problem {
    match error {
        NoAnswer::Silent => Problem::new(STATUS_UNAVAILABLE, "What waits for its time cannot be read."),
        NoAnswer::Forbidden => Problem::not_permitted(),
    }
}
