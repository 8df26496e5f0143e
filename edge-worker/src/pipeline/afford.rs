//! Counts the segments of text messages against the app's caps on spending, immediately before they are sent. What a cap does not
//! allow waits until its window ends, or ends if it expires before.
//!
//! The region's counters decide ([`shared::nats::spend`]), so a burst through several workers does not pass a cap. If they do not
//! answer, the job waits: nothing is sent that was not counted.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use shared::{
    address::{Address, Phone, Target},
    app::{Ambiguity, App},
    content::Content,
    job::Job,
    nats::{publish::NotStored, spend, subject},
    receipt::State,
    spend::SpendCap,
};

use super::{
    attempt::AddressAttempt,
    consent::Spared,
    context::Pipeline,
    hold::Held,
    in_flight::ActiveJob,
    settlement::{RETRY_JETSTREAM_AFTER, Step},
    timing::Timely,
};

/// The reason of what waits or ends because of a cap.
const SPEND_CAP: &str = "spend_cap";

/// A job whose messages the app's caps allow.
#[derive(Debug)]
pub(super) struct Afforded {
    pub(super) active: ActiveJob,
    /// Each with its revision in the bucket of recipients.
    pub(super) addresses: Vec<(Address, u64)>,
    /// Those that nothing is sent to.
    pub(super) spared: Vec<Spared>,
    /// Those that nothing is sent to now.
    pub(super) held: Vec<AddressAttempt>,
}

/// Sums of counters as this worker has seen them last. A sum only grows, so one that leaves no room need not be asked again, and
/// a flood that a cap stops uses up no other cap.
#[derive(Debug, Default)]
pub struct Spent(Mutex<HashMap<String, Seen>>);

/// A sum that was seen.
#[derive(Debug, Clone, Copy)]
struct Seen {
    segments: u64,
    /// When its window ends.
    end: Timestamp,
}

/// A message, and what it counts.
#[derive(Debug, Clone, Copy)]
struct Message<'a> {
    segments: u32,
    /// The name of its delivery, for as long as it is counted once.
    id: &'a str,
    /// Whether it may have been counted in this window.
    is_repeated: bool,
}

/// The counter of a cap.
#[derive(Debug)]
struct Counter {
    subject: String,
    /// The most segments.
    most: u64,
    /// When its window ends.
    end: Timestamp,
}

impl Pipeline {
    /// Counts what the job's messages cost, and holds back what a cap does not allow.
    pub(super) async fn afford(&self, timely: Timely) -> Step<Afforded> {
        let job = &timely.active.job;
        let sms = match &job.content {
            // A test ends at the provider that sends nothing.
            Content::Sms(sms) if !job.trial.test => sms,
            _ => return Ok(self.afforded(timely)),
        };
        let app = self.config.tenants().apps.get(&job.app).cloned();
        match app.filter(|app| !app.spend_caps.is_empty()) {
            Some(app) => {
                let segments = sms.segments_max();
                Box::pin(self.afford_within(timely, &app, segments)).await
            }
            None => Ok(self.afforded(timely)),
        }
    }

    /// A job whose messages no cap holds back.
    fn afforded(&self, timely: Timely) -> Afforded {
        let Timely {
            active,
            addresses,
            spared,
            held,
        } = timely;
        let held = held.into_iter().map(|held| self.held_back(&active.job, held));
        Afforded {
            held: held.collect(),
            active,
            addresses,
            spared,
        }
    }

