//! Deferral: a rule makes a job wait as a whole until a time, before any of its attempts.
//!
//! A worker defers a job in the same order in which it parks a retry: it stores the schedule ([`Deferral::store`]),
//! commits and publishes the receipt ([`Deferral::receipt`]), and then acknowledges the message. The receipt is no
//! outcome, so the ledger lets the job pass when its schedule fires. If the worker crashes after the first step, the job
//! arrives from both the schedule and the message; the rules are applied to each, and the ledger drops the second.

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID, jetstream};
use bytes::Bytes;
use jiff::Timestamp;

use super::{
    envelope,
    publish::{self, NotStored},
    subject::{self, Lane, Tier},
};
use crate::{
    id::{AddressId, JobId},
    job::Job,
    receipt::{Receipt, State},
    telemetry::trace::TRACEPARENT,
};

/// The deferral of one job.
#[derive(Debug, Clone, Copy)]
pub struct Deferral<'a> {
    job: &'a Job,
    until: Timestamp,
    reason: &'static str,
}

/// Why a job cannot wait as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotDefer {
    /// It is a retry for one address. Its job has outcomes, so the ledger would discard it as a duplicate when its schedule
    /// fired; it can be parked for its address instead.
    #[error("a retry waits for its address")]
    Retry,
    /// It was expanded from a slice, whose receipt counts the outcomes of the first attempts at its jobs; it can be parked
    /// for each address instead.
    #[error("a member of a slice waits for its addresses")]
    Member,
    /// Its time to live ends before the deferral does.
    #[error("the job expires first")]
    Expires,
}

impl<'a> Deferral<'a> {
    /// Defers `job` until `until`, because of `reason`: a stable word such as `quiet_hours`.
    ///
    /// # Errors
    /// When the job cannot wait as a whole.
    pub fn new(job: &'a Job, until: Timestamp, reason: &'static str) -> Result<Self, CannotDefer> {
        if job.remaining.is_some() {
            Err(CannotDefer::Retry)
        } else if job.slice.is_some() {
            Err(CannotDefer::Member)
        } else if job.is_expired(until) {
            Err(CannotDefer::Expires)
        } else {
            Ok(Self { job, until, reason })
        }
    }

    /// Stores the schedule by which JetStream publishes the job on `lane` at `until`, in the tier `tier` of its retries: work
    /// that waits until one time comes back at once. `headers` and `payload` are those of the message that carried the job.
    /// Deferring again replaces the schedule.
    ///
    /// # Errors
    /// When the server did not confirm that it stored the schedule. The job must not be acknowledged then.
    pub async fn store(
        &self,
        js: &jetstream::Context,
        lane: &Lane,
        tier: Tier,
        headers: &HeaderMap,
        payload: Bytes,
    ) -> Result<(), NotStored> {
        // It has no message id: the subject alone keeps it to one schedule. With the same id, the stream would drop a second
        // deferral as a duplicate, although the first has fired already.
        let mut scheduled = envelope::deferred_headers(self.job);
        envelope::schedule(&mut scheduled, self.until, tier.subject(&lane.due()));
        store_whole(js, self.job.id, scheduled, headers, payload).await
    }

    /// The receipt of the deferral. It has no address, and the number of the attempt that is still to be made.
    pub fn receipt(&self, at: Timestamp) -> Receipt {
        let job = self.job;
        Receipt {
            recipient: job.recipient().cloned(),
            attempt: job.attempt,
            step: job.step(),
            reason: Some(self.reason.into()),
            next_at: Some(self.until),
            ..Receipt::new(job.notification, job.id, job.channel(), State::Deferred, at)
        }
    }
}

