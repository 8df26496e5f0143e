//! The status of a notification, computed from its receipts.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;
use serde::Serialize;
use shared::{
    channel::Channel,
    feedback::{Feedback, Kind},
    id::{AddressId, DeliveryId, EventId, GroupKey, JobId, NotificationId, RecipientId, Region, ScheduleId},
    nats::planned::{Decision, Known, Plan},
    provider::Provider,
    receipt::{Receipt, State as DeliveryState},
};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{broadcast::Broadcast, receipts::History};

/// The status of a notification.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Status {
    /// The id of the notification: a digest of app and event id.
    notification_id: NotificationId,
    /// The caller's event id. Absent until a gateway's record of the acceptance has arrived, and if a service published
    /// the notification to NATS itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<EventId>,
    /// When a gateway first accepted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    accepted_at: Option<Timestamp>,
    /// Number of jobs: one for each recipient and channel; of a plan whose steps follow each other, one for each step that began.
    /// For a broadcast, the members known so far.
    jobs: usize,
    /// Number of jobs whose deliveries are all in a final state.
    done: usize,
    /// The W3C trace id, if the notification was traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    /// The progress of the whole notification.
    state: Progress,
    /// The progress of a broadcast; absent if it is not one.
    #[serde(skip_serializing_if = "Option::is_none")]
    broadcast: Option<Broadcast>,
    /// One delivery for each address that was tried, or one without address for a recipient who has none. The
    /// deliveries of a broadcast are counted under `broadcast` instead.
    deliveries: Vec<Delivery>,
    /// When it is, or was, to be sent, if it had to wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    send_at: Option<Timestamp>,
    /// Until when it is worth delivering, if it had to wait and its caller said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// The group that it belongs to, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    group_key: Option<GroupKey>,
    /// The schedule that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule_id: Option<ScheduleId>,
    /// When it was cancelled before it became any job: nothing of it was or will be sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    cancelled_at: Option<Timestamp>,
}

/// The progress of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Progress {
    /// Stored; no attempt is known yet.
    Accepted,
    /// Some deliveries are not in a final state yet.
    #[serde(rename = "in_progress")]
    Working,
    /// All deliveries are in a final state.
    Done,
    /// It waits for its `send_at`.
    Scheduled,
}

/// A delivery: one job to one address.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Delivery {
    /// The id of the delivery, which is also the `apns-id` of its attempts. Absent if the recipient has no address.
    #[serde(rename = "delivery_id", skip_serializing_if = "Option::is_none")]
    id: Option<DeliveryId>,
    /// The id of the job.
    job: JobId,
    /// The recipient; absent if the job could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<RecipientId>,
    /// The id of the address; absent if the recipient has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    address_id: Option<AddressId>,
    /// The provider of the last attempt; absent if nothing was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<Provider>,
    /// The region that made the delivery: the recipient's home.
    region: Region,
    /// The final state, or the state after the last attempt.
    state: DeliveryState,
    /// Why the delivery is in this state: a reason of the provider, such as `Unregistered`, or of Peal, such as
    /// `opted_out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Every attempt, and every wait of the job as a whole, oldest first.
    attempts: Vec<Attempt>,
    /// The channel of the job.
    channel: Channel,
    /// The number of the plan's step, from 0; absent if its steps do not follow each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<u32>,
    /// What was reported after the final state, oldest first; absent if nothing was.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    feedback: Vec<FeedbackItem>,
}

/// What was reported about a delivery after its final state, which it does not change.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Feedback)]
pub(crate) struct FeedbackItem {
    /// What happened.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    kind: Kind,
    /// When it happened.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// The delivery.
    delivery_id: DeliveryId,
    /// The provider that reported it; absent if the recipient did.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<Provider>,
    /// The enhanced status code, or the code of a carrier or provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Whether the mailbox will never take mail; of a bounce.
    #[serde(skip_serializing_if = "Option::is_none")]
    hard: Option<bool>,
}

