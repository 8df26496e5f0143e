//! Jobs and broadcasts as NATS messages: how their headers are written, and how a message is read.

use std::{str::FromStr, sync::Arc, time::Duration};

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use jiff::{SignedDuration, Timestamp};

use super::{
    subject::{self, Lane},
    topology::WORK_MAX_AGE,
    version,
};
use crate::{
    body::{Body, To},
    broadcast::{Broadcast, Slice, Work},
    digest::derive,
    id::{AddressId, AppId, EventId, JobId, NotificationId, Region, Topic},
    id_key::IdKey,
    invalid::Invalid,
    job::{Addressee, Job},
    plan::{Course, Place},
    proof::Proof,
    telemetry::trace::TRACEPARENT,
};

/// When the notification was accepted: milliseconds since 1970. Optional for services that publish themselves.
pub const ACCEPTED_AT: &str = "Peal-Accepted-At";
/// The region that accepted it. Optional for services that publish themselves.
pub const ORIGIN: &str = "Peal-Origin";
/// The event id, on messages whose `Nats-Msg-Id` was removed because they were scheduled.
pub const EVENT_ID: &str = "Peal-Event-Id";
/// Number of the attempt that is to be made, on retries.
pub const ATTEMPT: &str = "Peal-Attempt";
/// How many earlier attempts do not count towards the limit.
pub const DISCOUNTED: &str = "Peal-Discounted";
/// The address this message is for, on retries.
pub const ADDRESS: &str = "Peal-Address";
/// Number of the broadcast's slice that a job was expanded from.
pub const SLICE: &str = "Peal-Slice";
/// The topic of the broadcast that a job was expanded from.
pub const TOPIC: &str = "Peal-Topic";
/// The slice of a broadcast that a message carries, as [`Slice`] writes it.
pub const RANGE: &str = "Peal-Range";
/// The number of the plan's step that a job is for, from 0; absent for the first.
pub const STEP: &str = "Peal-Step";
/// Until when a job waits for the steps before it, in milliseconds since 1970, if it was stored before all of them had ended.
pub const OPEN_UNTIL: &str = "Peal-Open-Until";
/// The proof that a gateway of this mesh accepted the message, as [`Proof`] writes it.
pub const PROOF: &str = "Peal-Proof";
/// The signature of a message other than a job, for the regions that copy it.
pub const SIGNATURE: &str = "Peal-Signature";
/// How often a message was forwarded because its recipient moved.
pub const FORWARDED: &str = "Peal-Forwarded";
/// When the recipient moved, in milliseconds since 1970, on the removal of a fact from the former home: see
/// [`Membership`](crate::recipient::Membership).
pub const MOVED: &str = "Peal-Moved";
/// Why a message became a dead letter: a stable word such as `attempts`.
pub const REASON: &str = "Peal-Reason";
/// Why a message became a dead letter, in words for people.
pub const DETAIL: &str = "Peal-Detail";
/// The sequence of a refused message in the intake of its app.
pub const INTAKE_SEQUENCE: &str = "Peal-Intake-Sequence";
/// The place of a refused notification among those of its message, from 0.
pub const INDEX: &str = "Peal-Index";
/// The subject that a dead letter was first published on.
pub const SUBJECT: &str = "Peal-Subject";
/// The worker process that wrote a batch of receipts, and the number of the batch: `<writer>:<number>`.
pub const BATCH: &str = "Peal-Batch";

/// Size of the original message in bytes, on a dead letter that was too large to be kept whole.
pub const ORIGINAL_BYTES: &str = "Peal-Original-Bytes";

/// Headers that a copy of a message keeps.
const KEPT: [&str; 14] = [
    version::VERSION,
    ACCEPTED_AT,
    ORIGIN,
    EVENT_ID,
    ATTEMPT,
    DISCOUNTED,
    ADDRESS,
    SLICE,
    TOPIC,
    RANGE,
    STEP,
    OPEN_UNTIL,
    FORWARDED,
    TRACEPARENT,
];

