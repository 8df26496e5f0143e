//! `/v1/erasures/{erasure_id}`: erases a recipient in every region, and proves it.

use std::collections::BTreeMap;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use shared::{
    id::{ErasureId, RecipientId, Region},
    nats::{
        erasure::{self, Proof},
        topology::{IDEMPOTENCY_MAX_AGE, RECEIPTS_MAX_AGE, WORK_MAX_AGE},
    },
};
use utoipa::ToSchema;

use super::{
    auth::{Caller, ToWrite},
    named::Named,
    openapi,
    problem::{NOT_FOUND, Problem},
};
use crate::recipients::{erasures, homes::Homes};

/// An erasure, and what each region has done.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErasureResponse {
    /// The erasure.
    erasure_id: ErasureId,
    /// The recipient.
    recipient_id: RecipientId,
    /// Up to when: what was registered later stays.
    #[schema(value_type = String, format = DateTime)]
    requested_at: Timestamp,
    /// `done` once every region has erased what it held.
    state: &'static str,
    /// By region, what it has erased.
    regions: BTreeMap<Region, ErasedIn>,
    /// What is kept, and for how long.
    remains: [Remains; 5],
}

/// What one region has erased.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErasedIn {
    /// `pending` until the region has erased what it held; one that is cut off does so afterwards.
    state: &'static str,
    /// When it last erased anything, or found nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    done_at: Option<Timestamp>,
    /// Facts: profile, preferences, topics, and addresses with their tokens.
    facts: u64,
    /// Dead letters with their content.
    dead_letters: u64,
}

/// What an erasure leaves.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Remains {
    /// Where.
    store: &'static str,
    /// What it holds.
    holds: &'static str,
    /// Until when at the latest; absent if it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
}

/// Erase a recipient
///
/// Every region erases what it holds: profile, preferences, topics, addresses with their tokens, and dead letters. Notifications
/// that were accepted before and wait end as `cancelled`. The answer names the erasure; its proof says what each region has
/// done. What is registered afterwards under the same id is another registration.
#[utoipa::path(
    post,
    path = "/v1/recipients/{recipient_id}/erase",
    operation_id = "eraseRecipient",
    tag = "recipients",
    params(("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded")),
    responses(
        (status = 202, description = "Every region erases", body = ErasureResponse, headers(
            ("Location" = String, description = "The path of the proof"),
        )),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["recipients:write"])),
)]
pub(crate) async fn erase(
    State(homes): State<Homes>,
    caller: Caller<ToWrite>,
    Named(recipient): Named<RecipientId>,
) -> Result<Response, Problem> {
    let (id, erasure) = erasures::ask(&homes, &caller.key(recipient), &caller.app.default_region).await?;
    let location = HeaderValue::try_from(format!("/v1/erasures/{id}")).expect("UUIDs are ASCII");
    let answer = ErasureResponse::of(&homes, id, erasure, &[]);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], axum::Json(answer)).into_response())
}

/// Get the proof of an erasure
#[utoipa::path(
    get,
    path = "/v1/erasures/{erasure_id}",
    operation_id = "getErasure",
    tag = "recipients",
    params(("erasure_id" = ErasureId, Path, description = "The id of the erasure")),
    responses(
        (status = 200, description = "What each region has erased", body = ErasureResponse),
        openapi::ReadRefusal,
    ),
    security(("api_key" = ["recipients:write"])),
)]
pub(crate) async fn get(
    State(homes): State<Homes>,
    caller: Caller<ToWrite>,
    Named(id): Named<ErasureId>,
) -> Result<axum::Json<ErasureResponse>, Problem> {
    let context = &homes.context;
    let known = erasure::look_up(&context.js, &context.border, &caller.app.id, id).await;
    match known.map_err(shared::nats::facts::NotRead::from)? {
        Some(known) => Ok(axum::Json(ErasureResponse::of(&homes, id, known.erasure, &known.done))),
        None => Err(Problem::new(NOT_FOUND, "The app has no such erasure.")),
    }
}

impl ErasureResponse {
    fn of(homes: &Homes, id: ErasureId, erasure: erasure::Erasure, done: &[(Region, Proof)]) -> Self {
        let done: BTreeMap<_, _> = done.iter().cloned().collect();
        let regions = homes.context.regions().into_iter().map(|region| {
            let proof = done.get(&region).copied();
            (region, ErasedIn::of(proof))
        });
        let regions: BTreeMap<_, _> = regions.collect();
        let is_done = regions.values().all(|region| region.done_at.is_some());
        Self {
            erasure_id: id,
            recipient_id: erasure.recipient,
            requested_at: erasure.at,
            state: if is_done { "done" } else { "pending" },
            regions,
            remains: remains(erasure.at),
        }
    }
}

impl ErasedIn {
    fn of(proof: Option<Proof>) -> Self {
        let erased = proof.map(|proof| proof.erased).unwrap_or_default();
        Self {
            state: if proof.is_some() { "done" } else { "pending" },
            done_at: proof.map(|proof| proof.at),
            facts: erased.facts,
            dead_letters: erased.dead_letters,
        }
    }
}

fn remains(at: Timestamp) -> [Remains; 5] {
    let after = |age: std::time::Duration| {
        let age = SignedDuration::try_from(age).ok()?;
        at.checked_add(age).ok()
    };
    [
        Remains {
            store: "jobs",
            holds: "The content of what waits to be sent; it ends as cancelled and is removed when it is due.",
            until: after(WORK_MAX_AGE),
        },
        Remains {
            store: "receipts",
            holds: "Ids of the recipient, its notifications and addresses; no content and no token.",
            until: after(RECEIPTS_MAX_AGE),
        },
        Remains {
            store: "idempotency",
            holds: "Digests of requests, event ids and counts.",
            until: after(IDEMPOTENCY_MAX_AGE),
        },
        Remains {
            store: "directory",
            holds: "The id of the recipient and digests of its addresses, as marks that they are gone.",
            until: None,
        },
        Remains {
            store: "suppressions",
            holds: "Keyed digests of addresses that must not be sent to.",
            until: None,
        },
    ]
}
