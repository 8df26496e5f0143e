//! `POST /v1/notifications`: sends a notification.

use std::{collections::HashSet, sync::Arc};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use shared::{
    api_key::Scope,
    app::App,
    channel::{Channel, Class},
    content::{Content, push::Push},
    digest::of_content,
    failpoint::failpoint,
    id::{AppId, Category, EventId, NotificationId, RecipientId, Topic},
    invalid::Invalid,
    nats::idempotency::{self, Answer, Claim},
};
use tokio::time::timeout;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    api::Api,
    auth::{Caller, ToSend},
    body::Verbatim,
    named::IdempotencyKey,
    openapi,
    problem::{CHANNEL_UNAVAILABLE, Document, KEY_IN_USE, KEY_REUSED, Problem, REGION_UNAVAILABLE, TIMEOUT},
};
use crate::{
    intake::{
        accept::NotAccepted,
        order::{Addressees, Order},
    },
    trace::Trace,
};

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A notification to send.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SendRequest {
    /// The caller's id of the event. Two requests with the same event id are one notification. The header
    /// `Idempotency-Key` may carry it instead. Without either, every request is a new notification.
    event_id: Option<EventId>,
    /// The addressees: recipients or a topic.
    to: AddresseesRequest,
    /// The channel.
    #[serde(default = "push")]
    #[schema(default = "push")]
    channel: Channel,
    /// The class, which decides the lane: `urgent`, `normal` or `bulk`.
    #[serde(default)]
    #[schema(default = "normal")]
    class: Class,
    /// The category of the notification. Recipients who opted out of it do not get it.
    category: Option<Category>,
    /// The content for push.
    push: Push,
}

/// The addressees: either recipients or the members of a topic.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = To)]
pub(crate) struct AddresseesRequest {
    /// The recipients, each named once.
    #[schema(min_items = 1)]
    recipients: Option<Vec<RecipientId>>,
    /// Instead of recipients: all current members of this topic. Also requires the scope `notifications:broadcast`.
    topic: Option<Topic>,
}

fn push() -> Channel {
    Channel::Push
}

/// The notification is stored and will be processed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SendResponse {
    /// The id of the notification. The header `Location` is the path of its status.
    notification_id: NotificationId,
    /// The caller's event id, or a generated one.
    event_id: EventId,
    /// Number of jobs stored: one for each recipient, or, for a topic, one for each region.
    jobs: usize,
    /// How many of them were already stored by an earlier request with the same event id.
    duplicates: usize,
    /// The W3C trace id, if the request was traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

