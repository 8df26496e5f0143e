//! Accepting what a request asks to send, and the answer in JSON: the same at every door.

use std::time::Duration;

use futures::future::join_all;
use http::StatusCode;
use serde::Serialize;
use shared::{
    id::{AppId, EventId, NotificationId},
    nats::idempotency::Answer,
    trial::Trial,
};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::problem::{Document, Problem, TIMEOUT};
use crate::{
    intake::{
        accept::{Intake, NotAccepted},
        order::Order,
        request::Refused,
    },
    trace::Trace,
};

/// The notification is stored and will be processed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SendResponse {
    /// The id of the notification. The header `Location` is the path of its status.
    pub(crate) notification_id: NotificationId,
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

/// The answer to one notification, or to many.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only describes the answer")]
pub(crate) enum SendAnswer<'a> {
    One(SendResponse),
    Many(ManyResponse<'a>),
}

/// What became of each of many notifications.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ManyResponse<'a> {
    /// The result of each item, in order.
    results: Vec<ItemResult<'a>>,
    /// How many have status 202.
    accepted: usize,
    /// How many have another status.
    refused: usize,
}

/// What became of one of many notifications.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ItemResult<'a> {
    /// Its place, from 0.
    index: usize,
    /// What a request with this item alone would be answered.
    status: u16,
    /// The answer, with status 202.
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<SendResponse>,
    /// The problem, with any other status.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Document>)]
    problem: Option<Document<'a>>,
}

/// What became of each of many notifications, in order.
#[derive(Debug)]
pub(crate) struct Results(Vec<Result<Answer, Problem>>);

/// Why an order was not accepted, and whether it is certain that nothing was stored.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) problem: Problem,
    pub(crate) nothing_stored: bool,
}

/// Stores the jobs of `order`, or plans it, for at most `within`.
pub(crate) async fn accept(intake: &Intake, order: Order, trace: &Trace, within: Duration) -> Result<Answer, Failed> {
    let event = order.event.clone();
    match timeout(within, intake.take(order, trace)).await {
        Ok(Ok(stored)) => Ok(Answer {
            event_id: event,
            jobs: stored.jobs,
            duplicates: stored.duplicates,
            trace_id: trace.id(),
        }),
        Ok(Err(refused)) => Err(Failed {
            nothing_stored: !matches!(&refused, NotAccepted::NotStored { .. }),
            problem: Problem::from(refused).event(event),
        }),
        Err(_) => {
            let detail = "Something may have been stored. Repeat with the same event id; no job is sent twice.";
            Err(Failed {
                problem: Problem::new(TIMEOUT, detail).event(event),
                nothing_stored: false,
            })
        }
    }
}

/// Stores the jobs of each order, all at once, for at most `within`.
pub(crate) async fn accept_many(
    intake: &Intake,
    orders: impl Iterator<Item = Result<Order, Refused>>,
    trace: &Trace,
    within: Duration,
) -> Results {
    let accepted = orders.enumerate().map(async |(index, order)| {
        let accepted = match order {
            Ok(order) => accept(intake, order, trace, within)
                .await
                .map_err(|failed| failed.problem),
            Err(refused) => Err(Problem::from(refused)),
        };
        accepted.map_err(|problem| problem.within(&format!("notifications[{index}]")))
    });
    Results(join_all(accepted).await)
}

impl SendResponse {
    /// The answer to a request of `app`, whose key is as `trial` says.
    pub(crate) fn of(app: &AppId, trial: Trial, answer: Answer) -> Self {
        let Answer {
            event_id,
            jobs,
            duplicates,
            trace_id,
        } = answer;
        Self {
            notification_id: NotificationId::of(app, &trial.name(&event_id)),
            event_id,
            jobs,
            duplicates,
            trace_id,
        }
    }
}

impl Results {
    /// Whether no item was refused for a reason that passes by itself: repeating the request would change nothing.
    pub(crate) fn are_final(&self) -> bool {
        !self
            .0
            .iter()
            .any(|result| result.as_ref().is_err_and(Problem::is_passing))
    }

    /// What became of each item.
    pub(crate) fn into_items(self) -> Vec<Result<Answer, Problem>> {
        self.0
    }

    /// The status of the answer as a whole.
    pub(crate) fn status(&self) -> StatusCode {
        if self.0.iter().all(Result::is_ok) {
            StatusCode::ACCEPTED
        } else {
            StatusCode::MULTI_STATUS
        }
    }

    /// The answer in JSON to a request of `app`, whose key is as `trial` says.
    pub(crate) fn answer(&self, app: &AppId, trial: Trial) -> ManyResponse<'_> {
        let results = self.0.iter().enumerate().map(|(index, result)| ItemResult {
            index,
            status: match result {
                Ok(_) => StatusCode::ACCEPTED.as_u16(),
                Err(problem) => problem.kind().status.as_u16(),
            },
            accepted: result
                .as_ref()
                .ok()
                .map(|answer| SendResponse::of(app, trial, answer.clone())),
            problem: result.as_ref().err().map(|problem| problem.document(None, None)),
        });
        let results: Vec<_> = results.collect();
        let accepted = self.0.iter().filter(|result| result.is_ok()).count();
        ManyResponse {
            refused: results.len() - accepted,
            results,
            accepted,
        }
    }
}