/// One attempt of a delivery.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Attempt {
    /// The number of the attempt, counted from 1. A wait is no attempt: `deferred` has the number of the attempt to come.
    #[serde(rename = "attempt")]
    number: u32,
    /// The outcome of the attempt.
    state: DeliveryState,
    /// Why the attempt had this outcome: a reason of the provider or of Peal.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// When the outcome was recorded.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// How long the provider took to answer, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<f64>,
    /// When the next attempt is due, when the wait ends, or when the next step of the plan is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    next_at: Option<Timestamp>,
    /// The provider's id of the message, if its answer had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider_id: Option<String>,
    /// The region whose worker made the attempt, if it helped the recipient's own region.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    by: Option<Region>,
    /// The age of the known consent in seconds, if it was older than the class allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    stale_s: Option<u32>,
}

impl Status {
    /// Computes the status from everything that is recorded.
    pub(crate) fn of(id: NotificationId, history: History) -> Self {
        // A repeated request is accepted again; the first acceptance counts.
        let first = history.accepted.iter().min_by_key(|accepted| accepted.at);
        let event_id = first.map(|accepted| accepted.event_id.clone());
        let accepted_at = first.map(|accepted| accepted.at);
        let expected = history
            .accepted
            .iter()
            .map(|accepted| accepted.jobs as usize)
            .max()
            .unwrap_or_default();
        // Of a plan whose steps follow each other the gateway accepts the first ones. A later one may end before the receipt that
        // promises it, after a crash.
        let receipts = history.receipts.iter().map(|(_, receipt)| receipt);
        let later = receipts.flat_map(|receipt| {
            let is_later = receipt.step.is_some_and(|step| step > 0);
            [receipt.next_job, is_later.then_some(receipt.job)]
                .into_iter()
                .flatten()
        });
        let later: HashSet<JobId> = later.collect();
        let expected = expected + later.len();
        let trace_id = history
            .accepted
            .iter()
            .find_map(|accepted| accepted.trace.clone())
            .or_else(|| history.receipts.iter().find_map(|(_, receipt)| receipt.trace.clone()));

        let broadcast = Broadcast::of(&history);
        let receipts = history.receipts.into_iter();
        let deliveries = match &broadcast {
            Some(_) => deliveries(receipts.filter(|(_, receipt)| receipt.recipient.is_some()).collect()),
            None => deliveries(receipts.collect()),
        };
        let mut finished: BTreeMap<JobId, bool> = BTreeMap::new();
        for delivery in &deliveries {
            *finished.entry(delivery.job).or_insert(true) &= delivery.state.is_final();
        }
        let mut done = finished.values().filter(|finished| **finished).count();
        let (mut jobs, mut has_begun) = (expected.max(finished.len()), !deliveries.is_empty());
        let mut is_done = done == jobs;
        if let Some((broadcast, all)) = &broadcast {
            let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
            is_done = *all && done == finished.len();
            has_begun |= !broadcast.by_region.is_empty();
            jobs = count(broadcast.total) + finished.len();
            done += count(broadcast.done);
        }
        let state = match (has_begun, is_done) {
            (false, _) => Progress::Accepted,
            (true, false) => Progress::Working,
            (true, true) => Progress::Done,
        };
        Self {
            notification_id: id,
            event_id,
            accepted_at,
            jobs,
            done,
            trace_id,
            state,
            broadcast: broadcast.map(|(broadcast, _)| broadcast),
            deliveries,
            send_at: None,
            expires_at: None,
            group_key: None,
            schedule_id: None,
            cancelled_at: None,
        }
    }

    /// The status of a notification that waits, or has waited, for its time, and of which nothing else is recorded yet.
    pub(crate) fn of_planned(id: NotificationId, known: &Known) -> Self {
        let none = Self::of(id, History::default());
        let (plan, state, cancelled_at) = match known {
            Known::Waiting(planned) => (&planned.plan, Progress::Scheduled, None),
            Known::Decided(fate) if fate.decision == Decision::Cancelled => (&fate.plan, Progress::Done, Some(fate.at)),
            Known::Decided(fate) => (&fate.plan, Progress::Accepted, None),
        };
        let jobs = if state == Progress::Accepted {
            plan.jobs as usize
        } else {
            0
        };
        let status = Self {
            event_id: Some(plan.event_id.clone()),
            jobs,
            state,
            cancelled_at,
            ..none
        };
        status.planned_as(plan)
    }

