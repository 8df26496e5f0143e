//! `/v1/dead-letters`: lists, shows, replays and deletes dead letters.

use std::sync::Arc;

use axum::extract::{Query, State, rejection::QueryRejection};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::{
    app::App,
    channel::Channel,
    id::{AddressId, JobId, NotificationId, RecipientId, Region},
    invalid::Invalid,
    nats::subject::Tier,
    only_objects,
    tolerant::whole,
};
use utoipa::{IntoParams, ToSchema};

use super::{
    api::Api,
    auth::{Caller, ToHandleSent, ToReadStatus},
    body::Json,
    limit,
    named::Named,
    openapi,
    problem::{Document, LETTER_UNREADABLE, NOT_FOUND, Problem, REGION_UNREACHABLE},
};
use crate::records::dead_letters::{DeadLetters, Letter, LetterFilter, LetterId, Unhandled};

/// Dead letters in one answer, at most.
const LISTED_LETTERS_MAX: usize = 100;
/// Dead letters that one request replays, at most.
const REPLAYED_LETTERS_MAX: usize = 1000;

/// The query of a list of dead letters.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LetterQuery {
    /// Only letters of this channel.
    channel: Option<Channel>,
    /// Only letters with this reason.
    reason: Option<String>,
    /// Only letters that were given up at or after this time (RFC 3339).
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Only letters that were given up before this time (RFC 3339).
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// Maximum number of letters: 1 to 100, by default 100.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// The `next` of the previous page.
    cursor: Option<String>,
}

/// Selects the letters to replay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schema(as = Replay)]
pub(crate) struct ReplayRequest {
    /// Only letters of this channel.
    channel: Option<Channel>,
    /// Only letters with this reason.
    reason: Option<String>,
    /// Only letters that were given up at or after this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Only letters that were given up before this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// Maximum number of letters: 1 to 1000, by default 1000.
    #[serde(default, deserialize_with = "whole")]
    limit: Option<usize>,
}

only_objects!(ReplayRequest);

/// A page of dead letters, oldest first within each region.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Listed)]
pub(crate) struct DeadLettersResponse {
    /// The letters, without their payload.
    dead_letters: Vec<DeadLetter>,
    /// The cursor of the next page; null if this page is the last.
    next: Option<String>,
    /// Regions that did not answer; their letters are missing from this page.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreachable: Vec<Region>,
}

/// A dead letter: a job that was given up for one address, or an unreadable message.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetter {
    /// The id of the letter: its region and a number, such as `eu-42`.
    id: String,
    /// The region that gave it up.
    region: Region,
    /// The channel of the job; absent if the subject of the message is unreadable.
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<Channel>,
    /// Why it was given up: the reason of the provider's last answer, `unreadable`, `interrupted` or `refused`.
    reason: String,
    /// Explains the reason, such as the field that broke a rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// The caller's event id.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    /// The id of the notification; absent if the message is unreadable.
    #[serde(skip_serializing_if = "Option::is_none")]
    notification_id: Option<NotificationId>,
    /// The id of the job; absent if the message is unreadable.
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<JobId>,
    /// The recipient; absent if the message is unreadable.
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<RecipientId>,
    /// The id of the address that was not reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    address_id: Option<AddressId>,
    /// How many attempts were made.
    attempt: u32,
    /// When it was given up.
    #[schema(value_type = String, format = DateTime)]
    died_at: Timestamp,
    /// The size of the original message in bytes, if it was too large to be kept whole. Such a letter cannot be replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    original_bytes: Option<u64>,
    /// The original message, if it is JSON; only in the answer for one letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    payload: Option<Box<RawValue>>,
    /// Of what a service published and a gateway refused: the place of the message in the intake of its app.
    #[serde(skip_serializing_if = "Option::is_none")]
    intake_sequence: Option<u64>,
    /// The place of the notification among those of that message, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
}

/// The result of a replay.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Replayed)]
pub(crate) struct ReplayResponse {
    /// Number of letters that were replayed.
    replayed: usize,
    /// Whether more letters match; only in the answer for many letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<bool>,
}

/// List dead letters
///
/// Lists the letters of every region that can be reached. A letter is kept for four weeks, or until it is replayed or
/// deleted.
#[utoipa::path(
    get,
    path = "/v1/dead-letters",
    operation_id = "listDeadLetters",
    tag = "dead letters",
    params(LetterQuery),
    responses(
        (status = 200, description = "A page of letters", body = DeadLettersResponse),
        openapi::AnyRefusal,
    ),
    security(("api_key" = ["notifications:read"])),
)]
pub(crate) async fn list(
    State(letters): State<DeadLetters>,
    caller: Caller<ToReadStatus>,
    query: Result<Query<LetterQuery>, QueryRejection>,
) -> Result<axum::Json<DeadLettersResponse>, Problem> {
    let Query(query) = query.map_err(|_| {
        let rule = "may have channel, reason, since, until (RFC 3339), limit and cursor";
        Problem::from(Invalid::new("query", rule))
    })?;
    let max = limit(query.limit, LISTED_LETTERS_MAX)?;
    let from = query.cursor.map(|cursor| cursor.parse()).transpose();
    let from = from.map_err(|()| Invalid::new("cursor", "must be the `next` of a previous answer"))?;
    let filter = LetterFilter {
        channel: query.channel,
        reason: query.reason,
        since: query.since,
        until: query.until,
    };
    let page = letters.list(&caller.app.id, &filter, from, max).await;
    Ok(axum::Json(DeadLettersResponse {
        dead_letters: page.letters.into_iter().map(DeadLetter::from).collect(),
        next: page.next.map(|next| next.to_string()),
        unreachable: page.unreachable,
    }))
}

