//! `/v1/recipients/{recipient_id}`: who is known, and where they live.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use jiff::{Timestamp, tz};
use serde::{Deserialize, Serialize};
use shared::{
    id::{RecipientId, Region},
    invalid::Invalid,
    recipient::Profile,
};
use utoipa::ToSchema;

use super::{
    api::Api,
    auth::{Caller, ToRead, ToWrite},
    body::Json,
    named::Named,
    openapi,
    problem::{NOT_FOUND, Problem, TIMEOUT},
};
use crate::recipients::homes::Homes;

/// A recipient, as the caller wants it to be. What is left out is unset, but for the home.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PutRecipient {
    /// The region whose workers deliver. Default: the one it has, else the app's default region. Cannot be changed yet.
    home: Option<Region>,
    /// BCP 47 language tag, such as `de-CH`.
    #[schema(max_length = 35)]
    locale: Option<String>,
    /// IANA time zone, such as `Europe/Zurich`.
    #[schema(max_length = 64)]
    timezone: Option<String>,
}

/// A recipient as it is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RecipientResponse {
    /// The recipient.
    recipient_id: RecipientId,
    /// The region whose workers deliver.
    home: Region,
    /// BCP 47 language tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    locale: Option<String>,
    /// IANA time zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    timezone: Option<String>,
    /// When this was last written.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// How many addresses it has; only in the answer to GET.
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses: Option<usize>,
}

/// Register or replace a recipient
///
/// The whole state is replaced; addresses and preferences stay as they are. Another home than before moves the recipient
/// with all that is known of it; both regions must answer. What is under way to the former home is sent on.
#[utoipa::path(
    put,
    path = "/v1/recipients/{recipient_id}",
    operation_id = "putRecipient",
    tag = "recipients",
    params(("recipient_id" = RecipientId, Path, description = "The recipient, percent-encoded")),
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
    check(&wanted)?;
    if wanted.home.as_ref().is_some_and(|home| !api.context.is_region(home)) {
        return Err(Invalid::new("home", "must be a region of this mesh").into());
    }
    if let (Some(home), Some(residency)) = (&wanted.home, &caller.app.residency)
        && home != residency
    {
        return Err(Invalid::new("home", format!("must be {residency}, where this app's data stays")).into());
    }
    let key = caller.key(recipient);
    let known = api.homes.home(&key);
    let status = if known.is_some() {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    let home = (wanted.home.or(known.clone())).unwrap_or_else(|| caller.app.default_region.clone());
    let profile = Profile {
        home,
        locale: wanted.locale,
        timezone: wanted.timezone,
        updated_at: api.context.clock.now(),
    };
    match known.filter(|known| *known != profile.home) {
        Some(from) => {
            let moving = api.homes.relocate(&from, &key, profile.clone());
            let moved = tokio::time::timeout(api.limits.request_timeout(), moving).await;
            moved.map_err(|_| Problem::new(TIMEOUT, "Repeat; what was done of the move stays."))??;
        }
        None => api.homes.settle(&key, profile.clone()).await?,
    }
    Ok((status, axum::Json(RecipientResponse::of(key.recipient, profile, None))).into_response())
}

/// Look up a recipient
#[utoipa::path(
    get,
    path = "/v1/recipients/{recipient_id}",
    operation_id = "getRecipient",
    tag = "recipients",
    params(("recipient_id" = RecipientId, Path, description = "The recipient, percent-encoded")),
    responses(
        (status = 200, description = "As it is", body = RecipientResponse),
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
    let home = homes.home_or(&key, &caller.app.default_region);
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

/// Forget a recipient
///
/// Removes its addresses, its preferences, its topics and its profile. Notifications already accepted may still reach it.
#[utoipa::path(
    delete,
    path = "/v1/recipients/{recipient_id}",
    operation_id = "deleteRecipient",
    tag = "recipients",
    params(("recipient_id" = RecipientId, Path, description = "The recipient, percent-encoded")),
    responses(
        (status = 204, description = "Forgotten"),
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
    let home = homes.home_or(&key, &caller.app.default_region);
    let known = homes.read(&home, &key).await?;
    // A directory entry without facts is what a crash in the middle of forgetting leaves.
    if !known.is_known() && homes.home(&key).is_none() {
        return Err(unknown());
    }
    let topics = homes.topics(&home, &key).await?;
    homes.forget(&home, &key, &known, topics).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// One answer, whether the recipient never was or is another app's.
pub(crate) fn unknown() -> Problem {
    Problem::new(NOT_FOUND, "No such recipient is registered.")
}

fn check(wanted: &PutRecipient) -> Result<(), Invalid> {
    let is_word = |text: &str, most: usize, more: &[u8]| {
        (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    if wanted.locale.as_ref().is_some_and(|locale| !is_word(locale, 35, b"-")) {
        return Err(Invalid::new("locale", "must be a BCP 47 language tag"));
    }
    let is_zone = |name: &String| {
        let database = tz::db();
        is_word(name, 64, b"/_+-") && (database.is_definitively_empty() || database.get(name).is_ok())
    };
    if wanted.timezone.as_ref().is_some_and(|zone| !is_zone(zone)) {
        return Err(Invalid::new("timezone", "must be an IANA time zone"));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locale_and_time_zone_are_checked() {
        let field = |locale: Option<&str>, timezone: Option<&str>| {
            let wanted = PutRecipient {
                home: None,
                locale: locale.map(Into::into),
                timezone: timezone.map(Into::into),
            };
            check(&wanted).err().map(|invalid| invalid.field)
        };
        assert_eq!(field(Some("de-CH"), Some("Europe/Zurich")), None);
        assert_eq!(field(Some("de CH"), None), Some("locale".into()));
        assert_eq!(field(None, Some("Europe; drop")), Some("timezone".into()));
        assert_eq!(field(None, Some("")), Some("timezone".into()));
    }
}
