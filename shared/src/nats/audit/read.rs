//! Reads the streams in the order in which nothing that happens meanwhile can look like a loss.
//!
//! A job is stored before its receipt, and a receipt before the job is acknowledged. So what lanes have acknowledged is
//! asked first, then receipts are read, then dead letters and the streams of work. What still looks wrong is looked at
//! again a moment later, with what was added since.

use std::{collections::HashMap, time::Duration};

use async_nats::{Client, header::NATS_MESSAGE_ID, jetstream::consumer::PullConsumer};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{Audit, Part, Place, Removed, Report, Scope};
use crate::{
    broadcast::{Broadcast, Work},
    channel::{Channel, Class},
    id::{AppId, Region},
    job::Job,
    nats::{
        connect, direct, envelope,
        follow::{self, Entry, FollowError, Start},
        subject::{self, Lane},
        topology::{self, Domain, Mesh, Sourced},
    },
    receipt::Batch,
};

/// How many readings a fault must survive before it is reported.
const MAX_READINGS: u32 = 3;

/// How long to wait before looking or asking again: receipts and sources are under way for less.
const REPEATED_AFTER: Duration = Duration::from_millis(1500);

/// A gateway may record a little later what it accepted, so receipts this much younger than the oldest may lack theirs.
const RECORDED_WITHIN: SignedDuration = SignedDuration::from_mins(1);

/// Messages of one request for schedules.
const SCHEDULES_PER_REQUEST: usize = 1000;

/// The streams could not be read.
#[derive(Debug, thiserror::Error)]
#[error("region {region}: {error}")]
pub struct Unreadable {
    region: Region,
    error: String,
}

/// Reads the streams of `regions` of a mesh over a connection to any of them. What was sent to a region that is left out
/// is told from its receipts alone.
///
/// # Errors
/// When a region does not answer, or a stream is missing.
pub async fn read(client: &Client, regions: &[Region], scope: &Scope) -> Result<Report, Unreadable> {
    let mut reading = Reading {
        client,
        scope,
        regions,
        audit: Audit::default(),
        next: HashMap::new(),
    };
    let mut looks = 1;
    loop {
        reading.look().await?;
        let report = reading.audit.report(scope);
        if report.holds() || looks == MAX_READINGS {
            return Ok(report);
        }
        looks += 1;
        tokio::time::sleep(REPEATED_AFTER).await;
    }
}

struct Reading<'a> {
    client: &'a Client,
    scope: &'a Scope,
    regions: &'a [Region],
    audit: Audit,
    /// Where to go on, by region, stream and filter.
    next: HashMap<(Region, &'static str, String), u64>,
}

/// What a region said before anything was read.
struct Before {
    region: Region,
    /// The sequence up to which each lane is done.
    done: HashMap<(Channel, Class), u64>,
    sources: Vec<Sourced>,
    /// Receipts of what was accepted before are not all there.
    receipts_since: Timestamp,
}