    /// Adds when it was to be sent, and its group.
    #[must_use]
    pub(crate) fn planned_as(self, plan: &Plan) -> Self {
        Self {
            send_at: Some(plan.send_at),
            expires_at: plan.expires_at,
            group_key: plan.group_key.clone(),
            schedule_id: plan.schedule_id.clone(),
            ..self
        }
    }

    /// Adds its group.
    #[must_use]
    pub(crate) fn in_group(self, group: &GroupKey) -> Self {
        Self {
            group_key: Some(group.clone()),
            ..self
        }
    }

    /// Whether nothing of it can change any more but by feedback.
    pub(crate) fn is_done(&self) -> bool {
        self.state == Progress::Done
    }
}

impl History {
    /// The regions that worked on deliveries about which something may be reported later. Push services and receivers of webhooks
    /// report nothing.
    pub(crate) fn regions_with_feedback(&self) -> Vec<Region> {
        let may_have = |(_, receipt): &&(Region, Receipt)| {
            matches!(receipt.channel, Channel::Email | Channel::Sms) && receipt.address.is_some()
        };
        let regions = self.receipts.iter().filter(may_have).map(|(region, _)| region.clone());
        regions.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl Status {
    /// Adds to each delivery what was reported about it.
    #[must_use]
    pub(crate) fn with_feedback(mut self, feedback: Vec<Feedback>) -> Self {
        for feedback in feedback {
            for delivery in &mut self.deliveries {
                let (Some(id), Some(address)) = (delivery.id, delivery.address_id) else {
                    continue;
                };
                if !feedback.is_about(delivery.job, address) {
                    continue;
                }
                delivery.feedback.push(FeedbackItem {
                    kind: feedback.kind,
                    at: feedback.at,
                    delivery_id: id,
                    provider: feedback.provider,
                    reason: feedback.reason.clone(),
                    hard: feedback.hard,
                });
            }
        }
        self
    }
}

/// The receipts of each delivery, with the region that each is from.
type ByDelivery = BTreeMap<(JobId, Option<AddressId>), Vec<(Region, Receipt)>>;

/// Groups receipts by delivery. The deliveries are in the order of their first attempts.
fn deliveries(receipts: Vec<(Region, Receipt)>) -> Vec<Delivery> {
    let mut by_delivery = ByDelivery::new();
    let (deferred, worked_on): (Vec<_>, Vec<_>) = receipts
        .into_iter()
        .partition(|(_, receipt)| receipt.state == DeliveryState::Deferred);
    for (region, receipt) in worked_on {
        by_delivery
            .entry((receipt.job, receipt.address))
            .or_default()
            .push((region, receipt));
    }
    for wait in deferred {
        add_wait(&mut by_delivery, wait);
    }
    let mut deliveries: Vec<Delivery> = by_delivery
        .into_iter()
        .filter_map(|((job, address), mut receipts)| {
            receipts.sort_by_key(|(_, receipt)| (receipt.attempt, receipt.state.is_final(), receipt.at));
            // After a fault a worker may write a receipt again. Two waits for one reason differ in their ends.
            receipts.dedup_by(|(_, b), (_, a)| {
                let same = a.attempt == b.attempt && a.state == b.state && a.reason == b.reason;
                same && (a.state != DeliveryState::Deferred || a.next_at == b.next_at)
            });
            // A final state wins over the others, whatever the order of arrival.
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
                channel: last.channel,
                step: last.step,
                feedback: Vec::new(),
            })
        })
        .collect();
    deliveries.sort_by_key(|delivery| delivery.attempts.first().map(|attempt| attempt.at));
    deliveries
}

