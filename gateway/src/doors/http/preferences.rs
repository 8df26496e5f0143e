//! `/v1/recipients/{recipient_id}/preferences`: what a recipient agreed to.

use axum::extract::State;
use shared::{
    id::RecipientId,
    invalid::Invalid,
    recipient::{Fact, Preferences},
};

use super::{
    auth::{Caller, ToRead, ToWrite},
    body::Json,
    named::Named,
    openapi,
    problem::Problem,
    recipients,
};
use crate::recipients::homes::Homes;

/// More categories than a person can have chosen from.
const MOST_CATEGORIES: usize = 256;

/// Replace the preferences of a recipient
///
/// What is not named is agreed to. A recipient that nobody registered is registered at the app's default region, so
/// that a refusal is kept although there is no address yet.
#[utoipa::path(
    put,
    path = "/v1/recipients/{recipient_id}/preferences",
    operation_id = "putPreferences",
    tag = "preferences",
    params(("recipient_id" = RecipientId, Path, description = "The recipient, percent-encoded")),
    request_body = Preferences,
    responses(
        (status = 200, description = "As they are now", body = Preferences),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["recipients:write"])),
)]
pub(crate) async fn put(
    State(homes): State<Homes>,
    caller: Caller<ToWrite>,
    Named(recipient): Named<RecipientId>,
    Json(wanted): Json<Preferences>,
) -> Result<axum::Json<Preferences>, Problem> {
    if wanted.categories.len() > MOST_CATEGORIES {
        return Err(Invalid::new("categories", format_args!("must be at most {MOST_CATEGORIES}")).into());
    }
    let key = caller.key(recipient);
    let home = homes.ensure_home(&key, &caller.app.default_region).await?;
    homes.write(&home, &key, Fact::Preferences(wanted.clone())).await?;
    Ok(axum::Json(wanted))
}

/// Look up the preferences of a recipient
#[utoipa::path(
    get,
    path = "/v1/recipients/{recipient_id}/preferences",
    operation_id = "getPreferences",
    tag = "preferences",
    params(("recipient_id" = RecipientId, Path, description = "The recipient, percent-encoded")),
    responses(
        (status = 200, description = "As they are", body = Preferences),
        openapi::ReadRefusal,
    ),
    security(("api_key" = ["recipients:read"])),
)]
pub(crate) async fn get(
    State(homes): State<Homes>,
    caller: Caller<ToRead>,
    Named(recipient): Named<RecipientId>,
) -> Result<axum::Json<Preferences>, Problem> {
    let key = caller.key(recipient);
    let known = homes
        .read(&homes.home_or(&key, &caller.app.default_region), &key)
        .await?;
    if known.is_known() {
        Ok(axum::Json(known.preferences))
    } else {
        Err(recipients::unknown())
    }
}
