//! Notifications that are not accepted before their time, in the region's stream [`PLANNED`].
//!
//! A notification waits as one schedule (NATS ADR-51). When its time comes, `JetStream` moves it to a subject that gateways
//! consume, and a gateway accepts it as if it came just then. A server that has begun to fire a schedule fires it although the
//! schedule is replaced or purged meanwhile. So the schedule itself decides nothing: whoever accepts, cancels or changes
//! a notification first writes its *fate*, a message that expects the fate before it as the last one. Of several at once the
//! server takes one, and the others read what was decided.
//!
//! - waiting, no fate: nothing was decided;
//! - [`Decision::Changed`] holds the whole notification anew; what fires from before the change is not accepted;
//! - [`Decision::Cancelled`] and [`Decision::Fired`] are final.

use std::time::Duration;

use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};
use uuid::Uuid;

use super::{
    current,
    direct::{self, Found, NoAnswer},
    envelope,
    publish::{self, NotStored},
    subject,
    topology::{Domain, PLANNED, RECEIPTS_MAX_AGE},
    version,
};
use crate::{
    digest::derive,
    id::{AppId, EventId, GroupKey, NotificationId, RecipientId, ScheduleId},
    recipient::RecipientKey,
    telemetry::trace::TRACEPARENT,
};

/// The subject whose last sequence a publisher expects, if it is not that of the message.
pub(super) const EXPECTED_OF_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// How long what was decided is kept: as long as receipts, which say what became of it.
const DECISION_KEPT_FOR: Duration = RECEIPTS_MAX_AGE;

/// How often what was decided meanwhile is read again before a caller is told to repeat.
const TRIES: usize = 4;

/// Members of a group in one answer of the server.
const MEMBERS_PER_PAGE: usize = 512;

/// Planned notifications that an erasure reads at a time; each may have 64 KiB.
const ERASED_PER_PAGE: usize = 64;

/// What is planned, without the content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The caller's name for what happened.
    pub event_id: EventId,
    /// When it is to be accepted.
    pub send_at: Timestamp,
    /// When it stops being worth delivering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// What it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_key: Option<GroupKey>,
    /// The schedule that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule_id: Option<ScheduleId>,
    /// When a gateway stored it.
    pub planned_at: Timestamp,
    /// Whether a test key sent it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test_key: bool,
    /// Number of jobs that it would have become when it was planned.
    pub jobs: u32,
    /// The change that made it what it is; `None` if it was not changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Uuid>,
}

/// A planned notification.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Planned {
    /// When, and what it belongs to.
    pub plan: Plan,
    /// The notification as its caller wrote it.
    pub notification: Box<RawValue>,
}

/// What was decided about a planned notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It is another notification now, perhaps at another time.
    Changed,
    /// It is never accepted.
    Cancelled,
    /// A gateway accepts it.
    Fired,
}

/// What was decided about a planned notification, and when.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fate {
    /// What was decided.
    pub decision: Decision,
    /// When it was decided.
    pub at: Timestamp,
    /// When it was to be sent. Of what has fired, `jobs` is the number of jobs that are or will be stored; 0 if it broke a rule
    /// by then, which a dead letter says.
    pub plan: Plan,
    /// Whether the jobs are broadcasts, one for each region.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub to_topic: bool,
    /// The notification after a change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification: Option<Box<RawValue>>,
}

/// What is known about one planned notification.
#[derive(Debug, Clone)]
pub enum Known {
    /// It waits for its time, or its time has come and no gateway has begun to accept it.
    Waiting(Planned),
    /// It was cancelled, or a gateway accepts it.
    Decided(Fate),
}

/// A group of notifications. What test keys send is apart.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// Its name.
    pub key: &'a GroupKey,
    /// Whether it is one of test keys.
    pub of_test_keys: bool,
}

impl Group<'_> {
    /// A name for subjects, which no other group has.
    fn id(self) -> Uuid {
        // No key holds a space.
        let suffix = if self.of_test_keys { " test" } else { "" };
        derive("group", &[self.key.as_str(), suffix])
    }
}

/// What became of an attempt to plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It waits.
    New,
    /// A notification with this id is planned already, or was.
    Duplicate,
}

/// What became of an attempt to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    /// It is never accepted.
    Cancelled,
    /// A gateway accepts it, or has.
    Fired,
    /// No notification of this id waits, or has waited for the last three days.
    Unknown,
}