impl Reading<'_> {
    async fn look(&mut self) -> Result<(), Unreadable> {
        let mut before = Vec::with_capacity(self.regions.len());
        for region in self.regions {
            before.push(patiently(region, async || self.ask(region).await).await?);
        }
        for here in &before {
            self.receipts(here).await?;
        }
        for here in &before {
            self.letters(here).await?;
        }
        for here in &before {
            // A mesh of one region has nothing to send elsewhere.
            if !here.sources.is_empty() {
                self.outbox(&here.region, &before).await?;
            }
        }
        for here in &before {
            self.work(here).await?;
        }
        for region in self.regions {
            patiently(region, async || self.schedules(region).await).await?;
        }
        Ok(())
    }

    async fn ask(&mut self, region: &Region) -> Result<Before, async_nats::Error> {
        let js = connect::jetstream_of(self.client.clone(), region);
        let notify = js.get_stream(topology::NOTIFY).await?;
        let work = notify.cached_info().state.clone();
        let mut done = HashMap::new();
        for (channel, class) in Mesh::lanes() {
            let consumer: PullConsumer = notify.get_consumer(&topology::lane_consumer(channel, class)).await?;
            let info = consumer.cached_info();
            // One that has nothing left is done with all that the stream held before it was asked.
            let idle = info.num_pending == 0 && info.num_ack_pending == 0;
            let floor = info.ack_floor.stream_sequence;
            done.insert((channel, class), if idle { work.last_sequence } else { floor });
        }
        let letters = js.get_stream(topology::DEAD).await?.cached_info().state.clone();
        let removed = Removed {
            work: work.last_sequence - work.messages,
            letters: letters.last_sequence - letters.messages,
        };
        self.audit.read.insert(region.clone(), removed);
        let receipts = js.get_stream(topology::RECEIPTS).await?.cached_info().state.clone();
        let receipts_since = if receipts.first_sequence <= 1 {
            Timestamp::MIN
        } else {
            follow::timestamp(receipts.first_timestamp.unix_timestamp_nanos()) + RECORDED_WITHIN
        };
        self.audit.remembered = self.audit.remembered.max(receipts_since);
        Ok(Before {
            region: region.clone(),
            done,
            sources: topology::sources(self.client, region, topology::NOTIFY).await?,
            receipts_since,
        })
    }

    /// Receipts of a region, and its copies of those of regions that are left out.
    async fn receipts(&mut self, here: &Before) -> Result<(), Unreadable> {
        let region = &here.region;
        self.receipts_of(region, subject::receipt_filter(region)).await?;
        let others = here
            .sources
            .iter()
            .filter_map(|source| source.from.parse::<Region>().ok());
        for other in others.filter(|other| !self.regions.contains(other)) {
            self.receipts_of(region, subject::receipt_origin_filter(&other, region))
                .await?;
        }
        Ok(())
    }

    async fn receipts_of(&mut self, region: &Region, filter: String) -> Result<(), Unreadable> {
        let mut broken = None;
        self.each(region, topology::RECEIPTS, filter, |audit, scope, entry| {
            if !scope.has(subject::app_of(&entry.subject)) {
                return;
            }
            match serde_json::from_slice::<Batch>(&entry.payload) {
                Ok(batch) => audit.batch(&batch, scope),
                Err(error) => broken = Some(format!("receipts at {} cannot be read: {error}", entry.sequence)),
            }
        })
        .await?;
        broken.map_or(Ok(()), |error| Err(unreadable(region, &error)))
    }

    async fn letters(&mut self, here: &Before) -> Result<(), Unreadable> {
        let region = &here.region;
        self.each(
            region,
            topology::DEAD,
            subject::dead_filter(region),
            |audit, scope, entry| {
                let app = subject::app_of(&entry.subject);
                let id = envelope::header(&entry.headers, NATS_MESSAGE_ID.as_ref());
                // `<delivery>:<attempt>`, or the job if nobody could read it.
                let id = id.and_then(|id| id.split(':').next()?.parse::<Uuid>().ok());
                if let (Some(id), Some(app), true) = (id, app.and_then(|app| app.parse().ok()), scope.has(app))
                    && entry.stored_at >= here.receipts_since
                {
                    let origin =
                        envelope::header(&entry.headers, envelope::ORIGIN).and_then(|origin| origin.parse().ok());
                    let group = audit.group(&app, origin.as_ref().unwrap_or(region), region);
                    audit.letter(id, group);
                }
            },
        )
        .await
    }

    async fn outbox(&mut self, region: &Region, before: &[Before]) -> Result<(), Unreadable> {
        self.each(
            region,
            topology::OUTBOX,
            subject::NOTIFY_FILTER.to_owned(),
            |audit, scope, entry| {
                let Ok(lane) = Lane::parse(&entry.subject) else { return };
                let there = before.iter().find(|there| there.region == lane.region);
                let taken = there.is_some_and(|there| {
                    there.sources.iter().any(|source| {
                        source.stream == topology::OUTBOX
                            && source.from == region.as_str()
                            && source.is_awake()
                            && source.lag == 0
                    })
                });
                let place = match there {
                    Some(there) if taken && entry.stored_at < there.receipts_since => Place::Forgotten,
                    Some(_) if taken => Place::Lost,
                    _ => Place::Outbox,
                };
                audit.work(scope, entry, &lane.region, place);
            },
        )
        .await
    }

    async fn work(&mut self, here: &Before) -> Result<(), Unreadable> {
        let region = &here.region;
        self.each(
            region,
            topology::NOTIFY,
            subject::NOTIFY_FILTER.to_owned(),
            |audit, scope, entry| {
                let done = Lane::parse(&entry.subject)
                    .ok()
                    .and_then(|lane| here.done.get(&(lane.channel, lane.class)).copied());
                let place = match done {
                    Some(done) if entry.sequence > done => Place::Lane,
                    _ if entry.stored_at < here.receipts_since => Place::Forgotten,
                    _ => Place::Acknowledged,
                };
                audit.work(scope, entry, region, place);
            },
        )
        .await
    }

    /// Schedules are read without a consumer: a work-queue stream allows only one consumer.
    async fn schedules(&mut self, region: &Region) -> Result<(), async_nats::Error> {
        let key = (region.clone(), topology::SCHEDULE, ">".to_owned());
        let mut next = self.next.get(&key).copied().unwrap_or(1);
        let js = connect::jetstream(self.client.clone());
        loop {
            let domain = Domain::Region(region);
            let found = direct::from(&js, &domain, topology::SCHEDULE, ">", next, SCHEDULES_PER_REQUEST).await?;
            let Some(last) = found.last() else { break };
            next = last.sequence + 1;
            self.next.insert(key.clone(), next);
            for message in &found {
                let target = envelope::header(&message.headers, "Nats-Schedule-Target");
                let subject = target.unwrap_or(&message.subject);
                // What cannot be read will be buried when it is due, under a name that is made then.
                match envelope::read(subject, &message.headers, &message.payload, message.stored_at, region) {
                    Ok(Work::Job(job)) => self.audit.schedule(self.scope, &job, region),
                    Ok(Work::Broadcast(slice)) => self.audit.slice(self.scope, &slice, region),
                    Err(_) => {}
                }
            }
            if found.len() < SCHEDULES_PER_REQUEST {
                break;
            }
        }
        Ok(())
    }

    /// Hands to `take` what is new in a stream.
    async fn each(
        &mut self,
        region: &Region,
        stream: &'static str,
        filter: String,
        mut take: impl FnMut(&mut Audit, &Scope, &Entry),
    ) -> Result<(), Unreadable> {
        let js = connect::jetstream_of(self.client.clone(), region);
        let key = (region.clone(), stream, filter);
        let start = match (self.next.get(&key), self.scope.since) {
            (Some(next), _) => Start::Sequence(*next),
            (None, Some(since)) => Start::Time(since),
            (None, None) => Start::Sequence(1),
        };
        let (audit, scope) = (&mut self.audit, self.scope);
        let last = follow::read(&js, stream, &key.2, start, |entry| take(audit, scope, entry)).await;
        if let Some(last) = last.map_err(|error: FollowError| unreadable(region, &error))? {
            self.next.insert(key, last + 1);
        }
        Ok(())
    }
}