    async fn afford_within(&self, timely: Timely, app: &App, segments: u32) -> Step<Afforded> {
        let Timely {
            mut active,
            addresses,
            mut spared,
            mut held,
        } = timely;
        let job = Arc::clone(&active.job);
        let mut allowed = Vec::with_capacity(addresses.len());
        for (address, revision) in addresses {
            let Target::Phone(phone) = &address.target else {
                allowed.push((address, revision));
                continue;
            };
            let counters = self.counters(app, phone);
            let id = self.name_of_count(&job, &address);
            let message = Message {
                segments,
                id: &id,
                is_repeated: job.attempt > 1 || active.pulled.tries > 1,
            };
            let counted = self.count(&counters, message).await;
            if let (Ok(held_until), false) = (&counted, counters.is_empty()) {
                self.telemetry.metrics.spent(&job.app, segments, held_until.is_none());
            }
            match counted {
                Ok(None) => allowed.push((address, revision)),
                Ok(Some(until)) => {
                    if job.is_expired(until) {
                        let (state, reason) = (State::Suppressed, SPEND_CAP);
                        spared.push(Spared { address, state, reason });
                    } else {
                        let why = SPEND_CAP;
                        held.push(Held {
                            address,
                            revision,
                            until,
                            why,
                        });
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "segments cannot be counted; the job waits");
                    return Err(Box::pin(self.postpone(active, SPEND_CAP, RETRY_JETSTREAM_AFTER)).await);
                }
            }
        }
        if allowed.is_empty() && spared.is_empty() {
            active = self.hold_whole(active, &held).await?;
        }
        Ok(self.afforded(Timely {
            active,
            addresses: allowed,
            spared,
            held,
        }))
    }

    /// The counters of the app's caps that cover `phone`, those of few numbers first.
    fn counters(&self, app: &App, phone: &Phone) -> Vec<Counter> {
        let now = self.clock.now();
        let mut caps: Vec<&SpendCap> = app.spend_caps.iter().filter(|cap| cap.covers(phone)).collect();
        caps.sort_by_key(|cap| cap.breadth());
        let counter = |cap: &SpendCap| {
            let window = cap.window(now);
            Counter {
                subject: subject::spend(&app.id, cap.id(), window.start),
                most: cap.segments,
                end: window.end,
            }
        };
        caps.into_iter().map(counter).collect()
    }

    /// Under which name a delivery is counted once. A person who replays it sends it again, and so does an app that sends again
    /// in doubt.
    fn name_of_count(&self, job: &Job, address: &Address) -> String {
        let (delivery, accepted_at) = (job.delivery(address.id), job.accepted_at.as_millisecond());
        match self.ambiguity(job) {
            Ambiguity::Hold => format!("{delivery}:{accepted_at}"),
            Ambiguity::Resend => format!("{delivery}:{accepted_at}:{}", job.counted()),
        }
    }

    /// Counts a message in all of `counters`. Returns until when it must wait, if one does not allow it.
    async fn count(&self, counters: &[Counter], message: Message<'_>) -> Result<Option<Timestamp>, NotStored> {
        if let Some(end) = self.spent.forbids(counters, message) {
            return Ok(Some(end));
        }
        for counter in counters {
            let id = format!("{}:{}", message.id, counter.subject);
            let sum = spend::count(&self.js, counter.subject.clone(), id, message.segments).await?;
            self.spent.learn(counter, sum, self.clock.now());
            if sum > counter.most {
                return Ok(Some(counter.end));
            }
        }
        Ok(None)
    }
}

impl Spent {
    /// Until when `message` must wait, if a sum is known that leaves no room for it.
    fn forbids(&self, counters: &[Counter], message: Message<'_>) -> Option<Timestamp> {
        let known = self.known();
        let is_full = |counter: &&Counter| {
            let spent = known.get(&counter.subject).map_or(0, |seen| seen.segments);
            // What was counted before is part of the sum.
            let more = if message.is_repeated { 0 } else { message.segments };
            spent + u64::from(more) > counter.most
        };
        counters.iter().filter(is_full).map(|full| full.end).max()
    }

    fn learn(&self, counter: &Counter, segments: u64, now: Timestamp) {
        let mut known = self.known();
        if let Some(seen) = known.get_mut(&counter.subject) {
            // Answers may overtake each other.
            seen.segments = seen.segments.max(segments);
            return;
        }
        known.retain(|_, seen| seen.end > now);
        let end = counter.end;
        known.insert(counter.subject.clone(), Seen { segments, end });
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