/// Headers that only the writer of a copy sets: of dead letters, batches of receipts and facts.
const NEVER_KEPT: [&str; 6] = [MOVED, REASON, DETAIL, SUBJECT, BATCH, ORIGINAL_BYTES];

/// The longest value of a header that a copy keeps. Peal's own are shorter.
const MAX_KEPT_BYTES: usize = 2048;

/// The most headers of a newer version that a copy keeps.
const MAX_KEPT_NEWER: usize = 16;

/// The largest [`ATTEMPT`]: a retry every second for 30 days, four times.
const MAX_ATTEMPT: u32 = 10_000_000;

/// An [`ACCEPTED_AT`] further in the future than this is in a wrong unit; an earlier one is a wrong clock.
const MAX_AHEAD: SignedDuration = SignedDuration::from_hours(24);

/// The first value of the header called `name`, whatever its case: other clients write `Traceparent`. Of several
/// spellings the one of `name` counts, which is Peal's own; without it the first in the order of bytes.
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // A message has few headers: comparing them all is cheaper than allocating a key to look up.
    headers
        .iter()
        .map(|(key, values)| (AsRef::<str>::as_ref(key), values))
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .min_by_key(|(key, _)| (*key != name, *key))
        .and_then(|(_, values)| values.first())
        .map(async_nats::HeaderValue::as_str)
}

/// Whether JetStream copied the message here from another region's stream. A publisher cannot set this header.
pub fn is_foreign(headers: &HeaderMap) -> bool {
    header(headers, "Nats-Stream-Source").is_some()
}

fn proof(headers: &HeaderMap) -> Option<Proof> {
    header(headers, PROOF)?.parse().ok()
}

/// The headers of a job at its first attempt.
pub fn headers(id: JobId, accepted_at: Timestamp, origin: &Region) -> HeaderMap {
    let mut headers = version::headers();
    headers.insert(NATS_MESSAGE_ID, id.to_string());
    headers.insert(ACCEPTED_AT, accepted_at.as_millisecond().to_string());
    headers.insert(ORIGIN, origin.as_str());
    headers
}

/// The headers of a message for a copy of it: Peal's own, those of a newer version, and the trace, each once and in its own
/// spelling. All others would change how the server or Peal treats the copy. The message id becomes the event id if there
/// is none: it is the event id of a message whose body has none.
pub fn kept(of: &HeaderMap) -> HeaderMap {
    let is_known = |name: &str| {
        KEPT.iter()
            .chain(&NEVER_KEPT)
            .any(|known| known.eq_ignore_ascii_case(name))
    };
    let newer = of.iter().filter_map(|(name, values)| {
        let name: &str = name.as_ref();
        let is_newer = name.starts_with("Peal-") && !is_known(name);
        is_newer.then_some((name, values.first()?.as_str()))
    });
    let known = KEPT.iter().filter_map(|name| Some((*name, header(of, name)?)));
    let mut headers = HeaderMap::new();
    for (name, value) in known.chain(newer.take(MAX_KEPT_NEWER)) {
        if value.len() <= MAX_KEPT_BYTES {
            headers.insert(name, value);
        }
    }
    if header(&headers, EVENT_ID).is_none()
        && let Some(id) = header(of, "Nats-Msg-Id")
    {
        headers.insert(EVENT_ID, id);
    }
    headers
}

/// The headers of `job` for its next attempt, to `address`. `counted` is whether this attempt counts towards the limit.
pub fn retry_headers(job: &Job, counted: bool, address: AddressId) -> HeaderMap {
    let discounted = job.discounted.saturating_add(u32::from(!counted));
    let mut headers = returning_headers(job, job.next_attempt(), discounted);
    headers.insert(ADDRESS, address.to_string());
    headers
}

/// The headers of `job` for the same attempt, after it has waited as a whole.
pub fn deferred_headers(job: &Job) -> HeaderMap {
    returning_headers(job, job.attempt, job.discounted)
}

