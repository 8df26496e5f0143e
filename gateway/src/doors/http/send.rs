//! `POST /v1/notifications`: sends one notification or many.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Map, Value};
use shared::{
    api_key::Scope,
    failpoint::failpoint,
    id::EventId,
    invalid::Invalid,
    nats::idempotency::{self, Answer, Claim, Fingerprint, Held, Reply},
};
use tokio::time::timeout;

use super::{
    api::Api,
    auth::{Caller, ToSend},
    body::Verbatim,
    named::IdempotencyKey,
    openapi,
    problem::{Document, KEY_IN_USE, KEY_REUSED, Problem, TIMEOUT},
};
use crate::{
    doors::send::{self, Failed, ManyResponse, Results, SendAnswer, SendResponse},
    intake::{
        order::Order,
        request::{Orders, Request, SendBody, Terms},
    },
    trace::Trace,
};

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Send one notification, or many
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
        ("Idempotency-Key" = Option<EventId>, Header, description = "The event id; 1 to 255 printable ASCII \
            characters without spaces. For two days the same key with the same body gets the same answer, and the same \
            key with another body is refused"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context of the caller"),
    ),
    request_body = inline(SendBody),
    responses(
        (status = 202, description = "Stored; of many, all", body = inline(SendAnswer), headers(
            ("Location" = String, description = "The path of the notification's status"),
            ("Idempotent-Replayed" = String, description = "`true` if this repeats the answer to an earlier request \
                with the same header Idempotency-Key"),
        )),
        (status = 207, description = "Of many notifications, some are not stored", body = ManyResponse),
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
    Verbatim(body): Verbatim,
) -> Result<Response, Problem> {
    let terms = Terms {
        app: &caller.app,
        by_test_key: caller.trial().test_key,
        ids: &api.context.config.id_key(),
        at: api.context.clock.now(),
        recipients_max: api.limits.recipients,
        regions: api.context.jobs_of_topic(&caller.app),
    };
    let orders = Request::read(&body)?.orders(&terms, |in_body| event(key.clone(), in_body))?;
    if orders.any_to_topic() {
        caller.require(Scope::Broadcast)?;
    }
    let held = match key {
        None => None,
        Some(key) => match claim(&api, &caller, &key, Fingerprint::of(&body)).await? {
            Claim::Held(held) => Some(held),
            Claim::Answered(reply) => return Ok(replayed(&caller, reply)),
            Claim::InProgress => return Err(Problem::new(KEY_IN_USE, "Repeat after the time in Retry-After.")),
            Claim::OtherRequest => {
                let detail =
                    "The Idempotency-Key was used for a request with another body; a new request needs a new key.";
                return Err(Problem::new(KEY_REUSED, detail));
            }
        },
    };
    match orders {
        Orders::One(order) => send_one(&api, &caller, *order, held, &trace).await,
        Orders::Many(orders) => {
            let within = api.limits.request_timeout();
            let orders = orders.into_iter().map(|(_, order)| order);
            let results = send::accept_many(&api.intake, orders, &trace, within).await;
            Ok(answer_many(&api, &caller, &results, held).await)
        }
    }
}

async fn send_one(
    api: &Api,
    caller: &Caller<ToSend>,
    order: Order,
    held: Option<Held>,
    trace: &Trace,
) -> Result<Response, Problem> {
    let js = &api.context.js;
    let accepted = send::accept(&api.intake, order, trace, api.limits.request_timeout()).await;
    match (&accepted, held) {
        (Ok(answer), Some(held)) => held.complete(js, Reply::One(answer.clone())).await,
        (Err(Failed { nothing_stored, .. }), Some(held)) => held.release(js, *nothing_stored).await,
        (_, None) => {}
    }
    failpoint("gateway.before-answer");
    match accepted {
        Ok(answer) => Ok(stored(caller, answer)),
        Err(failed) => Err(failed.problem),
    }
}

async fn answer_many(api: &Api, caller: &Caller<ToSend>, results: &Results, held: Option<Held>) -> Response {
    let answer = results.answer(&caller.app.id, caller.trial());
    if let Some(held) = held {
        // Items that failed for a reason that passes by itself may be tried again, by the same request.
        match serde_json::to_value(&answer) {
            Ok(Value::Object(reply)) if results.are_final() => held.complete(&api.context.js, Reply::Many(reply)).await,
            _ => held.release(&api.context.js, false).await,
        }
    }
    failpoint("gateway.before-answer");
    (results.status(), axum::Json(answer)).into_response()
}

async fn claim(api: &Api, caller: &Caller<ToSend>, key: &EventId, request: Fingerprint) -> Result<Claim, Problem> {
    let (trial, app) = (caller.trial(), &caller.app.id);
    // A test key answers no repetition of a request of another key.
    let named = trial.name(key);
    let claimed = idempotency::claim(
        &api.context.js,
        &api.context.border,
        &api.context.here,
        app,
        &named,
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

fn stored(caller: &Caller<ToSend>, answer: Answer) -> Response {
    let answer = SendResponse::of(&caller.app.id, caller.trial(), answer);
    let location = format!("/v1/notifications/{}", answer.notification_id);
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], axum::Json(answer)).into_response()
}

/// The answer to the first request, marked as a repetition.
fn replayed(caller: &Caller<ToSend>, reply: Reply) -> Response {
    let mut response = match reply {
        Reply::One(answer) => stored(caller, answer),
        Reply::Many(answer) => (status_of_many(&answer), axum::Json(answer)).into_response(),
    };
    response
        .headers_mut()
        .insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    response
}

fn status_of_many(answer: &Map<String, Value>) -> StatusCode {
    if answer.get("refused").and_then(Value::as_u64) == Some(0) {
        StatusCode::ACCEPTED
    } else {
        StatusCode::MULTI_STATUS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
