//! `/v1/suppressions`: the mailboxes and numbers that an app must not send to. Answers never show them.

use std::sync::Arc;

use axum::extract::{Query, State, rejection::QueryRejection};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shared::{
    address::{Address, Target},
    channel::Channel,
    id::{AddressId, AppId, Category, Region},
    invalid::Invalid,
    nats::direct::NoAnswer,
    only_objects,
    suppression::{Suppression, SuppressionId, SuppressionReason},
};
use utoipa::{IntoParams, ToSchema};

use super::{
    api::Api,
    auth::{Caller, ToRead, ToSuppress},
    body::Json,
    limit,
    named::Named,
    openapi,
    problem::{NOT_FOUND, Problem, REGION_UNREACHABLE},
};
use crate::{
    context::Context,
    recipients::suppressions::{self, Wanted},
};

/// Suppressions in one answer, at most.
const LISTED_MAX: usize = 100;

/// The query of a list of suppressions.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SuppressionQuery {
    /// Only suppressions on this channel: email or sms.
    channel: Option<Channel>,
    /// Only suppressions for this reason.
    reason: Option<SuppressionReason>,
    /// Maximum number of suppressions: 1 to 100, by default 100.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// The `next` of the previous page, from a gateway of the same region.
    cursor: Option<String>,
}

/// An address to suppress.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct PostSuppression {
    channel: Channel,
    address: String,
    #[serde(default)]
    reason: Option<SuppressionReason>,
    #[serde(default)]
    category: Option<Category>,
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

only_objects!(PostSuppression);

/// A suppressed address.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Suppression)]
pub(crate) struct SuppressionResponse {
    id: String,
    channel: Channel,
    reason: SuppressionReason,
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    category: Option<Category>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

/// A page of suppressions.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SuppressionList {
    /// The suppressions that are in force. A page may have fewer than its limit, even none, although others follow.
    suppressions: Vec<SuppressionResponse>,
    /// The cursor of the next page; null if this page is the last.
    next: Option<String>,
}

/// List suppressions
#[utoipa::path(
    get,
    path = "/v1/suppressions",
    operation_id = "listSuppressions",
    tag = "suppressions",
    params(SuppressionQuery),
    responses(
        (status = 200, description = "A page of suppressions", body = SuppressionList),
        openapi::AnyRefusal,
        openapi::ReadRefusal,
    ),
    security(("api_key" = ["recipients:read"])),
)]
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller<ToRead>,
    query: Result<Query<SuppressionQuery>, QueryRejection>,
) -> Result<axum::Json<SuppressionList>, Problem> {
    let Query(query) =
        query.map_err(|_| Problem::from(Invalid::new("query", "may have channel, reason, limit and cursor")))?;
    let (context, max) = (&api.context, limit(query.limit, LISTED_MAX)?);
    let from = query
        .cursor
        .map_or(Some(1), |cursor| sequence_of(&cursor, &context.here));
    let rule = "must be the `next` of an answer of this region's gateways";
    let from = from.ok_or_else(|| Invalid::new("cursor", rule))?;
    let admits = |known: &Suppression| {
        query.channel.is_none_or(|channel| known.channel == channel)
            && query.reason.is_none_or(|reason| known.reason == reason)
    };
    let page = suppressions::list(context, &caller.app.id, from, max, admits).await?;
    Ok(axum::Json(SuppressionList {
        suppressions: page.suppressions.into_iter().map(SuppressionResponse::of).collect(),
        next: page.next.map(|sequence| format!("{}-{sequence}", context.here)),
    }))
}