fn returning_headers(job: &Job, attempt: u32, discounted: u32) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPTED_AT, job.accepted_at.as_millisecond().to_string());
    headers.insert(ORIGIN, job.origin.as_str());
    headers.insert(EVENT_ID, job.event.as_str());
    headers.insert(ATTEMPT, attempt.to_string());
    if discounted > 0 {
        headers.insert(DISCOUNTED, discounted.to_string());
    }
    if let Some(slice) = job.slice {
        headers.insert(SLICE, slice.to_string());
    }
    if let Some(topic) = &job.topic {
        headers.insert(TOPIC, topic.as_str());
    }
    if let Some(proof) = &job.proof {
        headers.insert(PROOF, proof.to_string());
    }
    let version = version::of_work(job.place.as_ref().map(|place| &*place.course), job.trial);
    headers.insert(version::VERSION, version.to_string());
    if let Some(place) = &job.place {
        headers.insert(STEP, place.step.to_string());
        if let Some(until) = place.open_until {
            headers.insert(OPEN_UNTIL, until.as_millisecond().to_string());
        }
    }
    headers
}

/// Lets a message take the place of all former ones under its subject.
pub(super) fn take_place_of_former(headers: &mut HeaderMap) {
    headers.insert("Nats-Rollup", "sub");
}

/// Lets the server keep a message for `time`, which counts in whole seconds: at least one (NATS ADR-43).
pub(super) fn keep_for(headers: &mut HeaderMap, time: Duration) {
    headers.insert("Nats-TTL", format!("{}s", time.as_secs().max(1)));
}

/// Adds the headers that let JetStream publish a message on `target` at `until` (NATS ADR-51).
pub fn schedule(headers: &mut HeaderMap, until: Timestamp, target: String) {
    headers.insert("Nats-Schedule", format!("@at {until}"));
    headers.insert("Nats-Schedule-Target", target);
}

/// The headers of a job that is expanded from a slice of a broadcast to `topic`; `headers` are those of the slice's message. The
/// trace of the job is not sampled: a million spans would show no more than the spans of failed attempts, which are kept in any
/// case.
pub fn member_headers(headers: &HeaderMap, slice: &Slice, topic: &Topic) -> HeaderMap {
    let mut of_member = HeaderMap::new();
    for (name, values) in kept(headers).iter() {
        let first = values
            .first()
            .filter(|_| ![RANGE, PROOF].contains(&AsRef::<str>::as_ref(name)));
        if let Some(first) = first {
            of_member.insert(name.clone(), first.as_str());
        }
    }
    if let Some(traceparent) = header(headers, TRACEPARENT)
        && let Some((rest, _flags)) = traceparent.rsplit_once('-')
    {
        of_member.insert(TRACEPARENT, format!("{rest}-00"));
    }
    of_member.insert(SLICE, slice.number.to_string());
    of_member.insert(TOPIC, topic.as_str());
    of_member
}

/// Reads a message that is for one recipient, as [`read`] does.
///
/// # Errors
/// As [`read`], and if it is for a topic.
pub fn open(
    subject: &str,
    headers: &HeaderMap,
    payload: &[u8],
    stored_at: Timestamp,
    here: &Region,
    ids: &IdKey,
) -> Result<Job, Invalid> {
    match read(subject, headers, payload, stored_at, here, ids)? {
        Work::Job(job) => Ok(job),
        Work::Broadcast(_) => Err(Invalid::new("recipient", "must be given")),
    }
}

