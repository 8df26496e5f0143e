//! `GET /v1/notifications/{id}`: what became of a notification.

use std::{collections::BTreeMap, sync::Arc};

use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use shared::{
    channel::Provider,
    id::{AddressId, DeliveryId, EventId, JobId, NotificationId, RecipientId, Region},
    receipt::{Receipt, State as DeliveryState},
};
use utoipa::ToSchema;

use super::{
    auth::{Caller, ToAsk},
    named::Named,
    problem::{Document, NOT_FOUND, Problem, STATUS_UNAVAILABLE},
};
use crate::{parts::Parts, receipts::History};

/// What became of a notification.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Status {
    /// The notification.
    notification_id: NotificationId,
    /// The caller's name for it; absent while no gateway's record of it is there, or if a service published to NATS.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<EventId>,
    /// When a gateway accepted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    accepted_at: Option<Timestamp>,
    /// Jobs it became: one per recipient.
    jobs: usize,
    /// Jobs all of whose deliveries are in a final state.
    done: usize,
    /// The trace, if it was traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    /// How far it is as a whole.
    state: Progress,
    /// Its deliveries: one for each address of each recipient that was tried, or one without address for a recipient
    /// who has none.
    deliveries: Vec<Delivery>,
}

/// How far a notification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Progress {
    /// Stored; nothing has happened yet.
    Accepted,
    /// Some of it has happened.
    #[serde(rename = "in_progress")]
    Working,
    /// All of it has happened.
    Done,
}

/// One job to one address.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Delivery {
    /// Names the delivery, and is the `apns-id` of its attempts; absent if there was no address.
    #[serde(rename = "delivery_id", skip_serializing_if = "Option::is_none")]
    id: Option<DeliveryId>,
    /// The job.
    job: JobId,
    /// Whom it was for.
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<RecipientId>,
    /// The address.
    #[serde(skip_serializing_if = "Option::is_none")]
    address_id: Option<AddressId>,
    /// Who carried it.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<Provider>,
    /// Where it was worked on.
    region: Region,
    /// What became of it.
    state: DeliveryState,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Every attempt, in order.
    attempts: Vec<Attempt>,
}

/// One attempt of a delivery.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Attempt {
    /// Counted from 1.
    #[serde(rename = "attempt")]
    number: u32,
    /// What it came to.
    state: DeliveryState,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// How long the provider took to answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<f64>,
    /// When the next attempt is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    next_at: Option<Timestamp>,
    /// The provider's name for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider_id: Option<String>,
    /// The region whose worker did it, if that helped the recipient's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    by: Option<Region>,
    /// How old what was known of the recipient's consent was, in seconds, if older than the class may bear.
    #[serde(skip_serializing_if = "Option::is_none")]
    stale_s: Option<u32>,
}

/// Ask what became of a notification
///
/// Answered from the receipts of every region that can be reached; those of a region that is cut off come when it is
/// back. Push ends at `delivered`, which says that the provider accepted it.
#[utoipa::path(
    get,
    path = "/v1/notifications/{notification_id}",
    operation_id = "getNotification",
    tag = "notifications",
    params(("notification_id" = NotificationId, Path, description = "The notification")),
    responses(
        (status = 200, description = "What is known", body = Status),
        (status = "4XX", description = "Refused", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "The receipts cannot be read", body = Document,
            content_type = "application/problem+json"),
    ),
    security(("api_key" = ["notifications:read"])),
)]
pub(crate) async fn get(
    State(parts): State<Arc<Parts>>,
    caller: Caller<ToAsk>,
    Named(id): Named<NotificationId>,
) -> Result<axum::Json<Status>, Problem> {
    match parts.receipts.history(&caller.app.id, id).await {
        Ok(Some(history)) => Ok(axum::Json(Status::of(id, history))),
        Ok(None) => Err(Problem::new(
            NOT_FOUND,
            "No notification with this id is known, or it is too long ago.",
        )),
        Err(error) => Err(Problem::new(STATUS_UNAVAILABLE, error.to_string())),
    }
}

impl Status {
    fn of(id: NotificationId, history: History) -> Self {
        // A repeated request is accepted again; the first time counts.
        let first = history.accepted.iter().min_by_key(|accepted| accepted.at);
        let event_id = first.map(|accepted| accepted.event_id.clone());
        let accepted_at = first.map(|accepted| accepted.at);
        let promised = history
            .accepted
            .iter()
            .map(|accepted| accepted.jobs as usize)
            .max()
            .unwrap_or_default();
        let trace_id = history
            .accepted
            .iter()
            .find_map(|accepted| accepted.trace.clone())
            .or_else(|| history.receipts.iter().find_map(|(_, receipt)| receipt.trace.clone()));

        let deliveries = deliveries(history.receipts);
        let mut finished: BTreeMap<JobId, bool> = BTreeMap::new();
        for delivery in &deliveries {
            *finished.entry(delivery.job).or_insert(true) &= delivery.state.is_final();
        }
        let jobs = promised.max(finished.len());
        let done = finished.values().filter(|finished| **finished).count();
        let state = match (deliveries.is_empty(), done == jobs) {
            (true, _) => Progress::Accepted,
            (false, false) => Progress::Working,
            (false, true) => Progress::Done,
        };
        Self {
            notification_id: id,
            event_id,
            accepted_at,
            jobs,
            done,
            trace_id,
            state,
            deliveries,
        }
    }
}

