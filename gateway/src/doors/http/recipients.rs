//! `/v1/recipients/{recipient_id}`: the profiles and homes of recipients.

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
    only_objects,
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

/// The new profile of a recipient. A member that is left out is removed; only the home stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct PutRecipient {
    /// The home: the region whose workers deliver to the recipient. Default: the home that the recipient has, or the
    /// app's default region. Another home moves the recipient.
    home: Option<Region>,
    /// BCP 47 language tag, such as `de-CH`.
    #[schema(max_length = 35)]
    locale: Option<String>,
    /// IANA time zone, such as `Europe/Zurich`.
    #[schema(max_length = 64)]
    timezone: Option<String>,
}

only_objects!(PutRecipient);

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
    let known = api.homes.home(&key).await?;
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
            moved
                .map_err(|_| Problem::new(TIMEOUT, "The move is not complete. Repeat the request to continue it."))??;
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

fn check(wanted: &PutRecipient) -> Result<(), Invalid> {
    let is_word = |text: &str, max: usize, punctuation: &[u8]| {
        (1..=max).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || punctuation.contains(&byte))
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