/// Reads a message. `stored_at` is when JetStream stored it, and `here` the region that reads it: the defaults for the time
/// and the region of acceptance. `ids` is the mesh's key of ids.
///
/// # Errors
/// The first part of the message that breaks a rule. Such a message can never be delivered.
pub fn read(
    subject: &str,
    headers: &HeaderMap,
    payload: &[u8],
    stored_at: Timestamp,
    here: &Region,
    ids: &IdKey,
) -> Result<Work, Invalid> {
    let lane = Lane::parse(subject)?;
    let body = match version::of(headers) {
        Some(_) => Body::read_tolerantly(payload)?,
        None => Body::read(payload)?,
    };
    let place = body.course.map(|course| place(course, headers)).transpose()?;
    let content = place.as_ref().and_then(|place| place.course.content(place.step));
    let content = content.cloned().unwrap_or(body.content);
    if content.channel() != lane.channel {
        return Err(Invalid::new("subject", "must name the channel of the content"));
    }
    let accepted_at = accepted_at(headers, stored_at)?;
    let (attempt, discounted) = attempts(headers)?;
    let origin = optional(headers, ORIGIN)?.unwrap_or_else(|| here.clone());
    let event = event_id(body.event_id, headers)?;
    let named = body.trial.name(&event);
    let notification = NotificationId::of(&lane.app, &named);
    let (id, to) = match body.to {
        To::Recipient(recipient) => (
            JobId::of(ids, &lane.app, &named, &recipient, lane.channel),
            Addressee::Recipient(recipient),
        ),
        To::Address(address) => (
            JobId::of_address(ids, &lane.app, &named, address.id, lane.channel),
            Addressee::Address(address),
        ),
        To::Topic(topic) => {
            return Ok(Work::Broadcast(Broadcast {
                id: JobId::of_broadcast(ids, &lane.app, &named, &topic, lane.channel, &lane.region),
                notification,
                origin,
                accepted_at,
                slice: if subject::is_slice(subject) {
                    Some(optional(headers, RANGE)?.ok_or_else(|| Invalid::new(RANGE, "must be given"))?)
                } else {
                    None
                },
                app: lane.app,
                class: lane.class,
                topic,
                proof: proof(headers),
                category: body.category,
                trial: body.trial,
                event,
                content,
            }));
        }
    };
    Ok(Work::Job(Job {
        id,
        notification,
        origin,
        accepted_at,
        attempt,
        discounted,
        remaining: optional(headers, ADDRESS)?.map(|address| vec![address]),
        slice: optional(headers, SLICE)?,
        topic: optional(headers, TOPIC)?,
        app: lane.app,
        class: lane.class,
        event,
        to,
        proof: proof(headers),
        category: body.category,
        trial: body.trial,
        content,
        place,
    }))
}

/// The place that the headers give a job in its course.
fn place(course: Arc<Course>, headers: &HeaderMap) -> Result<Place, Invalid> {
    let step = optional(headers, STEP)?.unwrap_or_default();
    if course.content(step).is_none() {
        return Err(Invalid::new(STEP, "must be the number of a step of the plan"));
    }
    let open_until = optional(headers, OPEN_UNTIL)?.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    Ok(Place {
        course,
        step,
        open_until,
    })
}

/// When a message was accepted, as its header states or, without one, when JetStream stored it.
///
/// # Errors
/// When the header is no number, or not a time in milliseconds at which this message can have been accepted.
pub fn accepted_at(headers: &HeaderMap, stored_at: Timestamp) -> Result<Timestamp, Invalid> {
    let Some(ms) = optional::<i64>(headers, ACCEPTED_AT)? else {
        return Ok(stored_at);
    };
    let at = Timestamp::from_millisecond(ms).ok();
    // The longest way of a message: kept in an outbox, and then on a schedule.
    let oldest = SignedDuration::try_from(2 * WORK_MAX_AGE).unwrap_or(SignedDuration::MAX);
    let at = at.filter(|at| (-oldest..=MAX_AHEAD).contains(&at.duration_since(stored_at)));
    // Later than its own storage is a wrong clock; it must not lengthen the life of the notification.
    at.map(|at| at.min(stored_at))
        .ok_or_else(|| Invalid::new(ACCEPTED_AT, "must be the time of acceptance in milliseconds since 1970"))
}

/// The number of the attempt that is to be made, and how many earlier ones do not count.
fn attempts(headers: &HeaderMap) -> Result<(u32, u32), Invalid> {
    let attempt = optional(headers, ATTEMPT)?.unwrap_or(1);
    if !(1..=MAX_ATTEMPT).contains(&attempt) {
        return Err(Invalid::new(ATTEMPT, "must be 1 to 10000000"));
    }
    let discounted = optional(headers, DISCOUNTED)?.unwrap_or(0);
    if discounted >= attempt {
        return Err(Invalid::new(DISCOUNTED, "must be less than Peal-Attempt"));
    }
    Ok((attempt, discounted))
}