/// Receipts by delivery, in the order in which deliveries first occur.
fn deliveries(receipts: Vec<(Region, Receipt)>) -> Vec<Delivery> {
    let mut by_delivery = BTreeMap::<_, Vec<_>>::new();
    for (region, receipt) in receipts {
        by_delivery
            .entry((receipt.job, receipt.address))
            .or_default()
            .push((region, receipt));
    }
    let mut deliveries: Vec<Delivery> = by_delivery
        .into_iter()
        .filter_map(|((job, address), mut receipts)| {
            receipts.sort_by_key(|(_, receipt)| (receipt.attempt, receipt.state.is_final(), receipt.at));
            // After a fault a worker may write a receipt again.
            receipts.dedup_by(|(_, b), (_, a)| a.attempt == b.attempt && a.state == b.state && a.reason == b.reason);
            // Nothing comes after a final state, whatever the order of arrival.
            let (region, last) = receipts
                .iter()
                .rfind(|(_, r)| r.state.is_final())
                .or(receipts.last())?
                .clone();
            Some(Delivery {
                id: address.map(|address| DeliveryId::of(job, address)),
                job,
                recipient: last.recipient,
                address_id: address,
                provider: last.provider,
                region,
                state: last.state,
                reason: last.reason.map(String::from),
                attempts: receipts
                    .into_iter()
                    .map(|(_, receipt)| Attempt::from(receipt))
                    .collect(),
            })
        })
        .collect();
    deliveries.sort_by_key(|delivery| delivery.attempts.first().map(|attempt| attempt.at));
    deliveries
}

impl From<Receipt> for Attempt {
    fn from(receipt: Receipt) -> Self {
        Self {
            number: receipt.attempt,
            state: receipt.state,
            reason: receipt.reason.map(String::from),
            at: receipt.at,
            took_ms: receipt.took_us.map(|us| f64::from(us) / 1000.0),
            next_at: receipt.next_at,
            provider_id: receipt.provider_id,
            by: receipt.by,
            stale_s: receipt.stale_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::{channel::Channel, receipt::Accepted};
    use uuid::Uuid;

    use super::*;

    fn receipt(job: u128, address: u128, attempt: u32, state: DeliveryState) -> (Region, Receipt) {
        let receipt = Receipt {
            notification: NotificationId(Uuid::from_u128(1)),
            job: JobId(Uuid::from_u128(job)),
            recipient: Some("ann".parse().unwrap()),
            channel: Channel::Push,
            address: Some(AddressId(Uuid::from_u128(address))),
            provider: Some(Provider::Apns),
            by: None,
            attempt,
            state,
            reason: None,
            provider_id: None,
            at: Timestamp::from_second(i64::from(attempt)).unwrap(),
            took_us: Some(1500),
            next_at: None,
            trace: None,
            stale_s: None,
        };
        ("eu".parse().unwrap(), receipt)
    }

    fn status(jobs: u32, receipts: Vec<(Region, Receipt)>) -> Status {
        let id = NotificationId(Uuid::from_u128(1));
        let at = Timestamp::UNIX_EPOCH;
        let accepted = vec![Accepted {
            notification: id,
            event_id: "e".parse().unwrap(),
            jobs,
            at,
            trace: None,
        }];
        Status::of(id, History { accepted, receipts })
    }

    #[test]
    fn a_notification_is_done_when_every_delivery_of_every_job_is() {
        use DeliveryState::{Delivered, Parked, Rejected};
        let of = |status: &Status| (status.state, status.done, status.deliveries.len());
        assert_eq!(of(&status(2, vec![])), (Progress::Accepted, 0, 0));
        let mut receipts = vec![receipt(1, 1, 1, Delivered), receipt(1, 2, 1, Parked)];
        assert_eq!(of(&status(2, receipts.clone())), (Progress::Working, 0, 2));
        receipts.push(receipt(1, 2, 2, Rejected));
        assert_eq!(of(&status(2, receipts.clone())), (Progress::Working, 1, 2));
        receipts.push(receipt(2, 3, 1, Delivered));
        let done = status(2, receipts);
        assert_eq!(of(&done), (Progress::Done, 2, 3));
        let retried = done
            .deliveries
            .iter()
            .find(|delivery| delivery.attempts.len() == 2)
            .unwrap();
        assert_eq!(retried.state, Rejected);
        assert_eq!(retried.attempts[0].took_ms, Some(1.5));
    }

    #[test]
    fn a_receipt_that_arrives_twice_or_late_changes_nothing() {
        use DeliveryState::{Delivered, Parked};
        let status = status(
            1,
            vec![
                receipt(1, 1, 2, Delivered),
                receipt(1, 1, 1, Parked),
                receipt(1, 1, 2, Delivered),
            ],
        );
        assert_eq!((status.state, status.deliveries[0].attempts.len()), (Progress::Done, 2));
        assert_eq!(status.deliveries[0].state, Delivered);
    }
}