/// Send a notification
///
/// The answer 202 means that every job is stored and will be processed, whatever fails afterwards. After any other
/// answer the request may be repeated with the same event id; nothing is sent twice. With the header
/// `Idempotency-Key`, every gateway in every region answers a repetition like the first request.
#[utoipa::path(
    post,
    path = "/v1/notifications",
    operation_id = "sendNotification",
    tag = "notifications",
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "The event id; 1 to 255 printable ASCII \
            characters without spaces. For two days the same key with the same body gets the same answer, and the same \
            key with another body is refused"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context of the caller"),
    ),
    request_body = SendRequest,
    responses(
        (status = 202, description = "Stored", body = SendResponse, headers(
            ("Location" = String, description = "The path of the notification's status"),
            ("Idempotent-Replayed" = String, description = "`true` if this repeats the answer to an earlier request \
                with the same header Idempotency-Key"),
        )),
        openapi::AnyRefusal,
        (status = 503, description = "Not every job is known to be stored; repeat with the same event id",
            body = Document, content_type = "application/problem+json"),
    ),
    security(("api_key" = ["notifications:write"])),
)]
pub(crate) async fn send(
    State(api): State<Arc<Api>>,
    caller: Caller<ToSend>,
    trace: Trace,
    IdempotencyKey(key): IdempotencyKey,
    Verbatim(request, text): Verbatim<SendRequest>,
) -> Result<Response, Problem> {
    if request.to.topic.is_some() {
        caller.require(Scope::Broadcast)?;
    }
    let order = request.into_order(caller.app.clone(), key.clone(), api.limits.recipients)?;
    let event = order.event.clone();
    let held = match key {
        None => None,
        Some(key) => match claim(&api, &caller, &key, of_content(&text)).await? {
            Claim::Held(held) => Some(held),
            Claim::Answered(answer) => return Ok(replayed(&order.app.id, answer)),
            Claim::InProgress => return Err(Problem::new(KEY_IN_USE, "Repeat after the time in Retry-After.")),
            Claim::OtherRequest => {
                let detail =
                    "The Idempotency-Key was used for a request with another body; a new request needs a new key.";
                return Err(Problem::new(KEY_REUSED, detail));
            }
        },
    };
    let accepted = timeout(api.limits.request_timeout(), api.intake.accept(order, &trace)).await;
    let nothing_stored = matches!(
        &accepted,
        Ok(Err(NotAccepted::Invalid(_) | NotAccepted::NoSuchRegion(_)))
    );
    let answer = match accepted {
        Ok(Ok(stored)) => Ok(Answer {
            event_id: event,
            jobs: stored.jobs,
            duplicates: stored.duplicates,
            trace_id: trace.id(),
        }),
        Ok(Err(refused)) => Err(problem(refused).event(event)),
        Err(_) => {
            let detail = "Something may have been stored. Repeat with the same event id; no job is sent twice.";
            Err(Problem::new(TIMEOUT, detail).event(event))
        }
    };
    if let Some(held) = held {
        match &answer {
            Ok(answer) => held.complete(&api.context.js, answer.clone()).await,
            Err(_) => held.release(&api.context.js, nothing_stored).await,
        }
    }
    failpoint("gateway.before-answer");
    answer.map(|answer| stored(&caller.app.id, answer))
}

impl SendRequest {
    fn into_order(self, app: Arc<App>, key: Option<EventId>, recipients_max: usize) -> Result<Order, Problem> {
        let event = event(key, self.event_id)?;
        if !Channel::CARRIED.contains(&self.channel) {
            return Err(Problem::new(
                CHANNEL_UNAVAILABLE,
                format!("No provider carries {} yet.", self.channel),
            ));
        }
        Ok(Order {
            app,
            event,
            to: self.to.check(recipients_max)?,
            class: self.class,
            category: self.category,
            content: Content::Push(self.push.into()),
        })
    }
}

impl AddresseesRequest {
    fn check(self, recipients_max: usize) -> Result<Addressees, Invalid> {
        match (self.recipients, self.topic) {
            (Some(recipients), None) => {
                check(&recipients, recipients_max)?;
                Ok(Addressees::Recipients(recipients))
            }
            (None, Some(topic)) => Ok(Addressees::Topic(topic)),
            (Some(_), Some(_)) | (None, None) => Err(Invalid::new("to", "must name either recipients or a topic")),
        }
    }
}

async fn claim(api: &Api, caller: &Caller<ToSend>, key: &EventId, request: Uuid) -> Result<Claim, Problem> {
    let is_only_region = api.context.config.tenants().regions.len() == 1;
    let claimed = idempotency::claim(
        &api.context.js,
        &api.context.here,
        is_only_region,
        &caller.app.id,
        key,
        request,
        api.context.clock.now(),
    );
    match timeout(api.limits.request_timeout(), claimed).await {
        Ok(Ok(claim)) => Ok(claim),
        Ok(Err(error)) => Err(Problem::from(error).event(key.clone())),
        Err(_) => Err(Problem::new(TIMEOUT, "Nothing was stored; repeating is safe.").event(key.clone())),
    }
}

/// The event id from the header or the body; a generated one if neither has one.
fn event(header: Option<EventId>, body: Option<EventId>) -> Result<EventId, Invalid> {
    match (header, body) {
        (Some(header), Some(body)) if header != body => Err(Invalid::new(
            "event_id",
            "must equal the header Idempotency-Key if both are given",
        )),
        (Some(event), _) | (None, Some(event)) => Ok(event),
        (None, None) => Ok(EventId::fresh()),
    }
}

