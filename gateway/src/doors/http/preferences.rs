//! `/v1/recipients/{recipient_id}/preferences`: what a recipient agreed to.

use axum::extract::State;
use shared::{
    id::RecipientId,
    preferences::{Preferences, PreferencesPatch},
    recipient::Fact,
};

use super::{
    auth::{Caller, ToReadPreferences, ToWritePreferences},
    body::{Json, MergePatch},
    named::Named,
    openapi,
    problem::Problem,
    recipients,
};
use crate::recipients::{homes::Homes, register::NotRegistered};

/// Replace the preferences of a recipient
///
/// A channel, category or topic that is not named counts as agreed to. An unknown recipient is registered at the app's default
/// region, so that an opt-out is kept even before the first address is registered.
#[utoipa::path(
    put,
    path = "/v1/recipients/{recipient_id}/preferences",
    operation_id = "putPreferences",
    tag = "preferences",
    params(("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded")),
    request_body = Preferences,
    responses(
        (status = 200, description = "The preferences after the change", body = Preferences),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["recipients:write"]), ("client_token" = ["preferences"])),
)]
pub(crate) async fn put(
    State(homes): State<Homes>,
    caller: Caller<ToWritePreferences>,
    Named(recipient): Named<RecipientId>,
    Json(wanted): Json<Preferences>,
) -> Result<axum::Json<Preferences>, Problem> {
    wanted.check()?;
    let key = caller.key(recipient);
    let home = homes.ensure_home(&key, &caller.app.default_region).await?;
    homes.write(&home, &key, Fact::Preferences(wanted.clone())).await?;
    Ok(axum::Json(wanted))
}

/// Change some preferences of a recipient
///
/// A merge patch (RFC 7396): what is not named stays, and `null` removes. Of two changes at the same time both count. The change is
/// made where the recipient lives, so that region must answer. An unknown recipient is registered at the app's default region.
/// Repeating is safe. `application/merge-patch+json` is taken too.
#[utoipa::path(
    patch,
    path = "/v1/recipients/{recipient_id}/preferences",
    operation_id = "patchPreferences",
    tag = "preferences",
    params(("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded")),
    request_body = PreferencesPatch,
    responses(
        (status = 200, description = "The preferences after the change", body = Preferences),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["recipients:write"]), ("client_token" = ["preferences"])),
)]
pub(crate) async fn patch(
    State(homes): State<Homes>,
    caller: Caller<ToWritePreferences>,
    Named(recipient): Named<RecipientId>,
    MergePatch(change): MergePatch<PreferencesPatch>,
) -> Result<axum::Json<Preferences>, Problem> {
    change.check()?;
    let key = caller.key(recipient);
    let home = homes.ensure_home(&key, &caller.app.default_region).await?;
    let preferences = homes.amend(&home, &key, change).await.map_err(NotRegistered::from)?;
    Ok(axum::Json(preferences))
}

/// Look up the preferences of a recipient
#[utoipa::path(
    get,
    path = "/v1/recipients/{recipient_id}/preferences",
    operation_id = "getPreferences",
    tag = "preferences",
    params(("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded")),
    responses(
        (status = 200, description = "The preferences", body = Preferences),
        openapi::ReadRefusal,
    ),
    security(("api_key" = ["recipients:read"]), ("client_token" = ["preferences"])),
)]
pub(crate) async fn get(
    State(homes): State<Homes>,
    caller: Caller<ToReadPreferences>,
    Named(recipient): Named<RecipientId>,
) -> Result<axum::Json<Preferences>, Problem> {
    let key = caller.key(recipient);
    let home = homes.home_or(&key, &caller.app.default_region).await?;
    let known = homes.read(&home, &key).await?;
    if known.is_known() {
        Ok(axum::Json(known.preferences.at(homes.context.clock.now())))
    } else {
        Err(recipients::unknown())
    }
}