/// Suppress an address
///
/// Nothing is sent to the mailbox or number from now on, whoever has it registered, and also if a request names it. The address
/// itself is not kept, only a keyed digest of it. What is on the list already is never made shorter. Repeating is safe.
#[utoipa::path(
    post,
    path = "/v1/suppressions",
    operation_id = "addSuppression",
    tag = "suppressions",
    request_body = PostSuppression,
    responses(
        (status = 200, description = "What is on the list", body = SuppressionResponse),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["suppressions:write"])),
)]
pub(crate) async fn add(
    State(api): State<Arc<Api>>,
    caller: Caller<ToSuppress>,
    Json(wanted): Json<PostSuppression>,
) -> Result<axum::Json<SuppressionResponse>, Problem> {
    let wanted = wanted.check(&api.context, &caller.app.id, caller.key_id())?;
    let added = suppressions::suppress(&api.context, &caller.app.id, wanted).await?;
    Ok(axum::Json(SuppressionResponse::of(added)))
}

/// Lift a suppression
#[utoipa::path(
    delete,
    path = "/v1/suppressions/{id}",
    operation_id = "liftSuppression",
    tag = "suppressions",
    params(("id" = String, Path, description = "The id of the suppression")),
    responses(
        (status = 204, description = "Lifted"),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["suppressions:write"])),
)]
pub(crate) async fn lift(
    State(api): State<Arc<Api>>,
    caller: Caller<ToSuppress>,
    Named(id): Named<SuppressionId>,
) -> Result<StatusCode, Problem> {
    if suppressions::lift(&api.context, &caller.app.id, id).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::new(NOT_FOUND, "There is no suppression with this id."))
    }
}

impl PostSuppression {
    fn check(self, context: &Context, app: &AppId, key_id: &str) -> Result<Wanted, Invalid> {
        let now = context.clock.now();
        let target = match self.channel {
            Channel::Email => self.address.parse().map(Target::Email),
            Channel::Sms => self.address.parse().map(Target::Phone),
            Channel::Push | Channel::Webhook => return Err(Invalid::new("channel", "must be email or sms")),
        };
        let target = target.map_err(|invalid: Invalid| Invalid::new("address", invalid.rule))?;
        let reason = self.reason.unwrap_or(SuppressionReason::Manual);
        if !matches!(reason, SuppressionReason::Manual | SuppressionReason::Unsubscribe) {
            return Err(Invalid::new("reason", "must be unsubscribe or manual"));
        }
        if self.expires_at.is_some_and(|at| at <= now) {
            return Err(Invalid::new("expires_at", "must be in the future"));
        }
        let address: AddressId = Address::new(&context.config.id_key(), app, target, now).id;
        Ok(Wanted {
            channel: self.channel,
            address,
            reason,
            source: key_id.to_owned(),
            category: self.category,
            expires_at: self.expires_at,
        })
    }
}

impl SuppressionResponse {
    fn of((id, suppression): (SuppressionId, Suppression)) -> Self {
        let Suppression {
            channel,
            reason,
            source,
            category,
            created_at,
            expires_at,
        } = suppression;
        Self {
            id: id.to_string(),
            channel,
            reason,
            source,
            category,
            created_at,
            expires_at,
        }
    }
}

/// The sequence in a cursor that a gateway of `here` made: `<region>-<sequence>`.
fn sequence_of(cursor: &str, here: &Region) -> Option<u64> {
    let (region, sequence) = cursor.rsplit_once('-')?;
    (region == here.as_str()).then(|| sequence.parse().ok()).flatten()
}

impl From<NoAnswer> for Problem {
    fn from(error: NoAnswer) -> Self {
        match error {
            NoAnswer::Silent => Self::new(REGION_UNREACHABLE, "The region's directory does not answer; repeat."),
            NoAnswer::Forbidden => Self::not_permitted(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_counts_in_its_own_region_only() {
        let here: Region = "eu-1".parse().unwrap();
        assert_eq!(sequence_of("eu-1-42", &here), Some(42));
        for foreign in ["eu-2-42", "42", "", "eu-1-", "eu-1-x", "eu-1"] {
            assert_eq!(sequence_of(foreign, &here), None, "{foreign}");
        }
    }
}