/// What a gateway may do with what is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Accept it. Perhaps it has begun to before; the ids of its jobs keep them single.
    Accept,
    /// Nothing: it was cancelled, or is changed and waits again.
    Drop,
}

/// Where a planned notification stands, and what its next fate expects.
struct Standing {
    known: Known,
    /// The sequence of its fate; 0 without one.
    fate: u64,
}

/// Plans a notification, unless one with this id is planned or was lately. `trace` continues its caller's trace.
///
/// # Errors
/// When the server did not confirm that it stored the schedule.
pub async fn store(
    js: &jetstream::Context,
    app: &AppId,
    id: NotificationId,
    planned: &Planned,
    trace: Option<&str>,
) -> Result<Stored, NotStored> {
    let any = subject::planned_any(app, id);
    if current::last(js, PLANNED, &any).await?.is_some() {
        return Ok(Stored::Duplicate);
    }
    match arm(js, app, id, planned, trace, 0).await {
        Ok(()) => Ok(Stored::New),
        Err(NotStored::Refused) if current::last(js, PLANNED, &any).await?.is_some() => Ok(Stored::Duplicate),
        Err(error) => Err(error),
    }
}

/// Stores the schedule of a notification whose fate is the message `fate`.
async fn arm(
    js: &jetstream::Context,
    app: &AppId,
    id: NotificationId,
    planned: &Planned,
    trace: Option<&str>,
    fate: u64,
) -> Result<(), NotStored> {
    let mut headers = version::headers();
    envelope::schedule(&mut headers, planned.plan.send_at, subject::planned_due(app, id));
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, fate.to_string());
    headers.insert(EXPECTED_OF_SUBJECT, subject::planned_fate(app, id));
    if let Some(trace) = trace {
        headers.insert(TRACEPARENT, trace);
    }
    publish::store(js, subject::planned_wait(app, id), headers, json(planned)).await?;
    Ok(())
}

/// What is known about the planned notification `id`; `None` if it does not wait, and nothing was decided for three days.
///
/// # Errors
/// When the stream does not answer.
pub async fn find(js: &jetstream::Context, app: &AppId, id: NotificationId) -> Result<Option<Known>, NoAnswer> {
    let found = current::last(js, PLANNED, &subject::planned_any(app, id)).await?;
    found.as_ref().map(known).transpose()
}

fn known(found: &Found) -> Result<Known, NoAnswer> {
    if !found.subject.starts_with("planned.fate.") {
        return Ok(Known::Waiting(read(&found.payload)?));
    }
    let mut fate: Fate = read(&found.payload)?;
    Ok(match (fate.decision, fate.notification.take()) {
        (Decision::Changed, Some(notification)) => Known::Waiting(Planned {
            plan: fate.plan,
            notification,
        }),
        _ => Known::Decided(fate),
    })
}

/// Where the notification stands; `None` if nothing is known of it.
async fn standing(js: &jetstream::Context, app: &AppId, id: NotificationId) -> Result<Option<Standing>, NoAnswer> {
    // The fate last: what it says is the newest of what was decided.
    let any = current::last(js, PLANNED, &subject::planned_any(app, id)).await?;
    let Some(any) = any else { return Ok(None) };
    let fate = current::last(js, PLANNED, &subject::planned_fate(app, id)).await?;
    let sequence = fate.as_ref().map_or(0, |fate| fate.sequence);
    Ok(Some(Standing {
        known: known(fate.as_ref().unwrap_or(&any))?,
        fate: sequence,
    }))
}

/// Cancels a planned notification, unless a gateway has begun to accept it. [`Cancel::Cancelled`] is a promise: nothing of it is
/// ever sent.
///
/// # Errors
/// When the server did not confirm it. It may be cancelled all the same; repeating is safe.
pub async fn cancel(
    js: &jetstream::Context,
    app: &AppId,
    id: NotificationId,
    now: Timestamp,
) -> Result<Cancel, NotStored> {
    for _ in 0..TRIES {
        let Some(Standing { known, fate }) = standing(js, app, id).await? else {
            return Ok(Cancel::Unknown);
        };
        let plan = match known {
            Known::Decided(fate) if fate.decision == Decision::Cancelled => return Ok(Cancel::Cancelled),
            Known::Decided(_) => return Ok(Cancel::Fired),
            Known::Waiting(planned) => planned.plan,
        };
        let cancelled = Fate {
            decision: Decision::Cancelled,
            at: now,
            plan,
            to_topic: false,
            notification: None,
        };
        match decide(js, app, id, &cancelled, fate).await {
            Ok(_) => return Ok(Cancel::Cancelled),
            Err(NotStored::Refused) => {}
            Err(error) => return Err(error),
        }
    }
    Err(NotStored::NoAnswer)
}