fn check(recipients: &[RecipientId], max: usize) -> Result<(), Invalid> {
    if recipients.is_empty() || recipients.len() > max {
        let rule = format!("must name 1 to {max} recipients, names {}", recipients.len());
        return Err(Invalid::new("to.recipients", rule));
    }
    if recipients.len() == 1 {
        return Ok(());
    }
    let mut seen = HashSet::with_capacity(recipients.len());
    match recipients.iter().position(|recipient| !seen.insert(recipient.as_str())) {
        Some(index) => Err(Invalid::new(
            format!("to.recipients[{index}]"),
            "must not be named twice",
        )),
        None => Ok(()),
    }
}

fn stored(app: &AppId, answer: Answer) -> Response {
    let notification_id = NotificationId::of(app, &answer.event_id);
    let location = format!("/v1/notifications/{notification_id}");
    let Answer {
        event_id,
        jobs,
        duplicates,
        trace_id,
    } = answer;
    let answer = SendResponse {
        notification_id,
        event_id,
        jobs,
        duplicates,
        trace_id,
    };
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], axum::Json(answer)).into_response()
}

/// The answer to the first request, marked as a repetition.
fn replayed(app: &AppId, answer: Answer) -> Response {
    let mut response = stored(app, answer);
    response
        .headers_mut()
        .insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    response
}

fn problem(refused: NotAccepted) -> Problem {
    match refused {
        NotAccepted::Invalid(invalid) => invalid.into(),
        NotAccepted::NoSuchRegion(region) => Problem::new(
            REGION_UNAVAILABLE,
            format!("A recipient's home is {region}, which is not a region of this mesh."),
        ),
        NotAccepted::NotStored { why, stored, jobs } => Problem::from(why).with_detail(format!(
            "{stored} of {jobs} jobs are stored: {why}. Repeat with the same event id; no job is sent twice."
        )),
    }
}

/// The jobs that a request with this body would become; for the fuzz tests.
#[cfg(any(fuzzing, test))]
pub(crate) fn jobs(body: &[u8]) -> Result<Vec<(RecipientId, bytes::Bytes)>, Problem> {
    let request: SendRequest = super::body::parse(body)?;
    let app = App::new("shop".parse()?, "eu".parse()?);
    let order = request.into_order(app.into(), None, 1000)?;
    let body = crate::intake::body::SplitBody::render(&order)?;
    let job = |recipient: &RecipientId| (recipient.clone(), body.to(recipient.as_str()));
    Ok(match &order.to {
        Addressees::Recipients(recipients) => recipients.iter().map(job).collect(),
        Addressees::Topic(_) => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipients(names: &[&str]) -> Vec<RecipientId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn the_error_for_a_repeated_recipient_names_its_index() {
        assert!(check(&recipients(&["a", "b", "c"]), 3).is_ok());
        assert_eq!(
            check(&recipients(&["a", "b", "c", "b"]), 4).unwrap_err().field,
            "to.recipients[3]"
        );
        assert_eq!(check(&recipients(&["a", "b"]), 1).unwrap_err().field, "to.recipients");
        assert!(check(&[], 1).is_err());
    }

    #[test]
    fn exactly_one_of_recipients_and_topic_is_required() {
        let to = |json: &str| serde_json::from_str::<AddresseesRequest>(json).unwrap().check(10);
        assert!(matches!(to(r#"{"topic":"news"}"#), Ok(Addressees::Topic(_))));
        assert!(matches!(to(r#"{"recipients":["ann"]}"#), Ok(Addressees::Recipients(_))));
        for bad in ["{}", r#"{"topic":"news","recipients":["ann"]}"#] {
            assert_eq!(to(bad).unwrap_err().field, "to");
        }
    }

    #[test]
    fn header_and_body_must_agree() {
        let id = |text: &str| Some(text.parse::<EventId>().unwrap());
        assert_eq!(event(id("a"), None).unwrap().as_str(), "a");
        assert_eq!(event(None, id("b")).unwrap().as_str(), "b");
        assert_eq!(event(id("a"), id("a")).unwrap().as_str(), "a");
        assert_eq!(event(id("a"), id("b")).unwrap_err().field, "event_id");
        assert_ne!(event(None, None).unwrap(), event(None, None).unwrap());
    }
}
