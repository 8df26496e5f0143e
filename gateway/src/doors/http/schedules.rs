//! `/v1/schedules`: notifications that recur.

use std::sync::Arc;

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::{
    api_key::Scope,
    id::ScheduleId,
    invalid::Invalid,
    nats::{
        publish::NotStored,
        recurring::{self, Alarm, Definition, Late, Stored},
    },
    only_objects,
    policy::recurrence::Recurrence,
    tolerant::or_default,
};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    api::Api,
    apps::{if_match, tag},
    auth::{Caller, ToHandleSent, ToReadStatus},
    begin_of_page,
    body::Json,
    limit,
    named::Named,
    notifications::silent,
    openapi,
    problem::{NOT_FOUND, Problem, VERSION_CONFLICT},
};
use crate::{
    intake::{
        budget::TooMany,
        order::{Addressees, Order},
        plan::RETRY_FULL_AFTER,
        request::{self, Refused, SendRequest, Terms},
    },
    json::Unread,
};

/// Maximum number of schedules of one app in a region.
const SCHEDULES_MAX: u64 = 1000;

/// Maximum number of schedules in one list.
const LISTED_MAX: usize = 100;

/// Schedules of a list that are read at a time.
const AT_ONCE: usize = 16;

/// A notification that recurs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct PutSchedule {
    /// When, in the local time of `timezone`: minute, hour, day of month, month, day of week.
    cron: String,
    /// The time zone.
    timezone: String,
    /// The notification of each instant, whose event id is made of schedule and instant.
    #[schema(value_type = SendRequest)]
    notification: Box<RawValue>,
    /// Not before this.
    #[schema(value_type = Option<String>, format = DateTime)]
    starts_at: Option<Timestamp>,
    /// Not after this.
    #[schema(value_type = Option<String>, format = DateTime)]
    ends_at: Option<Timestamp>,
    /// What happens to an instant that was missed while nothing ran.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(default = "send")]
    late: Late,
    /// Whether nothing fires.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(default = false)]
    paused: bool,
}

only_objects!(PutSchedule);

/// A notification that recurs, and when.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Schedule)]
pub(crate) struct ScheduleResponse {
    schedule_id: ScheduleId,
    cron: String,
    timezone: String,
    #[schema(value_type = SendRequest)]
    notification: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    starts_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    ends_at: Option<Timestamp>,
    late: Late,
    paused: bool,
    /// When the next one is due; absent if there is none, or it is due just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    next_at: Option<Timestamp>,
    /// The instant of the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    last_at: Option<Timestamp>,
}

/// A page of schedules.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ScheduleList {
    /// The schedules, without those that were changed while they were read.
    schedules: Vec<ScheduleResponse>,
    /// The cursor of the next page; null if this page is the last.
    next: Option<String>,
}

/// Create or replace a schedule
///
/// The notification of each instant is accepted by this region when its time comes. Replacing a schedule withdraws nothing that has
/// fired.
#[utoipa::path(
    put,
    path = "/v1/schedules/{schedule_id}",
    operation_id = "putSchedule",
    tag = "schedules",
    params(
        ("schedule_id" = ScheduleId, Path, description = "The name of the schedule"),
        ("If-Match" = Option<String>, Header, description = "The version that it must have", pattern = "^\"[0-9a-f]+\"$"),
    ),
    request_body = PutSchedule,
    responses(
        (status = 200, description = "Replaced", body = ScheduleResponse),
        (status = 201, description = "Created", body = ScheduleResponse),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["notifications:write"])),
)]
pub(crate) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller<ToHandleSent>,
    Named(id): Named<ScheduleId>,
    headers: HeaderMap,
    Json(wanted): Json<PutSchedule>,
) -> Result<Response, Problem> {
    let (js, app, now) = (&api.context.js, &caller.app.id, api.context.clock.now());
    let (recurrence, order) = wanted.check(&api, &caller, now)?;
    if matches!(order.to, Addressees::Topic(_)) {
        caller.require(Scope::Broadcast)?;
    }
    let (former, sequence) = recurring::read(js, app, &id).await.map_err(silent)?;
    let known = former.as_ref().map(|former| format!("{:x}", former.sequence));
    if if_match(&headers)?.is_some_and(|wanted| Some(wanted) != known) {
        return Err(conflict());
    }
    if former.is_none() && recurring::count(js, app).await.map_err(silent)? >= SCHEDULES_MAX {
        let limit = "schedules";
        return Err(TooMany {
            limit,
            retry_after: RETRY_FULL_AFTER,
        }
        .into());
    }
    let last_at = recurring::alarm(js, app, &id)
        .await
        .map_err(silent)?
        .and_then(|alarm| alarm.last_at);
    let definition = wanted.into_definition();
    let changed = |error| match error {
        NotStored::Refused => conflict(),
        error => Problem::from(error),
    };
    let sequence = recurring::define(js, app, &id, &definition, sequence)
        .await
        .map_err(changed)?;
    let alarm = Alarm {
        revision: definition.revision,
        at: definition.next(&recurrence, now),
        last_at,
    };
    recurring::arm(js, app, &id, alarm, sequence).await.map_err(changed)?;
    let status = if former.is_some() {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    let stored = Stored {
        id,
        definition,
        sequence,
    };
    Ok((
        status,
        etag(sequence),
        axum::Json(ScheduleResponse::of(stored, Some(alarm))),
    )
        .into_response())
}

/// Get a schedule
#[utoipa::path(
    get,
    path = "/v1/schedules/{schedule_id}",
    operation_id = "getSchedule",
    tag = "schedules",
    params(("schedule_id" = ScheduleId, Path, description = "The name of the schedule")),
    responses((status = 200, description = "The schedule", body = ScheduleResponse), openapi::AnyRefusal, openapi::ReadRefusal),
    security(("api_key" = ["notifications:read"])),
)]
pub(crate) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller<ToReadStatus>,
    Named(id): Named<ScheduleId>,
) -> Result<Response, Problem> {
    let (js, app) = (&api.context.js, &caller.app.id);
    let (stored, _) = recurring::read(js, app, &id).await.map_err(silent)?;
    let stored = stored.ok_or_else(|| Problem::new(NOT_FOUND, "There is no schedule of this name."))?;
    let alarm = recurring::alarm(js, app, &id).await.map_err(silent)?;
    Ok((etag(stored.sequence), axum::Json(ScheduleResponse::of(stored, alarm))).into_response())
}