/// Claims a notification that is due: from now on it cannot be cancelled or changed. `jobs` is how many jobs it becomes, and
/// `to_topic` whether these are broadcasts.
///
/// # Errors
/// When the server did not confirm it; what is due must not be acknowledged then.
pub async fn claim(
    js: &jetstream::Context,
    app: &AppId,
    id: NotificationId,
    due: &Planned,
    (jobs, to_topic): (u32, bool),
    now: Timestamp,
) -> Result<Claim, NotStored> {
    let mut expected = 0;
    for _ in 0..TRIES {
        if expected > 0 || due.plan.revision.is_none() {
            let fired = Fate {
                decision: Decision::Fired,
                at: now,
                plan: Plan {
                    jobs,
                    ..due.plan.clone()
                },
                to_topic,
                notification: None,
            };
            match decide(js, app, id, &fired, expected).await {
                Ok(_) => return Ok(Claim::Accept),
                Err(NotStored::Refused) => {}
                Err(error) => return Err(error),
            }
        }
        let found = current::last(js, PLANNED, &subject::planned_fate(app, id)).await?;
        let Some(found) = found else {
            // It was cancelled or fired so long ago that this is forgotten.
            return Ok(Claim::Drop);
        };
        match known(&found)? {
            Known::Decided(fate) if fate.decision == Decision::Fired => return Ok(Claim::Accept),
            Known::Decided(_) => return Ok(Claim::Drop),
            Known::Waiting(planned) if planned.plan.revision == due.plan.revision => expected = found.sequence,
            Known::Waiting(planned) => {
                // This fired from before the change, and its schedule may have taken that of the change along.
                return match arm(js, app, id, &planned, None, found.sequence).await {
                    Ok(()) | Err(NotStored::Refused) => Ok(Claim::Drop),
                    Err(error) => Err(error),
                };
            }
        }
    }
    Err(NotStored::NoAnswer)
}

/// What became of an attempt to change.
#[derive(Debug)]
pub enum Change<E> {
    /// It is changed, and this is what waits now.
    Changed(Planned),
    /// A gateway accepts it, or has, or it was cancelled.
    Decided(Decision),
    /// No notification of this id waits.
    Unknown,
    /// The change itself is refused.
    Refused(E),
}

/// Changes a planned notification by `change`, unless a gateway has begun to accept it.
///
/// # Errors
/// When the server did not confirm it. It may be changed all the same.
pub async fn change<E>(
    js: &jetstream::Context,
    app: &AppId,
    id: NotificationId,
    now: Timestamp,
    change: impl Fn(Planned) -> Result<Planned, E>,
) -> Result<Change<E>, NotStored> {
    for _ in 0..TRIES {
        let Some(Standing { known, fate }) = standing(js, app, id).await? else {
            return Ok(Change::Unknown);
        };
        let planned = match known {
            Known::Decided(fate) => return Ok(Change::Decided(fate.decision)),
            Known::Waiting(planned) => planned,
        };
        let mut changed = match change(planned) {
            Ok(changed) => changed,
            Err(refused) => return Ok(Change::Refused(refused)),
        };
        changed.plan.revision = Some(Uuid::new_v4());
        let decided = Fate {
            decision: Decision::Changed,
            at: now,
            plan: changed.plan.clone(),
            to_topic: false,
            notification: Some(changed.notification.clone()),
        };
        let sequence = match decide(js, app, id, &decided, fate).await {
            Ok(sequence) => sequence,
            Err(NotStored::Refused) => continue,
            Err(error) => return Err(error),
        };
        return match arm(js, app, id, &changed, None, sequence).await {
            Ok(()) => Ok(Change::Changed(changed)),
            // Something else was decided since.
            Err(NotStored::Refused) => continue,
            Err(error) => Err(error),
        };
    }
    Err(NotStored::NoAnswer)
}