/// Asks again what a region did not answer: where a server was killed, the others first agree on who leads.
async fn patiently<T>(
    region: &Region,
    mut ask: impl AsyncFnMut() -> Result<T, async_nats::Error>,
) -> Result<T, Unreadable> {
    let mut tries = 1;
    loop {
        match ask().await {
            Err(_) if tries < follow::MAX_FRUITLESS_ATTEMPTS => tries += 1,
            asked => return asked.map_err(|error| unreadable(region, &error)),
        }
        tokio::time::sleep(REPEATED_AFTER).await;
    }
}

impl Scope {
    fn has(&self, app: Option<&str>) -> bool {
        self.app.as_ref().is_none_or(|wanted| Some(wanted.as_str()) == app)
    }

    fn reaches(&self, at: Timestamp) -> bool {
        self.since.is_none_or(|since| at >= since)
    }
}

impl Audit {
    fn batch(&mut self, batch: &Batch, scope: &Scope) {
        let group = self.group(&batch.app, &batch.origin, &batch.region);
        for accepted in &batch.accepted {
            if scope.reaches(accepted.at) && accepted.at >= self.remembered {
                self.accepted(accepted, group);
            }
        }
        for receipt in &batch.receipts {
            if let Some(expanded) = &receipt.expanded {
                let accepted_at = expanded.accepted_at();
                // The receipts of a slice's jobs are in their own region alone.
                let is_remembered = scope.reaches(accepted_at)
                    && accepted_at >= self.remembered
                    && self.read.contains_key(&batch.region);
                self.expanded(receipt, expanded, group, is_remembered);
                continue;
            }
            // A later attempt of a job that is not known belongs to one that was accepted before.
            let earlier =
                scope.since.is_some() && receipt.attempt > 1 && !self.jobs.contains_key(receipt.job.0.as_bytes());
            if !earlier {
                self.receipt(receipt, group);
            }
        }
    }

