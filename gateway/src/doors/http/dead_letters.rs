//! `/v1/dead-letters`: what was given up, for people to look at and try again.

use axum::extract::{Query, State, rejection::QueryRejection};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::{
    channel::Channel,
    id::{AddressId, JobId, NotificationId, RecipientId, Region},
    invalid::Invalid,
};
use utoipa::{IntoParams, ToSchema};

use super::{
    auth::{Caller, ToAsk, ToSend},
    body::Json,
    named::Named,
    openapi,
    problem::{Document, LETTER_UNREADABLE, NOT_FOUND, Problem, REGION_UNREACHABLE},
};
use crate::records::dead_letters::{DeadLetters, Letter, LetterFilter, LetterId, Unhandled};

/// Letters of one answer, unless the caller wants fewer.
const LISTED_LETTERS_MAX: usize = 100;
/// Letters of one replay; a caller who wants more asks again.
const REPLAYED_LETTERS_MAX: usize = 1000;

/// Which letters are meant.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Wanted {
    /// Only of this channel.
    channel: Option<Channel>,
    /// Only with this reason.
    reason: Option<String>,
    /// Only that died at or after this time (RFC 3339).
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Only that died before this time (RFC 3339).
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// At most so many; 1 to 100.
    limit: Option<usize>,
    /// `next` of the former answer.
    cursor: Option<String>,
}

/// Which letters to replay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replay {
    /// Only of this channel.
    channel: Option<Channel>,
    /// Only with this reason.
    reason: Option<String>,
    /// Only that died at or after this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Only that died before this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// At most so many; 1 to 1000.
    limit: Option<usize>,
}

/// Some dead letters, oldest first within each region.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Listed {
    dead_letters: Vec<DeadLetter>,
    /// The cursor of the next page; null if this is the last.
    next: Option<String>,
    /// Regions that did not answer; their letters are missing here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreachable: Vec<Region>,
}

/// A notification that was given up for one address, or a message that nobody could read.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetter {
    /// Names the letter.
    id: String,
    /// The region that gave it up.
    region: Region,
    /// The way it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<Channel>,
    /// Why: the last reason of its provider, `unreadable`, or `interrupted`.
    reason: String,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// The caller's name for what happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    /// The notification.
    #[serde(skip_serializing_if = "Option::is_none")]
    notification_id: Option<NotificationId>,
    /// The job.
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<JobId>,
    /// Whom it was for.
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<RecipientId>,
    /// The address that was not reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    address_id: Option<AddressId>,
    /// How many attempts were made.
    attempt: u32,
    /// When it was given up.
    #[schema(value_type = String, format = DateTime)]
    died_at: Timestamp,
    /// The message as it came, if one letter was asked for and is JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    payload: Option<Box<RawValue>>,
}

/// What was replayed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Replayed {
    /// Letters that are under way again.
    replayed: usize,
    /// Whether more letters match.
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<bool>,
}

/// List dead letters
///
/// Of every region that can be reached. A letter stays for four weeks, or until it is replayed or deleted.
#[utoipa::path(
    get,
    path = "/v1/dead-letters",
    operation_id = "listDeadLetters",
    tag = "dead letters",
    params(Wanted),
    responses(
        (status = 200, description = "A page of them", body = Listed),
        openapi::AnyRefusal,
    ),
    security(("api_key" = ["notifications:read"])),
)]
pub(crate) async fn list(
    State(letters): State<DeadLetters>,
    caller: Caller<ToAsk>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<axum::Json<Listed>, Problem> {
    let Query(wanted) = wanted.map_err(|_| {
        let rule = "may have channel, reason, since, until (RFC 3339), limit and cursor";
        Problem::from(Invalid::new("query", rule))
    })?;
    let most = limit(wanted.limit, LISTED_LETTERS_MAX)?;
    let from = wanted.cursor.map(|cursor| cursor.parse()).transpose();
    let from = from.map_err(|()| Invalid::new("cursor", "must be the `next` of a former answer"))?;
    let filter = LetterFilter {
        channel: wanted.channel,
        reason: wanted.reason,
        since: wanted.since,
        until: wanted.until,
    };
    let page = letters.list(&caller.app.id, &filter, from, most).await;
    Ok(axum::Json(Listed {
        dead_letters: page.letters.into_iter().map(DeadLetter::from).collect(),
        next: page.next.map(|next| next.to_string()),
        unreachable: page.unreachable,
    }))
}

/// Look at one dead letter
#[utoipa::path(
    get,
    path = "/v1/dead-letters/{letter_id}",
    operation_id = "getDeadLetter",
    tag = "dead letters",
    params(("letter_id" = String, Path, description = "The letter")),
    responses(
        (status = 200, description = "The letter with its message", body = DeadLetter),
        openapi::AnyRefusal,
        (status = 503, description = "Its region does not answer", body = Document,
            content_type = "application/problem+json"),
    ),
    security(("api_key" = ["notifications:read"])),
)]
pub(crate) async fn get(
    State(letters): State<DeadLetters>,
    caller: Caller<ToAsk>,
    Named(id): Named<LetterId>,
) -> Result<axum::Json<DeadLetter>, Problem> {
    let letter = letters.get(&caller.app.id, &id).await?;
    let payload = serde_json::from_slice(&letter.payload).ok();
    Ok(axum::Json(DeadLetter {
        payload,
        ..letter.into()
    }))
}