/// Adds the wait of a job as a whole to each delivery that followed it, or, while there is none, as a delivery without an
/// address.
fn add_wait(by_delivery: &mut ByDelivery, wait: (Region, Receipt)) {
    let (job, attempt) = (wait.1.job, wait.1.attempt);
    let of_job = (job, None)..=(job, Some(AddressId(Uuid::max())));
    let mut is_over = false;
    for (_, receipts) in by_delivery.range_mut(of_job) {
        let follows =
            |(_, receipt): &(Region, Receipt)| receipt.attempt <= attempt && receipt.state != DeliveryState::Deferred;
        if receipts.iter().any(follows) {
            receipts.push(wait.clone());
            is_over = true;
        }
    }
    if !is_over {
        by_delivery.entry((job, None)).or_default().push(wait);
    }
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
    use proptest::prelude::*;
    use shared::receipt::{Accepted, Expanded, ExpandedSlice, Split};

    use super::*;
    use crate::records::receipts::Late;

    fn receipt(job: u128, address: u128, attempt: u32, state: DeliveryState) -> (Region, Receipt) {
        let (notification, job) = (NotificationId(Uuid::from_u128(1)), JobId(Uuid::from_u128(job)));
        let at = Timestamp::from_second(i64::from(attempt)).unwrap();
        let receipt = Receipt {
            recipient: Some("ann".parse().unwrap()),
            address: Some(AddressId(Uuid::from_u128(address))),
            provider: Some(Provider::Apns),
            attempt,
            took_us: Some(1500),
            ..Receipt::new(notification, job, Channel::Push, state, at)
        };
        ("eu".parse().unwrap(), receipt)
    }

    fn feedback(number: u128, job: Option<u128>, address: u128, kind: Kind) -> Feedback {
        Feedback {
            id: Uuid::from_u128(number),
            kind,
            at: Timestamp::from_second(60).unwrap(),
            notification: NotificationId(Uuid::from_u128(1)),
            job: job.map(|job| JobId(Uuid::from_u128(job))),
            address: AddressId(Uuid::from_u128(address)),
            channel: Channel::Email,
            provider: Some(Provider::SendGrid),
            reason: None,
            hard: None,
        }
    }

    proptest! {
        /// Whatever is reported, and about whatever: states, counts and progress stay those of the receipts.
        #[test]
        fn feedback_changes_nothing_but_itself(
            of_receipts in prop::collection::vec((0u128..3, 0u128..3, 1u32..3, 0usize..DeliveryState::ALL.len()), 0..8),
            of_feedback in prop::collection::vec((prop::option::of(0u128..4), 0u128..4, 0usize..Kind::ALL.len()), 0..8),
        ) {
            let all = || {
                let each = of_receipts.iter();
                each.map(|(job, address, attempt, state)| receipt(*job, *address, *attempt, DeliveryState::ALL[*state])).collect()
            };
            let given = (0u128..).zip(&of_feedback);
            let given = given.map(|(number, (job, address, kind))| feedback(number, *job, *address, Kind::ALL[*kind]));
            let with = status(3, all()).with_feedback(given.collect());
            let mut with = serde_json::to_value(&with).unwrap();
            for delivery in with["deliveries"].as_array_mut().unwrap() {
                delivery.as_object_mut().unwrap().remove("feedback");
            }
            prop_assert_eq!(with, serde_json::to_value(status(3, all())).unwrap());
        }
    }

    #[test]
    fn feedback_stands_at_its_delivery() {
        let receipts = vec![
            receipt(1, 1, 1, DeliveryState::Delivered),
            receipt(1, 2, 1, DeliveryState::Delivered),
            receipt(2, 3, 1, DeliveryState::Delivered),
        ];
        let given = vec![
            feedback(1, Some(1), 2, Kind::Confirmed),
            feedback(2, None, 3, Kind::Bounced),
            feedback(3, Some(9), 1, Kind::Complained),
        ];
        let status = status(2, receipts).with_feedback(given);
        let kinds = |address: u128| {
            let id = Some(AddressId(Uuid::from_u128(address)));
            let delivery = status
                .deliveries
                .iter()
                .find(|delivery| delivery.address_id == id)
                .unwrap();
            delivery.feedback.iter().map(|item| item.kind).collect::<Vec<_>>()
        };
        assert_eq!(
            (kinds(1), kinds(2), kinds(3)),
            (vec![], vec![Kind::Confirmed], vec![Kind::Bounced])
        );
        assert_eq!(status.done, 2);
    }

    fn status(jobs: u32, receipts: Vec<(Region, Receipt)>) -> Status {
        let id = NotificationId(Uuid::from_u128(1));
        let at = Timestamp::UNIX_EPOCH;
        let accepted = vec![Accepted {
            notification: id,
            event_id: "e".parse().unwrap(),
            jobs,
            topic: None,
            at,
            trace: None,
        }];
        let late = Late::new();
        Status::of(
            id,
            History {
                accepted,
                receipts,
                late,
            },
        )
    }

    #[test]
    fn a_broadcast_is_done_when_every_slice_is_done_and_no_delivery_is_parked() {
        use DeliveryState::{Cancelled, Delivered, Parked};
        let id = NotificationId(Uuid::from_u128(1));
        let accepted_at = Timestamp::UNIX_EPOCH;
        let accepted = Accepted {
            notification: id,
            event_id: "e".parse().unwrap(),
            jobs: 2,
            topic: Some("news".parse().unwrap()),
            at: accepted_at,
            trace: None,
        };
        let expanded = |region: &str, job: u128, expanded: Expanded| {
            let (_, receipt) = receipt(job, 0, 1, DeliveryState::Expanded);
            let receipt = Receipt {
                recipient: None,
                address: None,
                expanded: Some(expanded.into()),
                ..receipt
            };
            (region.parse().unwrap(), receipt)
        };
        let split = |region: &str, slices, members| {
            let split = Split {
                slices,
                members,
                accepted_at,
            };
            expanded(region, 1, Expanded::Slices(split))
        };
        let slice = |number, jobs, by_state: &[(DeliveryState, u32)], cancelled| {
            let slice = ExpandedSlice {
                broadcast: JobId(Uuid::from_u128(1)),
                number,
                of: 2,
                jobs,
                by_state: by_state.iter().copied().collect(),
                cancelled,
                forwarded: 0,
                accepted_at,
            };
            expanded("eu", 2 + u128::from(number), Expanded::Jobs(slice))
        };
        let of = |receipts: &[(Region, Receipt)], late: Late| {
            let history = History {
                accepted: vec![accepted.clone()],
                receipts: receipts.to_vec(),
                late,
            };
            let status = Status::of(id, history);
            let broadcast = status.broadcast.unwrap();
            (status.state, status.jobs, status.done, broadcast.by_state)
        };
        let mut receipts = Vec::new();
        let accepted_only = of(&receipts, Late::new());
        assert_eq!(
            (accepted_only.0, accepted_only.1, accepted_only.2),
            (Progress::Accepted, 0, 0)
        );
        receipts.extend([
            split("eu", 2, 1500),
            slice(0, 1000, &[(Delivered, 999), (Parked, 1)], 0),
        ]);
        let half = of(&receipts, Late::new());
        assert_eq!((half.0, half.1, half.2), (Progress::Working, 1500, 1000));
        // A slice that is reported twice counts once; no member lives in the other region.
        receipts.extend([
            slice(1, 300, &[(Delivered, 300)], 199),
            receipts[1].clone(),
            split("us", 0, 0),
        ]);
        let parked = of(&receipts, Late::new());
        assert_eq!((parked.0, parked.1, parked.2), (Progress::Working, 1499, 1499));
        let late = [(("eu".parse().unwrap(), Delivered), 1)].into();
        let done = of(&receipts, late);
        assert_eq!((done.0, done.1, done.2), (Progress::Done, 1499, 1499));
        assert_eq!(done.3, [(Delivered, 1300), (Cancelled, 199)].into());

        // By two channels: a broadcast for each, in which each member counts.
        let texts = receipts.clone().into_iter().map(|(region, receipt)| {
            let job = JobId(Uuid::from_u128(100 + receipt.job.0.as_u128()));
            let receipt = Receipt {
                channel: Channel::Sms,
                job,
                ..receipt
            };
            (region, receipt)
        });
        receipts.extend(texts.collect::<Vec<_>>());
        let late = |count| [(("eu".parse().unwrap(), Delivered), count)].into();
        assert_eq!(of(&receipts, late(1)).0, Progress::Working, "one is parked");
        let both = of(&receipts, late(2));
        assert_eq!((both.0, both.1, both.2), (Progress::Done, 2998, 2998));
        assert_eq!(both.3, [(Delivered, 2600), (Cancelled, 398)].into());
    }

    #[test]
    fn the_next_step_of_a_plan_counts_from_the_receipt_that_promises_it() {
        use DeliveryState::{Delivered, Rejected};
        let of = |status: &Status| (status.state, status.jobs, status.done);
        let (region, failed) = receipt(1, 1, 1, Rejected);
        let failed = Receipt {
            step: Some(0),
            next_job: Some(JobId(Uuid::from_u128(3))),
            ..failed
        };
        let mut receipts = vec![(region, failed)];
        // Of two recipients, the other was not worked on yet.
        assert_eq!(of(&status(2, receipts.clone())), (Progress::Working, 3, 1));
        let (region, sent) = receipt(3, 2, 1, Delivered);
        let sent = Receipt {
            channel: Channel::Sms,
            step: Some(1),
            ..sent
        };
        receipts.push((region, sent));
        assert_eq!(of(&status(2, receipts.clone())), (Progress::Working, 3, 2));
        receipts.push(receipt(2, 1, 1, Delivered));
        let done = status(2, receipts);
        assert_eq!(of(&done), (Progress::Done, 3, 3));
        let steps: Vec<_> = done.deliveries.iter().map(|it| (it.channel, it.step)).collect();
        assert!(steps.contains(&(Channel::Sms, Some(1))) && steps.contains(&(Channel::Push, None)));
    }

    #[test]
    fn a_notification_is_done_when_every_delivery_is_final() {
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
    fn a_deferred_job_is_in_progress_until_it_is_worked_on() {
        use DeliveryState::{Deferred, Delivered, Expired};
        let wait = |until| {
            let (region, receipt) = receipt(1, 0, 1, Deferred);
            let receipt = Receipt {
                address: None,
                provider: None,
                took_us: None,
                reason: Some("quiet_hours".into()),
                at: Timestamp::UNIX_EPOCH,
                next_at: Timestamp::from_second(until).ok(),
                ..receipt
            };
            (region, receipt)
        };
        let states = |delivery: &Delivery| -> Vec<_> {
            let attempts = delivery.attempts.iter();
            attempts.map(|it| (it.number, it.state, it.next_at)).collect()
        };
        let end = |until| (1, Deferred, Timestamp::from_second(until).ok());
        let waiting = status(1, vec![wait(100), wait(100), wait(200)]);
        assert_eq!((waiting.state, waiting.jobs, waiting.done), (Progress::Working, 1, 0));
        let [delivery] = waiting.deliveries.as_slice() else {
            panic!("{:?}", waiting.deliveries)
        };
        assert_eq!((delivery.state, delivery.address_id), (Deferred, None));
        assert_eq!(delivery.reason.as_deref(), Some("quiet_hours"));
        assert_eq!(states(delivery), [end(100), end(200)]);

        // The receipt of the wait may arrive late.
        let sent = status(
            1,
            vec![receipt(1, 1, 1, Delivered), wait(100), receipt(1, 2, 1, Delivered)],
        );
        assert_eq!((sent.state, sent.done, sent.deliveries.len()), (Progress::Done, 1, 2));
        for delivery in &sent.deliveries {
            assert_eq!(delivery.state, Delivered);
            assert_eq!(states(delivery), [end(100), (1, Delivered, None)]);
        }

        let (region, expired) = receipt(1, 0, 1, Expired);
        let expired = Receipt {
            address: None,
            ..expired
        };
        let expired = status(1, vec![wait(100), (region, expired)]);
        assert_eq!((expired.state, expired.deliveries.len()), (Progress::Done, 1));
        assert_eq!(expired.deliveries[0].state, Expired);

        // A retry overtook the pass that parked it, which crashed; the other addresses wait.
        let overtaken = status(1, vec![receipt(1, 1, 2, Delivered), wait(100)]);
        assert_eq!((overtaken.state, overtaken.deliveries.len()), (Progress::Working, 2));
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