    /// A message of work for `region`.
    fn work(&mut self, scope: &Scope, entry: &Entry, region: &Region, place: Place) {
        if !scope.has(subject::app_of(&entry.subject)) {
            return;
        }
        match envelope::read(&entry.subject, &entry.headers, &entry.payload, entry.stored_at, region) {
            Ok(Work::Job(job)) if scope.reaches(job.accepted_at) => {
                let group = self.group(&job.app, &job.origin, region);
                self.stored(job.id, job.notification, group, place, part(&job));
            }
            Ok(Work::Broadcast(broadcast)) if scope.reaches(broadcast.accepted_at) => {
                let group = self.group(&broadcast.app, &broadcast.origin, region);
                self.stored(broadcast.id, broadcast.notification, group, place, Part::Whole);
            }
            // What nobody can read is still accepted, and must end among the dead letters. On its way it has no name yet.
            Err(_) if place > Place::Outbox => {
                let (job, notification) = envelope::unreadable(entry.sequence, entry.stored_at, region);
                let app = Lane::parse(&entry.subject).map_or_else(|_| AppId::unknown(), |lane| lane.app);
                let group = self.group(&app, region, region);
                self.stored(job, notification, group, place, Part::Whole);
            }
            Ok(_) | Err(_) => {}
        }
    }

    fn schedule(&mut self, scope: &Scope, job: &Job, region: &Region) {
        let known = self.jobs.contains_key(job.id.0.as_bytes());
        if !scope.has(Some(job.app.as_str())) || (!known && !scope.reaches(job.accepted_at)) {
            return;
        }
        let group = self.group(&job.app, &job.origin, region);
        self.stored(job.id, job.notification, group, Place::Scheduled, part(job));
        for address in job.remaining.iter().flatten() {
            self.scheduled(job.id, *address);
        }
    }
}

impl Audit {
    fn slice(&mut self, scope: &Scope, slice: &Broadcast, region: &Region) {
        if scope.has(Some(slice.app.as_str())) && scope.reaches(slice.accepted_at) {
            let group = self.group(&slice.app, &slice.origin, region);
            self.stored(slice.work(), slice.notification, group, Place::Scheduled, Part::Slice);
        }
    }
}

fn part(job: &Job) -> Part {
    job.slice.map_or(Part::Whole, |_| Part::Member)
}

fn unreadable(region: &Region, error: &dyn std::fmt::Display) -> Unreadable {
    Unreadable {
        region: region.clone(),
        error: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_region_is_asked_again_a_few_times() {
        let region: Region = "eu".parse().unwrap();
        let asked = async |silent: u32| {
            let mut tries = 0;
            let answered = patiently(&region, async || {
                tries += 1;
                if tries > silent {
                    Ok(tries)
                } else {
                    Err("timed out".into())
                }
            });
            answered.await.map_err(|error| error.to_string())
        };
        assert_eq!(asked(2).await, Ok(3));
        assert_eq!(asked(3).await, Err("region eu: timed out".to_owned()));
    }
}