/// Replay a dead letter
///
/// One more attempt is made at the same delivery, under the same delivery id, with a new time to live. If that fails
/// too, a new letter tells of it.
#[utoipa::path(
    post,
    path = "/v1/dead-letters/{letter_id}/replay",
    operation_id = "replayDeadLetter",
    tag = "dead letters",
    params(("letter_id" = String, Path, description = "The letter")),
    responses(
        (status = 202, description = "Under way again; the letter is gone", body = Replayed),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["notifications:write"])),
)]
pub(crate) async fn replay(
    State(letters): State<DeadLetters>,
    caller: Caller<ToSend>,
    Named(id): Named<LetterId>,
) -> Result<(StatusCode, axum::Json<Replayed>), Problem> {
    let letter = letters.get(&caller.app.id, &id).await?;
    letters.replay(&caller.app.id, letter).await?;
    let replayed = Replayed {
        replayed: 1,
        more: None,
    };
    Ok((StatusCode::ACCEPTED, axum::Json(replayed)))
}

/// Replay many dead letters
///
/// Those that match, the oldest first. Letters that cannot be replayed are passed over. When an answer is an error, some
/// may be under way again; repeating replays the rest.
#[utoipa::path(
    post,
    path = "/v1/dead-letters/replay",
    operation_id = "replayDeadLetters",
    tag = "dead letters",
    request_body = Replay,
    responses(
        (status = 202, description = "Under way again", body = Replayed),
        openapi::AnyRefusal,
        (status = 503, description = "Not all stored; repeat", body = Document,
            content_type = "application/problem+json"),
    ),
    security(("api_key" = ["notifications:write"])),
)]
pub(crate) async fn replay_many(
    State(letters): State<DeadLetters>,
    caller: Caller<ToSend>,
    Json(wanted): Json<Replay>,
) -> Result<(StatusCode, axum::Json<Replayed>), Problem> {
    let most = limit(wanted.limit, REPLAYED_LETTERS_MAX)?;
    let filter = LetterFilter {
        channel: wanted.channel,
        reason: wanted.reason,
        since: wanted.since,
        until: wanted.until,
    };
    let page = letters.list(&caller.app.id, &filter, None, most).await;
    let mut replayed = 0;
    for letter in page.letters {
        match letters.replay(&caller.app.id, letter).await {
            Ok(()) => replayed += 1,
            Err(Unhandled::NoLane | Unhandled::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let more = Some(page.next.is_some());
    Ok((StatusCode::ACCEPTED, axum::Json(Replayed { replayed, more })))
}

/// Delete a dead letter
#[utoipa::path(
    delete,
    path = "/v1/dead-letters/{letter_id}",
    operation_id = "deleteDeadLetter",
    tag = "dead letters",
    params(("letter_id" = String, Path, description = "The letter")),
    responses(
        (status = 204, description = "Gone"),
        openapi::AnyRefusal,
        (status = 503, description = "Its region does not answer", body = Document,
            content_type = "application/problem+json"),
    ),
    security(("api_key" = ["notifications:write"])),
)]
pub(crate) async fn delete(
    State(letters): State<DeadLetters>,
    caller: Caller<ToSend>,
    Named(id): Named<LetterId>,
) -> Result<StatusCode, Problem> {
    let letter = letters.get(&caller.app.id, &id).await?;
    letters.delete(&caller.app.id, letter).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn limit(wanted: Option<usize>, most: usize) -> Result<usize, Invalid> {
    match wanted {
        None => Ok(most),
        Some(wanted) if (1..=most).contains(&wanted) => Ok(wanted),
        Some(_) => Err(Invalid::new("limit", format_args!("must be 1 to {most}"))),
    }
}

impl From<Letter> for DeadLetter {
    fn from(letter: Letter) -> Self {
        Self {
            id: letter.id.to_string(),
            region: letter.id.region,
            channel: letter.channel,
            reason: letter.reason,
            detail: letter.detail,
            event_id: letter.event_id,
            notification_id: letter.notification,
            job_id: letter.job,
            recipient: letter.recipient,
            address_id: letter.address,
            attempt: letter.attempt,
            died_at: letter.died_at,
            payload: None,
        }
    }
}

impl From<Unhandled> for Problem {
    fn from(error: Unhandled) -> Self {
        match error {
            Unhandled::NotFound => Self::new(NOT_FOUND, "No dead letter with this id is there."),
            Unhandled::NoLane => Self::new(
                LETTER_UNREADABLE,
                "It came on a subject that names no lane; it can only be deleted.",
            ),
            Unhandled::Forbidden => Self::not_permitted(),
            Unhandled::Unreachable => Self::new(REGION_UNREACHABLE, "Repeating is safe."),
            Unhandled::NotStored(error) => error.into(),
        }
    }
}
