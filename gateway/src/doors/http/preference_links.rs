//! `/v1/recipients/{recipient_id}/preference-link`: a link with which a recipient sees and changes its preferences.

use std::sync::Arc;

use axum::extract::State;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use shared::{id::RecipientId, reference};
use utoipa::ToSchema;

use super::{
    api::Api,
    auth::{Caller, ToWrite},
    named::Named,
    openapi, pages,
    problem::{LINKS_UNAVAILABLE, Problem},
    recipients,
};

/// How long a link leads somewhere.
const LINK_LIVES: SignedDuration = SignedDuration::from_hours(60 * 24);

/// A link to the preferences of a recipient.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PreferenceLink {
    /// Where the recipient sees and changes its preferences.
    url: String,
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// Make a link to the preferences of a recipient
///
/// For a message to the recipient, or the app's own pages. Whoever has the link sees and changes the preferences of this
/// recipient, for 60 days; it cannot be taken back, and works until then whatever key made it.
#[utoipa::path(
    post,
    path = "/v1/recipients/{recipient_id}/preference-link",
    operation_id = "makePreferenceLink",
    tag = "preferences",
    params(("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded")),
    responses(
        (status = 200, description = "The link", body = PreferenceLink),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["recipients:write"])),
)]
pub(crate) async fn make(
    State(api): State<Arc<Api>>,
    caller: Caller<ToWrite>,
    Named(recipient): Named<RecipientId>,
) -> Result<axum::Json<PreferenceLink>, Problem> {
    let key = caller.key(recipient.clone());
    api.homes.home(&key).await?.ok_or_else(recipients::unknown)?;
    let now = api.context.clock.now();
    // The token says seconds.
    let expires_at = Timestamp::from_second((now + LINK_LIVES).as_second()).unwrap_or(now);
    let link = reference::PreferenceLink { recipient, expires_at };
    let token = link.sign(&api.context.config.id_key(), &key.app);
    let (Some(public), Some(token)) = (&api.public_url, token) else {
        let detail = "The operator must state public_url of the gateways, and the mesh must have a key of ids.";
        return Err(Problem::new(LINKS_UNAVAILABLE, detail));
    };
    let url = format!("{public}{}{token}", pages::PREFERENCES);
    Ok(axum::Json(PreferenceLink { url, expires_at }))
}
