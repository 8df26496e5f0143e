//! Notifications that recur, in the region's stream [`PLANNED`].
//!
//! A schedule is a definition, which stays, and an alarm: an `@at` schedule (NATS ADR-51) for the next instant, which names the
//! revision of the definition. When the alarm is due a gateway accepts the notification of that instant, under an event id
//! made of schedule and instant, and sets the alarm for the next one. Both writes of an alarm expect the definition that they follow.

use std::time::Duration;

use async_nats::{header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, jetstream};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    current,
    direct::{self, Found, NoAnswer},
    envelope,
    planned::EXPECTED_OF_SUBJECT,
    publish::{self, NotStored},
    subject,
    topology::{Domain, PLANNED},
    version,
};
use crate::{
    channel::words,
    id::{AppId, ScheduleId},
    policy::recurrence::Recurrence,
};

/// How long the message is kept that takes a removed schedule along.
const REMOVAL_KEPT_FOR: Duration = Duration::from_secs(1);

words!(
    /// What happens to an instant that was missed while nothing ran.
    Late, "late", {
        /// It is sent late, if it is still worth delivering.
        Send = "send",
        /// It is left out.
        Skip = "skip",
    }
    default Send
);

/// A notification that recurs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Definition {
    /// When, in local time: five fields.
    pub cron: String,
    /// The IANA name of the time zone of `cron`.
    pub timezone: String,
    /// Not before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<Timestamp>,
    /// Not after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Timestamp>,
    /// What happens to an instant that was missed.
    pub late: Late,
    /// Whether nothing fires.
    pub paused: bool,
    /// The notification as its caller wrote it.
    pub notification: Box<RawValue>,
    /// What alarms name that follow this definition.
    pub revision: Uuid,
}

/// When a schedule fires next, and when it has fired last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// The revision of the definition that it follows.
    pub revision: Uuid,
    /// The instant; `None` if the schedule is paused or over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// The instant for which a notification was accepted last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Timestamp>,
}

impl Definition {
    /// The first instant after `after` at which it fires; `recurrence` is that of its pattern.
    pub fn next(&self, recurrence: &Recurrence, after: Timestamp) -> Option<Timestamp> {
        if self.paused {
            return None;
        }
        // The instant itself counts.
        let before_start = self.starts_at.map(|start| start - SignedDuration::from_secs(1));
        let next = recurrence.next(before_start.map_or(after, |start| start.max(after)))?;
        self.ends_at.is_none_or(|end| next <= end).then_some(next)
    }
}

/// A definition as it is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The schedule.
    pub id: ScheduleId,
    /// What recurs.
    pub definition: Definition,
    /// The definition's version.
    pub sequence: u64,
}

/// The schedule `id` of `app`, if there is one, and what [`define`] expects as `former`.
///
/// # Errors
/// When the stream does not answer.
pub async fn read(js: &jetstream::Context, app: &AppId, id: &ScheduleId) -> Result<(Option<Stored>, u64), NoAnswer> {
    match current::last(js, PLANNED, &subject::recurring(app, id)).await? {
        Some(found) => Ok((stored(&found)?, found.sequence)),
        None => Ok((None, 0)),
    }
}

/// The definition in a message; `None` if it says that there is none.
fn stored(found: &Found) -> Result<Option<Stored>, NoAnswer> {
    if found.payload.is_empty() {
        return Ok(None);
    }
    let id = subject::schedule_of(&found.subject).ok_or(NoAnswer::Silent)?;
    let definition = serde_json::from_slice(&found.payload).map_err(|_| NoAnswer::Silent)?;
    Ok(Some(Stored {
        id,
        definition,
        sequence: found.sequence,
    }))
}

/// The alarm of the schedule `id`; `None` if it is due, or was never set.
///
/// # Errors
/// When the stream does not answer.
pub async fn alarm(js: &jetstream::Context, app: &AppId, id: &ScheduleId) -> Result<Option<Alarm>, NoAnswer> {
    let found = current::last(js, PLANNED, &subject::recurring_alarm(app, id)).await?;
    let found = found.filter(|found| !found.payload.is_empty());
    let alarm = found.map(|found| serde_json::from_slice(&found.payload));
    alarm.transpose().map_err(|_| NoAnswer::Silent)
}

/// The schedules of `app` from the position `from` on, and the position of the next page, if there is one.
///
/// # Errors
/// When the stream does not answer.
pub async fn list(
    js: &jetstream::Context,
    app: &AppId,
    from: u64,
    count_max: usize,
) -> Result<(Vec<Stored>, Option<u64>), NoAnswer> {
    let filter = subject::recurring_of(app);
    let found = direct::from(js, &Domain::Here, PLANNED, &filter, from, count_max).await?;
    let next = direct::next_page(&found, count_max);
    let all: Result<Vec<_>, _> = found.iter().map(stored).collect();
    Ok((all?.into_iter().flatten().collect(), next))
}

/// Number of schedules of `app` in this region.
///
/// # Errors
/// When the stream does not answer.
pub async fn count(js: &jetstream::Context, app: &AppId) -> Result<u64, NoAnswer> {
    direct::count(js, &Domain::Here, PLANNED, &subject::recurring_of(app)).await
}

/// Stores a definition in the place of what [`read`] found as `former`. Its version is returned.
///
/// # Errors
/// [`NotStored::Refused`] if another was stored meanwhile.
pub async fn define(
    js: &jetstream::Context,
    app: &AppId,
    id: &ScheduleId,
    definition: &Definition,
    former: u64,
) -> Result<u64, NotStored> {
    let mut headers = version::headers();
    envelope::take_place_of_former(&mut headers);
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, former.to_string());
    let stored = publish::store(js, subject::recurring(app, id), headers, json(definition)).await?;
    Ok(stored.sequence)
}

/// Sets the alarm of a schedule, if its definition still has the version `sequence`.
///
/// # Errors
/// [`NotStored::Refused`] if the definition was replaced meanwhile.
pub async fn arm(
    js: &jetstream::Context,
    app: &AppId,
    id: &ScheduleId,
    alarm: Alarm,
    sequence: u64,
) -> Result<(), NotStored> {
    let mut headers = version::headers();
    match alarm.at {
        Some(at) => envelope::schedule(&mut headers, at, subject::recurring_due(app, id)),
        // A message that is no schedule takes the place of the one that was.
        None => envelope::take_place_of_former(&mut headers),
    }
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, sequence.to_string());
    headers.insert(EXPECTED_OF_SUBJECT, subject::recurring(app, id));
    publish::store(js, subject::recurring_alarm(app, id), headers, json(&alarm)).await?;
    Ok(())
}

/// Removes a schedule. What has fired already is not withdrawn.
///
/// # Errors
/// When the server did not confirm it; repeating is safe.
pub async fn remove(js: &jetstream::Context, app: &AppId, id: &ScheduleId) -> Result<(), NotStored> {
    // One message that soon goes takes the definition along, and one the alarm. Without a definition no alarm does anything.
    for subject in [subject::recurring(app, id), subject::recurring_alarm(app, id)] {
        let mut headers = version::headers();
        envelope::take_place_of_former(&mut headers);
        envelope::keep_for(&mut headers, REMOVAL_KEPT_FOR);
        publish::store(js, subject, headers, Bytes::new()).await?;
    }
    Ok(())
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("schedules always serialize").into()
}
