//! `POST /v1/notifications`: hands in a notification.

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
        order::{Order, To},
    },
    trace::Trace,
};

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A notification to send.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SendRequest {
    /// The caller's name for what happened; two requests with one event id are one notification. The header
    /// `Idempotency-Key` says the same. Without either, every request is a new notification.
    event_id: Option<EventId>,
    /// Who is to be reached.
    to: Addressees,
    /// The way it takes.
    #[serde(default = "push")]
    #[schema(default = "push")]
    channel: Channel,
    /// The lane.
    #[serde(default)]
    #[schema(default = "normal")]
    class: Class,
    /// What kind of notification this is, for the recipients' preferences.
    category: Option<Category>,
    /// The content.
    push: Push,
}

/// Who is to be reached: either recipients or the members of a topic.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = To)]
pub(crate) struct Addressees {
    /// The recipients, each once.
    #[schema(min_items = 1)]
    recipients: Option<Vec<RecipientId>>,
    /// Instead: all members of this topic, as of now. Needs the scope `notifications:broadcast` too.
    topic: Option<Topic>,
}

fn push() -> Channel {
    Channel::Push
}

/// The notification is stored and will be worked on.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SendResponse {
    /// Names the notification; the header `Location` says where its status is.
    notification_id: NotificationId,
    /// The caller's name for it, or the one made for it.
    event_id: EventId,
    /// Jobs stored: one per recipient; for a topic, one per region.
    jobs: usize,
    /// How many of them the streams had already, from an earlier request with the same event id.
    duplicates: usize,
    /// The trace, if the request was traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

/// Send a notification
///
/// The answer 202 means that every job is stored and will be worked on whatever fails then. Any other answer may be
/// repeated with the same event id, without sending anything twice. With the header `Idempotency-Key` any gateway of any
/// region answers a repetition as the first request was answered.
#[utoipa::path(
    post,
    path = "/v1/notifications",
    operation_id = "sendNotification",
    tag = "notifications",
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "The event id; 1 to 255 printable ASCII characters. \
            For two days the same key with the same body is given the same answer; with another body it is refused"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context of the caller"),
    ),
    request_body = SendRequest,
    responses(
        (status = 202, description = "Stored", body = SendResponse, headers(
            ("Location" = String, description = "Where the status of the notification is"),
            ("Idempotent-Replayed" = String, description = "`true` if this answers a repetition of the header \
                Idempotency-Key with what the first request was answered"),
        )),
        openapi::AnyRefusal,
        (status = 503, description = "Not stored, or not surely; repeat with the same event id",
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
        caller.must(Scope::Broadcast)?;
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
                    "The header Idempotency-Key names a request with another body; a new request needs a new key.";
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
            let detail = "It is not known what was stored. Repeat with the same event id; no job is sent twice.";
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
    fn into_order(self, app: Arc<App>, key: Option<EventId>, most_recipients: usize) -> Result<Order, Problem> {
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
            to: self.to.check(most_recipients)?,
            class: self.class,
            category: self.category,
            content: Content::Push(self.push.into()),
        })
    }
}

impl Addressees {
    fn check(self, most_recipients: usize) -> Result<To, Invalid> {
        match (self.recipients, self.topic) {
            (Some(recipients), None) => {
                check(&recipients, most_recipients)?;
                Ok(To::Recipients(recipients))
            }
            (None, Some(topic)) => Ok(To::Topic(topic)),
            (Some(_), Some(_)) | (None, None) => Err(Invalid::new("to", "must name either recipients or a topic")),
        }
    }
}

async fn claim(api: &Api, caller: &Caller<ToSend>, key: &EventId, request: Uuid) -> Result<Claim, Problem> {
    let alone = api.context.config.tenants().regions.len() == 1;
    let claimed = idempotency::claim(
        &api.context.js,
        &api.context.here,
        alone,
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

/// The event id from the header or the body; a fresh one if neither has one.
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

fn check(recipients: &[RecipientId], most: usize) -> Result<(), Invalid> {
    if recipients.is_empty() || recipients.len() > most {
        let rule = format!("must name 1 to {most} recipients, names {}", recipients.len());
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

/// The answer of the first request, said again.
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
            format!("A recipient lives in {region}, which this mesh does not have."),
        ),
        NotAccepted::NotStored { why, stored, jobs } => Problem::from(why).because(format!(
            "{stored} of {jobs} jobs are stored: {why}. Repeat with the same event id; no job is sent twice."
        )),
    }
}

/// The jobs that a request with this body would become, for the fuzz tests.
#[cfg(any(fuzzing, test))]
pub(crate) fn jobs(body: &[u8]) -> Result<Vec<(RecipientId, bytes::Bytes)>, Problem> {
    let request: SendRequest = super::body::parse(body)?;
    let app = App::new("shop".parse()?, "eu".parse()?);
    let order = request.into_order(app.into(), None, 1000)?;
    let body = crate::intake::body::SplitBody::render(&order)?;
    let job = |recipient: &RecipientId| (recipient.clone(), body.to(recipient.as_str()));
    Ok(match &order.to {
        To::Recipients(recipients) => recipients.iter().map(job).collect(),
        To::Topic(_) => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipients(names: &[&str]) -> Vec<RecipientId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn a_recipient_named_twice_is_refused_by_index() {
        assert!(check(&recipients(&["a", "b", "c"]), 3).is_ok());
        assert_eq!(
            check(&recipients(&["a", "b", "c", "b"]), 4).unwrap_err().field,
            "to.recipients[3]"
        );
        assert_eq!(check(&recipients(&["a", "b"]), 1).unwrap_err().field, "to.recipients");
        assert!(check(&[], 1).is_err());
    }

    #[test]
    fn either_recipients_or_a_topic_are_named() {
        let to = |json: &str| serde_json::from_str::<Addressees>(json).unwrap().check(10);
        assert!(matches!(to(r#"{"topic":"news"}"#), Ok(To::Topic(_))));
        assert!(matches!(to(r#"{"recipients":["ann"]}"#), Ok(To::Recipients(_))));
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