/// How often a message was forwarded; as often as can be if the header cannot be read.
pub fn forwards(headers: &HeaderMap) -> u32 {
    optional(headers, FORWARDED).map_or(u32::MAX, Option::unwrap_or_default)
}

/// The event id of a message: in the body, else the one kept through scheduling, else the message id. Without one a
/// repeated message could not be told from a new one.
fn event_id(in_body: Option<EventId>, headers: &HeaderMap) -> Result<EventId, Invalid> {
    if let Some(event) = in_body {
        return Ok(event);
    }
    let text = header(headers, EVENT_ID).or_else(|| header(headers, "Nats-Msg-Id"));
    let text = text.ok_or_else(|| Invalid::new("event_id", "must be in the body, or a Nats-Msg-Id header be set"))?;
    text.parse().map_err(|_| {
        Invalid::new(
            "Nats-Msg-Id",
            "must be 1 to 255 printable ASCII characters without spaces",
        )
    })
}

/// The ids under which an unreadable message is recorded. Its sequence alone is not unique: a stream that lost its last
/// messages assigns the same sequences again.
pub fn unreadable(sequence: u64, stored_at: Timestamp, here: &Region) -> (JobId, NotificationId) {
    let id = derive(
        "unreadable",
        &[&sequence.to_string(), &stored_at.to_string(), here.as_str()],
    );
    (JobId(id), NotificationId(id))
}

/// The id under which a refusal is recorded: of the message of `app` that its intake in `here` stored at this place and time,
/// or of the notification at `index` in it.
pub fn refused(app: &AppId, sequence: u64, stored_at: Timestamp, here: &Region, index: Option<usize>) -> JobId {
    let index = index.map_or_else(String::new, |index| index.to_string());
    let parts = [
        app.as_str(),
        &sequence.to_string(),
        &stored_at.to_string(),
        here.as_str(),
        &index,
    ];
    JobId(derive("refused", &parts))
}