/// Stores the job of a plan's next step, which `JetStream` publishes on `target` at `due`. `headers` and `payload` are those of the
/// message of the step before, because all steps have one body. Storing it again replaces a schedule that waits.
///
/// # Errors
/// When the server did not confirm that it stored the schedule. The step before must not be recorded then.
pub async fn store_next(
    js: &jetstream::Context,
    next: &Job,
    due: Timestamp,
    target: String,
    headers: &HeaderMap,
    payload: Bytes,
) -> Result<(), NotStored> {
    let mut scheduled = envelope::deferred_headers(next);
    envelope::schedule(&mut scheduled, due, target);
    if next.place.as_ref().is_some_and(|place| place.open_until.is_none()) {
        // A worker that ends before it records the step before stores the same again soon after.
        scheduled.insert(NATS_MESSAGE_ID, format!("{}:step", next.id));
    }
    store_whole(js, next.id, scheduled, headers, payload).await
}

/// Stores the schedule of a whole job; `headers` are those of the message that leads to it.
async fn store_whole(
    js: &jetstream::Context,
    job: JobId,
    mut scheduled: HeaderMap,
    headers: &HeaderMap,
    payload: Bytes,
) -> Result<(), NotStored> {
    if let Some(trace) = envelope::header(headers, TRACEPARENT) {
        scheduled.insert(TRACEPARENT, trace);
    }
    publish::store(js, subject::schedule_whole(job), scheduled, payload).await?;
    Ok(())
}

/// Lets JetStream bring back at `until` a message that only a newer version understands, as it is. It then neither keeps
/// its stream from being trimmed nor counts among the messages in flight. `work` is its job, broadcast or slice, and
/// `address` the address of a retry.
///
/// # Errors
/// When it is not known to be stored. The message must not be acknowledged then.
pub async fn store_unread(
    js: &jetstream::Context,
    message: Unread<'_>,
    work: JobId,
    address: Option<AddressId>,
    until: Timestamp,
) -> Result<(), NotStored> {
    let Unread {
        subject,
        headers,
        payload,
        accepted_at,
    } = message;
    let mut scheduled = envelope::kept(headers);
    scheduled.insert(envelope::ACCEPTED_AT, accepted_at.as_millisecond().to_string());
    // Fresh work comes back on the lane of retries; all other work on its own.
    let target = subject.strip_prefix("notify.").map(|lane| format!("due.{lane}"));
    envelope::schedule(&mut scheduled, until, target.unwrap_or_else(|| subject.to_owned()));
    let waits = address.map_or_else(
        || subject::schedule_whole(work),
        |address| subject::schedule(work, address),
    );
    publish::store(js, waits, scheduled, payload).await?;
    Ok(())
}

/// A message that this version does not understand.
#[derive(Debug, Clone)]
pub struct Unread<'a> {
    /// Its subject.
    pub subject: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its body.
    pub payload: Bytes,
    /// When it was accepted, or first stored.
    pub accepted_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use uuid::Uuid;

    use super::*;
    use crate::{content::push::Push, id::AddressId, testing};

    #[test]
    fn only_a_whole_job_that_does_not_expire_before_is_deferred() {
        let push = Push {
            title: Some("Hi".into()),
            ttl: Some(3600),
            ..Push::default()
        };
        let job = testing::job(&"shop".parse().unwrap(), "e1", push, Timestamp::UNIX_EPOCH);
        let until = |minutes| Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes);
        let deferral = Deferral::new(&job, until(59), "quiet_hours").unwrap();
        let receipt = deferral.receipt(until(1));
        assert_eq!(
            (receipt.state, receipt.attempt, receipt.address),
            (State::Deferred, 1, None)
        );
        assert_eq!(
            (receipt.reason.as_deref(), receipt.next_at),
            (Some("quiet_hours"), Some(until(59)))
        );

        let refused = |job: &Job, minutes| Deferral::new(job, until(minutes), "quiet_hours").unwrap_err();
        assert_eq!(refused(&job, 60), CannotDefer::Expires);
        let retry = Job {
            remaining: Some(vec![AddressId(Uuid::from_u128(1))]),
            ..job.clone()
        };
        assert_eq!(refused(&retry, 1), CannotDefer::Retry);
        assert_eq!(refused(&Job { slice: Some(0), ..job }, 1), CannotDefer::Member);
    }
}
