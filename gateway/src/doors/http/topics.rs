//! `/v1/recipients/{recipient_id}/topics`: the topics that a recipient is a member of.

use std::slice;

use axum::extract::State;
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use shared::{
    id::{RecipientId, Topic},
    recipient::{FactName, Membership},
};
use utoipa::ToSchema;

use super::{
    auth::{Caller, ToReadTopics, ToWriteTopics},
    named::Named,
    openapi,
    problem::Problem,
    recipients,
};
use crate::recipients::{homes::Homes, register};

/// A topic that a recipient is a member of.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TopicResponse {
    /// The name of the topic.
    topic: Topic,
    /// When the membership was last written.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
}

/// The topics of a recipient.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TopicsResponse {
    /// The topics, in alphabetical order.
    topics: Vec<TopicResponse>,
}

/// Add a recipient to a topic
///
/// The recipient gets the broadcasts that are sent to the topic from now on. An unknown recipient is registered at the
/// app's default region. A recipient is a member of at most 1,000 topics. Repeating is safe.
#[utoipa::path(
    put,
    path = "/v1/recipients/{recipient_id}/topics/{topic}",
    operation_id = "putTopic",
    tag = "topics",
    params(
        ("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded"),
        ("topic" = Topic, Path, description = "The name of the topic; a topic exists as long as it has a member"),
    ),
    responses(
        (status = 200, description = "The recipient is a member", body = TopicResponse),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["recipients:write"]), ("client_token" = ["topics"])),
)]
pub(crate) async fn put(
    State(homes): State<Homes>,
    caller: Caller<ToWriteTopics>,
    Named((recipient, topic)): Named<(RecipientId, Topic)>,
) -> Result<axum::Json<TopicResponse>, Problem> {
    let key = caller.key(recipient);
    let home = homes.ensure_home(&key, &caller.app.default_region).await?;
    homes.check_topics(&home, &key, slice::from_ref(&topic)).await?;
    let membership = register::join(&homes, &home, &key, topic.clone()).await?;
    Ok(axum::Json(TopicResponse::of((topic, membership))))
}

/// Remove a recipient from a topic
///
/// This also applies to broadcasts that were accepted before and have not been sent to the recipient yet. Repeating is
/// safe.
#[utoipa::path(
    delete,
    path = "/v1/recipients/{recipient_id}/topics/{topic}",
    operation_id = "deleteTopic",
    tag = "topics",
    params(
        ("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded"),
        ("topic" = Topic, Path, description = "The name of the topic"),
    ),
    responses(
        (status = 204, description = "The recipient is not a member"),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["recipients:write"]), ("client_token" = ["topics"])),
)]
pub(crate) async fn delete(
    State(homes): State<Homes>,
    caller: Caller<ToWriteTopics>,
    Named((recipient, topic)): Named<(RecipientId, Topic)>,
) -> Result<StatusCode, Problem> {
    let key = caller.key(recipient);
    let home = homes.home(&key).await?.ok_or_else(recipients::unknown)?;
    homes.remove(&home, &key, FactName::Topic(topic)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List the topics of a recipient
#[utoipa::path(
    get,
    path = "/v1/recipients/{recipient_id}/topics",
    operation_id = "listTopics",
    tag = "topics",
    params(("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded")),
    responses(
        (status = 200, description = "The topics", body = TopicsResponse),
        openapi::ReadRefusal,
    ),
    security(("api_key" = ["recipients:read"]), ("client_token" = ["topics"])),
)]
pub(crate) async fn list(
    State(homes): State<Homes>,
    caller: Caller<ToReadTopics>,
    Named(recipient): Named<RecipientId>,
) -> Result<axum::Json<TopicsResponse>, Problem> {
    let key = caller.key(recipient);
    let home = homes.home(&key).await?.ok_or_else(recipients::unknown)?;
    let topics = homes.topics(&home, &key).await?;
    let topics = topics.into_iter().map(TopicResponse::of).collect();
    Ok(axum::Json(TopicsResponse { topics }))
}

impl TopicResponse {
    fn of((topic, Membership { since, .. }): (Topic, Membership)) -> Self {
        Self { topic, since }
    }
}