/// The query of a list of schedules.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ScheduleQuery {
    /// Maximum number of schedules.
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<usize>,
    /// The `next` of the previous page.
    cursor: Option<String>,
}

/// List schedules
///
/// Those of this region, in the order of their last changes.
#[utoipa::path(
    get,
    path = "/v1/schedules",
    operation_id = "listSchedules",
    tag = "schedules",
    params(ScheduleQuery),
    responses((status = 200, description = "A page of schedules", body = ScheduleList), openapi::AnyRefusal, openapi::ReadRefusal),
    security(("api_key" = ["notifications:read"])),
)]
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller<ToReadStatus>,
    query: Result<Query<ScheduleQuery>, QueryRejection>,
) -> Result<axum::Json<ScheduleList>, Problem> {
    let Query(query) = query.map_err(|_| Problem::from(Invalid::new("query", "may have limit and cursor")))?;
    let (js, app) = (&api.context.js, &caller.app.id);
    let from = begin_of_page(query.cursor.as_deref())?;
    let page = recurring::list(js, app, from, limit(query.limit, LISTED_MAX)?).await;
    let (stored, next) = page.map_err(silent)?;
    let with_alarm = async |stored: Stored| {
        let alarm = recurring::alarm(js, app, &stored.id).await?;
        Ok(ScheduleResponse::of(stored, alarm))
    };
    let schedules = stream::iter(stored).map(with_alarm).buffered(AT_ONCE);
    Ok(axum::Json(ScheduleList {
        schedules: schedules.try_collect().await.map_err(silent)?,
        next: next.map(|next| next.to_string()),
    }))
}

/// Remove a schedule
///
/// Nothing fires any more. What has fired is not withdrawn. Repeating is safe.
#[utoipa::path(
    delete,
    path = "/v1/schedules/{schedule_id}",
    operation_id = "deleteSchedule",
    tag = "schedules",
    params(("schedule_id" = ScheduleId, Path, description = "The name of the schedule")),
    responses((status = 204, description = "There is no schedule of this name"), openapi::WriteRefusal),
    security(("api_key" = ["notifications:write"])),
)]
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    caller: Caller<ToHandleSent>,
    Named(id): Named<ScheduleId>,
) -> Result<StatusCode, Problem> {
    recurring::remove(&api.context.js, &caller.app.id, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl PutSchedule {
    /// When it recurs, and the order that each instant becomes, if it keeps to every rule.
    fn check(&self, api: &Api, caller: &Caller<ToHandleSent>, now: Timestamp) -> Result<(Recurrence, Order), Refused> {
        if self.timezone == "recipient" {
            let rule = "is a word that is not built yet (policy)";
            return Err(Unread::NotBuilt(Invalid::new("timezone", rule)).into());
        }
        let recurrence = Recurrence::new(&self.cron, &self.timezone)?;
        if self
            .ends_at
            .zip(self.starts_at)
            .is_some_and(|(end, start)| end <= start)
        {
            return Err(Invalid::new("ends_at", "must be after starts_at").into());
        }
        if recurrence.next(now).is_none() {
            return Err(Invalid::new("cron", "must name a time that comes").into());
        }
        let terms = Terms {
            app: &caller.app,
            by_test_key: false,
            ids: &api.context.config.id_key(),
            at: now,
            recipients_max: api.limits.recipients,
            regions: api.context.jobs_of_topic(&caller.app),
        };
        let order = request::recurring(&self.notification, &terms).map_err(|refused| match refused {
            Refused::Unread(Unread::Invalid(invalid)) => invalid.within("notification").into(),
            Refused::Unread(Unread::NotBuilt(invalid)) => Unread::NotBuilt(invalid.within("notification")).into(),
            refused => refused,
        })?;
        Ok((recurrence, order))
    }

    fn into_definition(self) -> Definition {
        Definition {
            cron: self.cron,
            timezone: self.timezone,
            starts_at: self.starts_at,
            ends_at: self.ends_at,
            late: self.late,
            paused: self.paused,
            notification: self.notification,
            revision: Uuid::new_v4(),
        }
    }
}

impl ScheduleResponse {
    fn of(Stored { id, definition, .. }: Stored, alarm: Option<Alarm>) -> Self {
        let alarm = alarm.filter(|alarm| alarm.revision == definition.revision);
        Self {
            schedule_id: id,
            cron: definition.cron,
            timezone: definition.timezone,
            notification: definition.notification,
            starts_at: definition.starts_at,
            ends_at: definition.ends_at,
            late: definition.late,
            paused: definition.paused,
            next_at: alarm.and_then(|alarm| alarm.at),
            last_at: alarm.and_then(|alarm| alarm.last_at),
        }
    }
}

fn etag(sequence: u64) -> [(header::HeaderName, HeaderValue); 1] {
    [(header::ETAG, tag(&format!("{sequence:x}")))]
}

fn conflict() -> Problem {
    Problem::new(VERSION_CONFLICT, "Read the schedule again, and repeat.")
}