/// Writes a fate that expects `expected` as the sequence of the one before, and removes the schedule if that is over. Returns its
/// sequence.
async fn decide(
    js: &jetstream::Context,
    app: &AppId,
    id: NotificationId,
    fate: &Fate,
    expected: u64,
) -> Result<u64, NotStored> {
    let mut headers = version::headers();
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
    envelope::take_place_of_former(&mut headers);
    if fate.decision != Decision::Changed {
        let waits = fate.plan.send_at.duration_since(fate.at).max(SignedDuration::ZERO);
        let kept = DECISION_KEPT_FOR + waits.unsigned_abs();
        envelope::keep_for(&mut headers, kept);
    }
    if fate.decision == Decision::Cancelled {
        headers.insert("Nats-Schedule-Next", "purge");
        headers.insert("Nats-Scheduler", subject::planned_wait(app, id));
    }
    let stored = publish::store(js, subject::planned_fate(app, id), headers, json(fate)).await?;
    Ok(stored.sequence)
}

/// Notes that a notification belongs to a group. The note is kept for `kept`.
///
/// # Errors
/// When the server did not confirm it.
pub async fn join(
    js: &jetstream::Context,
    app: &AppId,
    group: Group<'_>,
    id: NotificationId,
    kept: Duration,
) -> Result<(), NotStored> {
    let mut headers = version::headers();
    envelope::take_place_of_former(&mut headers);
    envelope::keep_for(&mut headers, kept);
    let subject = subject::planned_member(app, group.id(), id);
    publish::store(js, subject, headers, Bytes::new()).await?;
    Ok(())
}

/// A notification of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The notification.
    pub notification: NotificationId,
    /// When it was noted: at its acceptance, or when it was planned or changed.
    pub since: Timestamp,
}

/// The notifications of a group from the position `from` on, and the position of the next page, if there is one.
///
/// # Errors
/// When the stream does not answer.
pub async fn members(
    js: &jetstream::Context,
    app: &AppId,
    group: Group<'_>,
    from: u64,
    count_max: usize,
) -> Result<(Vec<Member>, Option<u64>), NoAnswer> {
    let filter = subject::planned_members_of(app, group.id());
    let count = count_max.min(MEMBERS_PER_PAGE);
    let found = direct::from(js, &Domain::Here, PLANNED, &filter, from, count).await?;
    let next = direct::next_page(&found, count);
    let members = found.iter().filter_map(|found| {
        Some(Member {
            notification: subject::member_of_group(&found.subject)?,
            since: found.stored_at,
        })
    });
    Ok((members.collect(), next))
}

/// Number of notifications of `app` that wait for their time in this region.
///
/// # Errors
/// When the stream does not answer.
pub async fn count(js: &jetstream::Context, app: &AppId) -> Result<u64, NoAnswer> {
    direct::count(js, &Domain::Here, PLANNED, &subject::planned_waits_of(app)).await
}

/// Takes `key` out of what was planned until `at` and waits in this region; what is for nobody else is cancelled. Returns the number
/// of notifications.
///
/// # Errors
/// When something is not known to be stored; repeating is safe.
pub async fn erase(
    js: &jetstream::Context,
    key: &RecipientKey,
    at: Timestamp,
    now: Timestamp,
) -> Result<u64, NotStored> {
    let (filter, mut next, mut erased) = (subject::planned_waits_of(&key.app), Some(1), 0);
    while let Some(begin) = next {
        let page = direct::from(js, &Domain::Here, PLANNED, &filter, begin, ERASED_PER_PAGE).await?;
        next = direct::next_page(&page, ERASED_PER_PAGE);
        for found in &page {
            let (Some((_, id)), Ok(planned)) =
                (subject::parse_planned(&found.subject), read::<Planned>(&found.payload))
            else {
                continue;
            };
            if planned.plan.planned_at > at || matches!(without(&planned, &key.recipient), Rest::All) {
                continue;
            }
            let changed = change(js, &key.app, id, now, |planned| {
                match without(&planned, &key.recipient) {
                    Rest::All => Ok(planned),
                    Rest::Some(rest) => Ok(rest),
                    Rest::None => Err(()),
                }
            });
            if let Change::Refused(()) = changed.await? {
                cancel(js, &key.app, id, now).await?;
            }
            erased += 1;
        }
    }
    Ok(erased)
}

/// What remains of a planned notification without one recipient.
enum Rest {
    /// It is not for that recipient.
    All,
    /// It is for others, too.
    Some(Planned),
    /// It is for nobody else.
    None,
}