/// Get a dead letter
#[utoipa::path(
    get,
    path = "/v1/dead-letters/{letter_id}",
    operation_id = "getDeadLetter",
    tag = "dead letters",
    params(("letter_id" = String, Path, description = "The id of the letter")),
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
    caller: Caller<ToReadStatus>,
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
/// Makes one more attempt at the same delivery, with the same delivery id and a new time to live. If that fails too,
/// the delivery becomes a new letter.
#[utoipa::path(
    post,
    path = "/v1/dead-letters/{letter_id}/replay",
    operation_id = "replayDeadLetter",
    tag = "dead letters",
    params(("letter_id" = String, Path, description = "The id of the letter")),
    responses(
        (status = 202, description = "The attempt is stored, and the letter is removed", body = ReplayResponse),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["notifications:write"])),
)]
pub(crate) async fn replay(
    State(api): State<Arc<Api>>,
    caller: Caller<ToHandleSent>,
    Named(id): Named<LetterId>,
) -> Result<(StatusCode, axum::Json<ReplayResponse>), Problem> {
    let letter = api.dead_letters.get(&caller.app.id, &id).await?;
    let tier = tier(&api, &caller.app, &letter);
    api.dead_letters.replay(&caller.app.id, letter, tier).await?;
    let response = ReplayResponse {
        replayed: 1,
        more: None,
    };
    Ok((StatusCode::ACCEPTED, axum::Json(response)))
}

/// Replay many dead letters
///
/// Replays the letters that match, oldest first. Letters that cannot be replayed are skipped. If the answer is an
/// error, some letters may have been replayed; repeating the request replays the rest.
#[utoipa::path(
    post,
    path = "/v1/dead-letters/replay",
    operation_id = "replayDeadLetters",
    tag = "dead letters",
    request_body = ReplayRequest,
    responses(
        (status = 202, description = "The attempts are stored, and the letters are removed", body = ReplayResponse),
        openapi::AnyRefusal,
        (status = 503, description = "Not every attempt was stored; repeat", body = Document,
            content_type = "application/problem+json"),
    ),
    security(("api_key" = ["notifications:write"])),
)]
pub(crate) async fn replay_many(
    State(api): State<Arc<Api>>,
    caller: Caller<ToHandleSent>,
    Json(request): Json<ReplayRequest>,
) -> Result<(StatusCode, axum::Json<ReplayResponse>), Problem> {
    let max = limit(request.limit, REPLAYED_LETTERS_MAX)?;
    let filter = LetterFilter {
        channel: request.channel,
        reason: request.reason,
        since: request.since,
        until: request.until,
    };
    let letters = &api.dead_letters;
    let page = letters.list(&caller.app.id, &filter, None, max).await;
    let mut replayed = 0;
    for letter in page.letters {
        let tier = tier(&api, &caller.app, &letter);
        match letters.replay(&caller.app.id, letter, tier).await {
            Ok(()) => replayed += 1,
            Err(Unhandled::NoLane | Unhandled::Cut | Unhandled::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let more = Some(page.next.is_some());
    Ok((StatusCode::ACCEPTED, axum::Json(ReplayResponse { replayed, more })))
}

/// Delete a dead letter
#[utoipa::path(
    delete,
    path = "/v1/dead-letters/{letter_id}",
    operation_id = "deleteDeadLetter",
    tag = "dead letters",
    params(("letter_id" = String, Path, description = "The id of the letter")),
    responses(
        (status = 204, description = "Deleted"),
        openapi::AnyRefusal,
        (status = 503, description = "Its region does not answer", body = Document,
            content_type = "application/problem+json"),
    ),
    security(("api_key" = ["notifications:write"])),
)]
pub(crate) async fn delete(
    State(letters): State<DeadLetters>,
    caller: Caller<ToHandleSent>,
    Named(id): Named<LetterId>,
) -> Result<StatusCode, Problem> {
    let letter = letters.get(&caller.app.id, &id).await?;
    letters.delete(&caller.app.id, letter).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Where a replay goes: it is work of the app like that of a request, and takes its part of the app's share of the lane.
fn tier(api: &Api, app: &App, letter: &Letter) -> Tier {
    let lane = letter.replay_lane();
    lane.map_or(Tier::Main, |lane| api.intake.budgets.tier(app, &lane))
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
            original_bytes: letter.original_bytes,
            payload: None,
            intake_sequence: letter.intake_sequence,
            index: letter.index,
        }
    }
}

impl From<Unhandled> for Problem {
    fn from(error: Unhandled) -> Self {
        match error {
            Unhandled::NotFound => Self::new(NOT_FOUND, "There is no dead letter with this id."),
            Unhandled::NoLane => Self::new(
                LETTER_UNREADABLE,
                "The subject of its message names no lane of this app; it can only be deleted.",
            ),
            Unhandled::Cut => Self::new(
                LETTER_UNREADABLE,
                "Its message was too large to be kept whole; it can only be deleted.",
            ),
            Unhandled::Forbidden => Self::not_permitted(),
            Unhandled::Unreachable => Self::new(
                REGION_UNREACHABLE,
                "The region of this dead letter does not answer. Repeating is safe.",
            ),
            Unhandled::NotStored(error) => error.into(),
        }
    }
}