fn optional<T: FromStr>(headers: &HeaderMap, name: &str) -> Result<Option<T>, Invalid> {
    let Some(text) = header(headers, name) else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| Invalid::new(name, "cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        content::{Content, push::Push},
        trial::Trial,
    };
    use proptest::prelude::*;

    fn read_job(body: &str) -> Result<Job, Invalid> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", "e1");
        let now = Timestamp::from_second(1000).unwrap();
        open(
            "notify.push.eu.normal.shop",
            &headers,
            body.as_bytes(),
            now,
            &"eu".parse().unwrap(),
            &IdKey::unkeyed(),
        )
    }

    #[test]
    fn a_service_needs_no_more_than_a_message_id() {
        let job = read_job(r#"{"recipient":"ann","push":{"title":"Hi"}}"#).unwrap();
        assert_eq!(job.notification, NotificationId::of(&job.app, &"e1".parse().unwrap()));
        assert_eq!((job.attempt, job.accepted_at.as_second()), (1, 1000));
    }

    #[test]
    fn errors_name_the_field_and_never_the_value() {
        for (body, field) in [
            (r#"{"recipient":"ann","push":{"title":5551234}}"#, "push.title"),
            (r#"{"recipient":"ann","push":{"tilte":"5551234"}}"#, "push.tilte"),
            (r#"{"recipient":"ann 5551234","push":{"title":"x"}}"#, "recipient"),
            (r#"{"recipient":"ann","push":{"priority":"5551234"}}"#, "push.priority"),
            (r#"{"recipient":"ann","push":{"ttl":"5551234"}}"#, "push.ttl"),
            (r#"{"recipient":"ann","push":{}}"#, "push.title"),
            (r#"{"recipient":"ann"}"#, "push"),
            (r#"{"topic":"5551234 x","push":{"title":"x"}}"#, "topic"),
            (
                r#"{"topic":"news","recipient":"5551234","push":{"title":"x"}}"#,
                "recipient",
            ),
            (r#"{"recipient":"ann","push":{"title":"x"}} 5551234"#, "body"),
            ("5551234", "body"),
            ("", "body"),
        ] {
            let invalid = read_job(body).unwrap_err();
            assert_eq!(invalid.field, field, "{invalid}");
            assert!(!invalid.to_string().contains("5551234"), "{invalid}");
        }
    }

    #[test]
    fn a_member_of_a_newer_version_is_ignored_and_a_services_typing_error_is_not() {
        let read = |headers: &HeaderMap| {
            open(
                "notify.push.eu.normal.shop",
                headers,
                br#"{"recipient":"ann","push":{"title":"Hi","newer":1}}"#,
                Timestamp::UNIX_EPOCH,
                &"eu".parse().unwrap(),
                &IdKey::unkeyed(),
            )
        };
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", "e1");
        assert_eq!(read(&headers).unwrap_err().field, "push.newer");
        headers.insert(version::VERSION, "1");
        assert!(read(&headers).is_ok());
    }

    #[test]
    fn the_subject_names_the_channel_of_the_content() {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", "e1");
        let body = br#"{"recipient":"ann","push":{"title":"Hi"}}"#;
        let here = "eu".parse().unwrap();
        let invalid = open(
            "notify.email.eu.normal.shop",
            &headers,
            body,
            Timestamp::UNIX_EPOCH,
            &here,
            &IdKey::unkeyed(),
        )
        .unwrap_err();
        assert_eq!(invalid.field, "subject");
    }

    fn read_with(name: &str, value: &str) -> Result<Job, Invalid> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", "e1");
        headers.insert(name, value);
        let stored_at = Timestamp::from_second(1_800_000_000).unwrap();
        let (body, here) = (br#"{"recipient":"ann","push":{"title":"Hi"}}"#, "eu".parse().unwrap());
        let subject = "notify.push.eu.normal.shop";
        open(subject, &headers, body, stored_at, &here, &IdKey::unkeyed())
    }

    #[test]
    fn counters_of_a_publisher_are_bounded() {
        for (name, value) in [
            (ATTEMPT, "0"),
            (ATTEMPT, "10000001"),
            (ATTEMPT, "4294967295"),
            (ATTEMPT, "-1"),
            (DISCOUNTED, "1"),
            (DISCOUNTED, "4294967295"),
        ] {
            assert_eq!(read_with(name, value).unwrap_err().field, name, "{value}");
        }
        assert_eq!(read_with(ATTEMPT, "3").unwrap().attempt, 3);
        let forwarded = |value: &str| {
            forwards(&HeaderMap::from_iter([(
                FORWARDED.parse().unwrap(),
                value.parse().unwrap(),
            )]))
        };
        assert_eq!(
            ["2", "4294967295", "4294967296", "x"].map(forwarded),
            [2, u32::MAX, u32::MAX, u32::MAX]
        );
        assert_eq!(forwards(&HeaderMap::new()), 0);
    }

    #[test]
    fn a_time_of_acceptance_in_another_unit_is_an_error() {
        let day = 86_400_000;
        let stored: i64 = 1_800_000_000_000;
        let read = |ms: i64| read_with(ACCEPTED_AT, &ms.to_string()).map(|job| job.accepted_at.as_millisecond());
        for (ms, at) in [
            (stored, stored),
            (stored - 27 * day, stored - 27 * day),
            (stored + 5000, stored),
        ] {
            assert_eq!(read(ms).unwrap(), at);
        }
        for ms in [
            stored / 1000,
            stored * 1000,
            0,
            -1,
            i64::MAX,
            stored - 61 * day,
            stored + 2 * day,
        ] {
            assert_eq!(read(ms).unwrap_err().field, ACCEPTED_AT, "{ms}");
        }
    }

    #[test]
    fn of_several_spellings_of_a_header_our_own_counts() {
        // The map has no order of its own, so one look-up could be right by chance.
        for _ in 0..64 {
            let mut headers = HeaderMap::new();
            for name in ["peal-subject", "PEAL-SUBJECT", "Peal-Subject", "pEAL-SUBJECT"] {
                headers.insert(name, name);
            }
            assert_eq!(header(&headers, SUBJECT), Some("Peal-Subject"));
            let foreign =
                HeaderMap::from_iter(["x-b", "X-B"].map(|name| (name.parse().unwrap(), name.parse().unwrap())));
            assert_eq!(header(&foreign, "X-b"), Some("X-B"));
        }
    }

    #[test]
    fn a_copy_keeps_no_header_that_its_writer_sets() {
        let mut headers = HeaderMap::new();
        for name in [
            "peal-reason",
            "Peal-Reason",
            "PEAL-DETAIL",
            "peal-subject",
            "Peal-Batch",
            "peal-moved",
            "Peal-Original-Bytes",
            "Nats-Rollup",
            "nats-expected-stream",
            "X-Custom",
            "KV-Operation",
        ] {
            headers.insert(name, "1");
        }
        headers.insert("Nats-Msg-Id", "e1");
        headers.insert("peal-attempt", "7");
        headers.insert(ATTEMPT, "2");
        headers.insert(ORIGIN, "x".repeat(5000));
        headers.insert("Peal-Newer", "kept");
        let kept = kept(&headers);
        let mut names: Vec<&str> = kept.iter().map(|(name, _)| name.as_ref()).collect();
        names.sort_unstable();
        assert_eq!(names, [ATTEMPT, EVENT_ID, "Peal-Newer"]);
        assert_eq!(
            (header(&kept, ATTEMPT), header(&kept, EVENT_ID)),
            (Some("2"), Some("e1"))
        );
    }

    fn body() -> impl Strategy<Value = Body> {
        let text = || proptest::option::of("\\PC{1,20}");
        let push = (
            text(),
            "\\PC{1,20}",
            proptest::option::of(0u32..100),
            proptest::option::of(1u32..1000),
        );
        let parts = ("[!-~]{1,20}", proptest::option::of("[!-~]{1,20}"), push);
        parts.prop_map(|(recipient, event, (title, body, badge, ttl))| Body {
            event_id: event.map(|event| event.parse().unwrap()),
            to: To::Recipient(recipient.parse().unwrap()),
            category: None,
            trial: Trial::NONE,
            content: Content::Push(std::sync::Arc::new(Push {
                title,
                body: Some(body),
                badge,
                ttl,
                ..Push::default()
            })),
            course: None,
        })
    }

    /// A job of two steps, read from the body that a gateway would write.
    fn step(headers: &HeaderMap, channel: &str) -> Result<Job, Invalid> {
        let body = br#"{"event_id":"e1","recipient":"ann","plan":{"mode":"fallback","steps":[{"channel":"push"},{"channel":"sms"}]},"push":{"title":"Hi"},"sms":{"text":"Hi"}}"#;
        let (subject, here) = (format!("notify.{channel}.eu.normal.shop"), "eu".parse().unwrap());
        let stored_at = Timestamp::from_second(1_800_000_000).unwrap();
        open(&subject, headers, body, stored_at, &here, &IdKey::unkeyed())
    }

    #[test]
    fn the_next_step_is_read_as_it_was_stored() {
        let mut fresh = version::headers();
        fresh.insert(version::VERSION, version::STEPS.to_string());
        assert!(
            version::is_unknown(&fresh),
            "a program that does not know plans gives it back"
        );
        assert!(!version::is_unknown_work(&fresh));
        let first = step(&fresh, "push").unwrap();
        assert_eq!(
            (first.step(), first.earlier_steps(&IdKey::unkeyed())),
            (Some(0), vec![])
        );
        let until = Timestamp::from_second(1_800_000_600).unwrap();
        for open_until in [None, Some(until)] {
            let next = first.next_step(&IdKey::unkeyed(), open_until).unwrap();
            let headers = deferred_headers(&next);
            assert_eq!(version::of(&headers), Some(version::STEPS));
            assert_eq!(step(&headers, "sms").unwrap(), next);
            assert_eq!(next.earlier_steps(&IdKey::unkeyed()), [first.id]);
            let alone = JobId::of(
                &IdKey::unkeyed(),
                &next.app,
                &next.event,
                next.recipient().unwrap(),
                next.channel(),
            );
            assert_eq!(next.id, alone, "the id that it would have alone");
            assert_eq!(next.next_step(&IdKey::unkeyed(), None), None);
            assert_eq!(next.body(), first.body());
        }
        // The header must name a step, and the subject its channel.
        assert_eq!(step(&fresh, "sms").unwrap_err().field, "subject");
        fresh.insert(STEP, "2");
        assert_eq!(step(&fresh, "push").unwrap_err().field, STEP);
    }

    #[test]
    fn what_a_test_key_sent_stays_its_own_in_every_message_that_follows() {
        let plain = r#"{"event_id":"e1","recipient":"ann","push":{"title":"Hi"}}"#;
        let marked = r#"{"event_id":"e1","recipient":"ann","test":true,"test_key":true,"push":{"title":"Hi"}}"#;
        let (job, live) = (read_job(marked).unwrap(), read_job(plain).unwrap());
        assert!(job.trial.test && job.trial.test_key && live.trial.is_none());
        assert!(job.id != live.id && job.notification != live.notification);
        let body = serde_json::to_string(&job.body()).unwrap();
        assert_eq!(read_job(&body).unwrap().trial, job.trial, "as a member of a slice");
        for headers in [
            deferred_headers(&job),
            retry_headers(&job, true, AddressId(uuid::Uuid::nil())),
        ] {
            assert!(
                version::of(&headers) == Some(version::RULES) && !version::is_unknown_work(&headers),
                "a program that does not know tests gives it back"
            );
        }
    }

    proptest! {
        #[test]
        fn a_job_is_read_as_it_was_written_and_parked(body in body(), ms in 0i64..1_000_000, tried in (1u32..20, 0u32..20, any::<bool>()), id: u128) {
            let lane = Lane::parse("notify.push.eu.urgent.shop").unwrap();
            let (us, here) = ("us".parse().unwrap(), "eu".parse().unwrap());
            let event = body.event_id.clone().unwrap_or_else(|| "e1".parse().unwrap());
            let To::Recipient(recipient) = &body.to else { unreachable!() };
            let ids = IdKey::unkeyed();
            let job = JobId::of(&ids, &lane.app, &event, recipient, lane.channel);
            let mut fresh = headers(job, Timestamp::from_millisecond(ms).unwrap(), &us);
            fresh.insert("Nats-Msg-Id", event.as_str());
            let payload = serde_json::to_vec(&body).unwrap();
            let stored = Timestamp::from_millisecond(1_000_000).unwrap();

            let read = open(&lane.notify(), &fresh, &payload, stored, &here, &ids).unwrap();
            prop_assert_eq!(read.body(), Body { event_id: Some(event.clone()), ..body });
            prop_assert_eq!((read.id, read.notification), (job, NotificationId::of(&lane.app, &event)));
            prop_assert_eq!((&read.origin, read.accepted_at.as_millisecond()), (&us, ms));
            prop_assert_eq!((read.attempt, &read.remaining), (1, &None));

            let address = AddressId(uuid::Uuid::from_u128(id));
            let (attempt, discounted, counted) = tried;
            let discounted = discounted % attempt;
            let read = Job { attempt, discounted, slice: Some(7), topic: Some("news".parse().unwrap()), ..read };
            let back = open(&lane.due(), &deferred_headers(&read), &payload, stored, &here, &ids).unwrap();
            prop_assert_eq!(&back, &read);
            let parked = retry_headers(&read, counted, address);
            let back = open(&lane.due(), &parked, &payload, stored, &here, &ids).unwrap();
            let discounted = if counted { discounted } else { discounted + 1 };
            let expected = Job { attempt: attempt + 1, discounted, remaining: Some(vec![address]), ..read };
            prop_assert_eq!(back, expected);
        }

        #[test]
        fn no_message_makes_it_panic(subject in ".{0,40}", payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let now = Timestamp::UNIX_EPOCH;
            let here = "eu".parse().unwrap();
            prop_assert!(open(&subject, &HeaderMap::new(), &payload, now, &here, &IdKey::unkeyed()).is_err());
            prop_assert!(open("notify.push.eu.normal.shop", &HeaderMap::new(), &payload, now, &here, &IdKey::unkeyed()).is_err());
        }
    }
}