fn without(planned: &Planned, recipient: &RecipientId) -> Rest {
    let Ok(mut document) = serde_json::from_str::<Value>(planned.notification.get()) else {
        return Rest::All;
    };
    let Some(recipients) = document.pointer_mut("/to/recipients").and_then(Value::as_array_mut) else {
        return Rest::All;
    };
    let before = recipients.len();
    recipients.retain(|one| one != recipient.as_str());
    if recipients.len() == before {
        return Rest::All;
    }
    if recipients.is_empty() {
        return Rest::None;
    }
    match RawValue::from_string(document.to_string()) {
        Ok(notification) => Rest::Some(Planned {
            plan: planned.plan.clone(),
            notification,
        }),
        Err(_) => Rest::None,
    }
}

/// Reads what is due.
///
/// # Errors
/// When a newer program wrote it; it is to be given back.
pub fn read_due(headers: Option<&HeaderMap>, payload: &[u8]) -> Result<Planned, NoAnswer> {
    if headers.is_some_and(version::is_unknown) {
        return Err(NoAnswer::Silent);
    }
    read(payload)
}

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, NoAnswer> {
    serde_json::from_slice(payload).map_err(|_| NoAnswer::Silent)
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("plans always serialize").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned() -> Planned {
        let at = Timestamp::from_second(1_000).unwrap();
        Planned {
            plan: Plan {
                event_id: "e1".parse().unwrap(),
                send_at: at,
                expires_at: None,
                group_key: Some("room/42".parse().unwrap()),
                schedule_id: None,
                planned_at: at,
                test_key: false,
                jobs: 2,
                revision: None,
            },
            notification: RawValue::from_string(r#"{"to": {"recipients": ["ann"]}}"#.to_owned()).unwrap(),
        }
    }

    fn found(subject: &str, value: &impl Serialize) -> Found {
        Found {
            subject: subject.to_owned(),
            sequence: 1,
            stored_at: Timestamp::UNIX_EPOCH,
            headers: HeaderMap::new(),
            payload: json(value),
        }
    }

    #[test]
    fn an_erased_recipient_is_taken_out() {
        let ann: RecipientId = "ann".parse().unwrap();
        assert!(matches!(without(&planned(), &ann), Rest::None));
        assert!(matches!(without(&planned(), &"bob".parse().unwrap()), Rest::All));
        let two = r#"{"to": {"recipients": ["bob", "ann"]}, "push": {"title": "ann"}}"#;
        let two = Planned {
            notification: RawValue::from_string(two.to_owned()).unwrap(),
            ..planned()
        };
        let Rest::Some(rest) = without(&two, &ann) else {
            panic!("bob remains");
        };
        let rest: Value = serde_json::from_str(rest.notification.get()).unwrap();
        assert_eq!(rest["to"]["recipients"], serde_json::json!(["bob"]));
        let topic = Planned {
            notification: RawValue::from_string(r#"{"to": {"topic": "ann"}}"#.to_owned()).unwrap(),
            ..planned()
        };
        assert!(matches!(without(&topic, &ann), Rest::All));
    }

    #[test]
    fn what_was_changed_waits_as_it_is_now() {
        let mut changed = planned();
        changed.plan.revision = Some(Uuid::from_u128(7));
        let fate = Fate {
            decision: Decision::Changed,
            at: changed.plan.send_at,
            plan: changed.plan.clone(),
            to_topic: false,
            notification: Some(changed.notification.clone()),
        };
        let Known::Waiting(waits) = known(&found("planned.fate.shop.x", &fate)).unwrap() else {
            panic!("it waits");
        };
        assert_eq!(waits.plan, changed.plan);
        assert_eq!(waits.notification.get(), changed.notification.get(), "byte for byte");
    }

    #[test]
    fn a_decision_keeps_no_content_and_a_newer_one_is_given_back() {
        let fate = Fate {
            decision: Decision::Cancelled,
            at: Timestamp::UNIX_EPOCH,
            plan: planned().plan,
            to_topic: false,
            notification: None,
        };
        assert!(!String::from_utf8(json(&fate).to_vec()).unwrap().contains("\"ann\""));
        let read = known(&found("planned.fate.shop.x", &fate)).unwrap();
        assert!(matches!(read, Known::Decided(fate) if fate.decision == Decision::Cancelled));

        let mut newer = HeaderMap::new();
        newer.insert(version::VERSION, (version::CURRENT + 1).to_string());
        assert!(read_due(Some(&newer), &json(&planned())).is_err());
        assert!(read_due(Some(&version::headers()), &json(&planned())).is_ok());
    }
}
