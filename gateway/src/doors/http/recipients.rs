//! `/v1/recipients/{recipient_id}`: the profiles and homes of recipients.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use shared::{
    id::{RecipientId, Region},
    recipient::Profile,
};
use utoipa::ToSchema;

use super::{
    api::Api,
    auth::{Caller, ToRead, ToWrite},
    body::Json,
    named::Named,
    openapi,
    problem::{NOT_FOUND, Problem},
};
use crate::recipients::{homes::Homes, register::PutRecipient};

/// The profile of a recipient.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RecipientResponse {
    /// The app's id of the recipient.
    recipient_id: RecipientId,
    /// The home: the region whose workers deliver to the recipient.
    home: Region,
    /// BCP 47 language tag, such as `de-CH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    locale: Option<String>,
    /// IANA time zone, such as `Europe/Zurich`.
    #[serde(skip_serializing_if = "Option::is_none")]
    timezone: Option<String>,
    /// When the profile was last written.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// Number of addresses; only in the answer to GET.
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses: Option<usize>,
}

/// Register or replace a recipient
///
/// The whole profile is replaced; addresses, preferences and topics stay as they are. A new home moves the recipient
/// with everything that is known about it; both regions must be reachable. Jobs on their way to the former home are
/// forwarded.
#[utoipa::path(
    put,
    path = "/v1/recipients/{recipient_id}",
    operation_id = "putRecipient",
    tag = "recipients",
    params(("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded")),
    request_body = PutRecipient,
    responses(
        (status = 200, description = "Replaced", body = RecipientResponse),
        (status = 201, description = "Registered", body = RecipientResponse),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["recipients:write"])),
)]
pub(crate) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller<ToWrite>,
    Named(recipient): Named<RecipientId>,
    Json(wanted): Json<PutRecipient>,
) -> Result<Response, Problem> {
    wanted.check(&api.homes, &caller.app)?;
    let key = caller.key(recipient);
    let known = api.homes.home(&key).await?;
    let status = if known.is_some() {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    let storing = wanted.store(&api.homes, &caller.app, &key, known, api.limits.request_timeout());
    let profile = storing.await?;
    Ok((status, axum::Json(RecipientResponse::of(key.recipient, profile, None))).into_response())
}

/// Look up a recipient
#[utoipa::path(
    get,
    path = "/v1/recipients/{recipient_id}",
    operation_id = "getRecipient",
    tag = "recipients",
    params(("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded")),
    responses(
        (status = 200, description = "The profile", body = RecipientResponse),
        openapi::ReadRefusal,
    ),
    security(("api_key" = ["recipients:read"])),
)]
pub(crate) async fn get(
    State(homes): State<Homes>,
    caller: Caller<ToRead>,
    Named(recipient): Named<RecipientId>,
) -> Result<axum::Json<RecipientResponse>, Problem> {
    let key = caller.key(recipient);
    let home = homes.home_or(&key, &caller.app.default_region).await?;
    let known = homes.read(&home, &key).await?;
    let Some(profile) = known.profile else {
        return Err(unknown());
    };
    Ok(axum::Json(RecipientResponse::of(
        key.recipient,
        profile,
        Some(known.addresses.len()),
    )))
}

/// Delete a recipient
///
/// Removes the profile, the addresses, the preferences and the topics. Notifications that were accepted before may
/// still reach the recipient.
#[utoipa::path(
    delete,
    path = "/v1/recipients/{recipient_id}",
    operation_id = "deleteRecipient",
    tag = "recipients",
    params(("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded")),
    responses(
        (status = 204, description = "Deleted"),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["recipients:write"])),
)]
pub(crate) async fn delete(
    State(homes): State<Homes>,
    caller: Caller<ToWrite>,
    Named(recipient): Named<RecipientId>,
) -> Result<StatusCode, Problem> {
    let key = caller.key(recipient);
    let home = homes.home_or(&key, &caller.app.default_region).await?;
    let known = homes.read(&home, &key).await?;
    // A crash in the middle of a deletion leaves a directory entry without facts.
    if !known.is_known() && homes.context.directory.home(&key).is_none() {
        return Err(unknown());
    }
    let topics = homes.topics(&home, &key).await?;
    homes.forget(&home, &key, &known, topics).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// One answer for recipients that were never registered and recipients of other apps.
pub(crate) fn unknown() -> Problem {
    Problem::new(NOT_FOUND, "The app has no such recipient.")
}

impl RecipientResponse {
    fn of(recipient_id: RecipientId, profile: Profile, addresses: Option<usize>) -> Self {
        Self {
            recipient_id,
            home: profile.home,
            locale: profile.locale,
            timezone: profile.timezone,
            updated_at: profile.updated_at,
            addresses,
        }
    }
}
