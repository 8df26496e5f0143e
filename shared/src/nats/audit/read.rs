//! Reads the streams in an order in which concurrent work cannot look like a loss.
//!
//! A job is stored before its receipt, and a receipt before the job is acknowledged. So the acknowledged positions of
//! intakes and lanes are read first, then receipts, then dead letters, the streams of work, and the intakes. If a fault remains, the streams are
//! read again shortly after, from where the previous reading ended.
//!
//! What waited for its time is claimed, made jobs of, and acknowledged, in this order. So claims are read before all else, and then
//! what is due: of a claim that is due no more every job was stored.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use async_nats::{
    Client,
    header::NATS_MESSAGE_ID,
    jetstream::{consumer::PullConsumer, context::GetStreamErrorKind, stream::Info},
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Audit, Item, Keys, Part, Place, Recreated, Removed, Report, Scope};
use crate::{
    broadcast::{Broadcast, Work},
    channel::{Channel, Class},
    id::{AppId, EventId, NotificationId, Region},
    job::Job,
    nats::{
        connect,
        direct::{self, Found},
        envelope,
        follow::{self, Entry, FollowError, Start},
        planned::{Decision, Fate},
        subject::{self, Lane, Tier},
        topology::{self, Domain, Mesh, Sourced},
    },
    plan::Mode,
    proof::Prover,
    receipt::Batch,
};

/// Maximum number of readings: a fault that remains in the last one is reported.
const MAX_READINGS: u32 = 3;

/// How long to wait before a repeated reading or request: receipts and sources arrive sooner.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(1500);

/// The time within which a gateway records what it accepted. Receipts that much younger than the oldest may lack the
/// record.
const ACCEPTANCE_RECORDED_WITHIN: SignedDuration = SignedDuration::from_mins(1);

/// Maximum number of messages in one answer to a request for schedules.
const SCHEDULES_PER_REQUEST: usize = 1000;

/// The streams of a region could not be read.
#[derive(Debug, thiserror::Error)]
#[error("region {region}: {error}")]
pub struct Unreadable {
    region: Region,
    error: String,
}

/// Reads the streams of `regions` of a mesh over a connection to any of them. Jobs for a region that is left out are
/// known from their receipts alone.
///
/// # Errors
/// When a region does not answer, or a stream is missing.
pub async fn read(client: &Client, regions: &[Region], scope: &Scope, keys: Keys) -> Result<Report, Unreadable> {
    let Keys { ids, proofs } = keys;
    let mut reading = Reading {
        proofs,
        client,
        scope,
        regions,
        audit: Audit::new(ids),
        next: HashMap::new(),
    };
    let mut readings = 1;
    loop {
        reading.read_once().await?;
        let report = reading.audit.report(scope);
        if report.holds() || readings == MAX_READINGS {
            return Ok(report);
        }
        readings += 1;
        tokio::time::sleep(READ_AGAIN_AFTER).await;
    }
}

struct Reading<'a> {
    client: &'a Client,
    scope: &'a Scope,
    regions: &'a [Region],
    audit: Audit,
    /// What checks receipts, and since when.
    proofs: Option<(Prover, Timestamp)>,
    /// The next sequence to read, by region, stream and filter.
    next: HashMap<(Region, String, String), u64>,
}

/// The state of a region, as asked for before any message is read.
struct Before {
    region: Region,
    /// The sequence up to which each lane has acknowledged its work.
    done: HashMap<(Channel, Class, Tier), u64>,
    sources: Vec<Sourced>,
    /// Receipts of notifications accepted before this time may have expired.
    receipts_since: Timestamp,
    /// The intakes, each with the sequence up to which gateways have worked it off.
    intakes: Vec<(AppId, u64)>,
    /// What waited for its time, and became jobs.
    fired: Vec<(AppId, NotificationId, Fate)>,
}

impl Reading<'_> {
    async fn read_once(&mut self) -> Result<(), Unreadable> {
        let mut before = Vec::with_capacity(self.regions.len());
        for region in self.regions {
            before.push(with_retries(region, async || self.ask(region).await).await?);
        }
        for here in &before {
            self.receipts(here).await?;
        }
        for here in &before {
            self.letters(here).await?;
        }
        for here in &before {
            // A mesh of one region sends nothing to others.
            if !here.sources.is_empty() {
                self.outbox(&here.region, &before).await?;
            }
        }
        for here in &before {
            self.work(here).await?;
        }
        for region in self.regions {
            with_retries(region, async || self.schedules(region).await).await?;
        }
        for here in &before {
            for (app, done) in &here.intakes {
                self.intake(here, app, *done).await?;
            }
            self.fired(here);
        }
        Ok(())
    }

    async fn ask(&mut self, region: &Region) -> Result<Before, async_nats::Error> {
        let js = connect::jetstream_of(self.client.clone(), region);
        // Before all else: what is worked off here is found below.
        let fired = self.claims(region).await?;
        let mut intakes = Vec::new();
        for app in topology::intakes(&js).await? {
            if self.scope.has(Some(app.as_str())) {
                let stream = topology::intake(&app);
                let consumer: PullConsumer = js.get_consumer_from_stream(topology::INTAKE_CONSUMER, &stream).await?;
                intakes.push((app, consumer.cached_info().ack_floor.stream_sequence));
            }
        }
        let notify = js.get_stream(topology::NOTIFY).await?;
        let work = notify.cached_info().state.clone();
        let mut recreated = vec![recreated(region, topology::NOTIFY, notify.cached_info())];
        let mut done = HashMap::new();
        let lanes = Mesh::lanes().flat_map(|(channel, class)| Tier::ALL.map(|tier| (channel, class, tier)));
        for (channel, class, tier) in lanes {
            let name = tier.consumer(topology::lane_consumer(channel, class));
            let consumer: PullConsumer = match notify.get_consumer(&name).await {
                Ok(consumer) => consumer,
                // A gateway of the version before makes no overflow, and lanes of pushes alone.
                Err(_) if tier == Tier::Overflow || channel != Channel::Push => continue,
                Err(error) => return Err(error),
            };
            let info = consumer.cached_info();
            // An idle consumer has acknowledged all messages that the stream held when the stream was asked, just before.
            let idle = info.num_pending == 0 && info.num_ack_pending == 0;
            let floor = info.ack_floor.stream_sequence;
            done.insert((channel, class, tier), if idle { work.last_sequence } else { floor });
        }
        let letters = js.get_stream(topology::DEAD).await?;
        let removed = Removed {
            work: removed(notify.cached_info()),
            letters: removed(letters.cached_info()),
        };
        self.audit.read.insert(region.clone(), removed);
        let receipts = js.get_stream(topology::RECEIPTS).await?;
        let schedule = js.get_stream(topology::SCHEDULE).await?;
        let sources = topology::sources(self.client, region, topology::NOTIFY).await?;
        recreated.extend([
            self::recreated(region, topology::DEAD, letters.cached_info()),
            self::recreated(region, topology::RECEIPTS, receipts.cached_info()),
            self::recreated(region, topology::SCHEDULE, schedule.cached_info()),
        ]);
        // A mesh of one region has no outbox.
        if !sources.is_empty() {
            let outbox = js.get_stream(topology::OUTBOX).await?;
            recreated.push(self::recreated(region, topology::OUTBOX, outbox.cached_info()));
        }
        self.audit.recreated.retain(|known| known.region != *region);
        self.audit.recreated.extend(recreated.into_iter().flatten());
        let receipts_since = receipts_since(receipts.cached_info());
        self.audit.receipts_since = self.audit.receipts_since.max(receipts_since);
        Ok(Before {
            region: region.clone(),
            done,
            sources,
            receipts_since,
            intakes,
            fired,
        })
    }

    /// The notifications of a region that waited for their time and of which every job was stored.
    async fn claims(&self, region: &Region) -> Result<Vec<(AppId, NotificationId, Fate)>, async_nats::Error> {
        let js = connect::jetstream_of(self.client.clone(), region);
        match js.get_stream(topology::PLANNED).await {
            Ok(_) => {}
            // A gateway of the version before makes none.
            Err(error) if matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.code() == 404) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error.into()),
        }
        let fates = self.all_of(region, subject::PLANNED_FATES).await?;
        let dues = self.all_of(region, subject::PLANNED_DUES).await?;
        let dues: HashSet<_> = dues
            .iter()
            .filter_map(|due| subject::parse_planned(&due.subject))
            .collect();
        let fired = fates.iter().filter_map(|found| {
            let (app, id) = subject::parse_planned(&found.subject)?;
            let fate: Fate = serde_json::from_slice(&found.payload).ok()?;
            let is_stored = fate.decision == Decision::Fired && fate.plan.jobs > 0;
            (is_stored && !dues.contains(&(app.clone(), id))).then_some((app, id, fate))
        });
        Ok(fired.collect())
    }

    /// All messages of the stream of plans of a region whose subject matches `filter`. It is a work queue, like that of schedules.
    async fn all_of(&self, region: &Region, filter: &str) -> Result<Vec<Found>, async_nats::Error> {
        let js = connect::jetstream(self.client.clone());
        let (mut all, mut next) = (Vec::new(), Some(1));
        while let Some(begin) = next {
            let domain = Domain::Region(region);
            let page = direct::from(&js, &domain, topology::PLANNED, filter, begin, SCHEDULES_PER_REQUEST).await?;
            next = direct::next_page(&page, SCHEDULES_PER_REQUEST);
            all.extend(page);
        }
        Ok(all)
    }

    /// Records what has become jobs when its time came.
    fn fired(&mut self, here: &Before) {
        let region = &here.region;
        for (app, id, fate) in &here.fired {
            let is_known = fate.at >= here.receipts_since && self.scope.reaches(fate.at);
            if is_known && self.scope.has(Some(app.as_str())) {
                let group = self.audit.group(app, region, region);
                self.audit.fired(*id, fate, group);
            }
        }
    }

    /// Reads what services of `app` published in a region; gateways have worked off everything up to `done`.
    async fn intake(&mut self, here: &Before, app: &AppId, done: u64) -> Result<(), Unreadable> {
        let region = &here.region;
        let regions = here.sources.len() + 1;
        self.each(region, topology::intake(app), ">".to_owned(), |audit, _, entry| {
            let is_waiting = entry.sequence > done;
            let whole = envelope::refused(app, entry.sequence, entry.stored_at, region, None);
            let is_forgotten = !is_waiting && entry.stored_at < here.receipts_since;
            if is_forgotten || audit.jobs.contains_key(whole.0.as_bytes()) {
                return;
            }
            audit.refusable(whole, is_waiting);
            let group = audit.group(app, region, region);
            for item in items(app, region, regions, entry, is_waiting) {
                audit.published(&item, group);
            }
        })
        .await
    }

    /// Reads the receipts of a region, and its copies of receipts of regions that are left out.
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
        let proofs = self.proofs.clone();
        let is_proven = |entry: &Entry| {
            let Some((prover, since)) = &proofs else { return true };
            let signature = || envelope::header(&entry.headers, envelope::SIGNATURE).unwrap_or_default();
            // The region itself could write anything about what it accepted.
            entry.stored_at < *since
                || !subject::is_receipt_for_another(&entry.subject)
                || prover.signed_message(signature(), &entry.subject, &entry.payload)
        };
        self.each(region, topology::RECEIPTS, filter, |audit, scope, entry| {
            if !scope.has(subject::app_of(&entry.subject)) {
                return;
            }
            match Batch::read(&entry.payload) {
                Ok(_) if !is_proven(entry) => {
                    let group = audit.group_of_nobody(entry, region);
                    audit.unproven.add(Uuid::from_u64_pair(0, entry.sequence), group, 1);
                }
                Ok(batch) => audit.batch(&batch, scope),
                // A service's acknowledgement that was sent to this subject, for example. It must not end the audit.
                Err(_) => audit.unreadable(entry, region),
            }
        })
        .await
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
                // `<delivery>:<attempt>`, or the job's id if the message was unreadable.
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
                    .map(|lane| (lane.channel, lane.class, Tier::of(&entry.subject)))
                    .map(|lane| here.done.get(&lane).copied().unwrap_or_default());
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

    /// Reads schedules without a consumer: a work-queue stream allows only one consumer.
    async fn schedules(&mut self, region: &Region) -> Result<(), async_nats::Error> {
        let key = (region.clone(), topology::SCHEDULE.to_owned(), ">".to_owned());
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
                // An unreadable message becomes a dead letter when it is due, under an id that is made only then.
                let ids = &self.audit.ids;
                match envelope::read(
                    subject,
                    &message.headers,
                    &message.payload,
                    message.stored_at,
                    region,
                    ids,
                ) {
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

    /// Passes the new messages of a stream to `take`.
    async fn each(
        &mut self,
        region: &Region,
        stream: impl Into<String>,
        filter: String,
        mut take: impl FnMut(&mut Audit, &Scope, &Entry),
    ) -> Result<(), Unreadable> {
        let js = connect::jetstream_of(self.client.clone(), region);
        let key = (region.clone(), stream.into(), filter);
        let start = match (self.next.get(&key), self.scope.since) {
            (Some(next), _) => Start::Sequence(*next),
            (None, Some(since)) => Start::Time(since),
            (None, None) => Start::Sequence(1),
        };
        let (audit, scope) = (&mut self.audit, self.scope);
        let last = follow::read(&js, &key.1, &key.2, start, |entry| take(audit, scope, entry)).await;
        if let Some(last) = last.map_err(|error: FollowError| unreadable(region, &error))? {
            self.next.insert(key, last + 1);
        }
        Ok(())
    }
}

/// The stream of this state, if it replaced a deleted one.
fn recreated(region: &Region, stream: &'static str, info: &Info) -> Option<Recreated> {
    let at = topology::recreated_at(&info.config)?;
    Some(Recreated {
        region: region.clone(),
        stream,
        at,
    })
}

/// Number of messages that a stream once held and holds no more.
fn removed(info: &Info) -> u64 {
    let before_first = info.config.first_sequence.unwrap_or(1).saturating_sub(1);
    info.state
        .last_sequence
        .saturating_sub(before_first + info.state.messages)
}

/// Receipts of notifications accepted before this time may be missing from a stream of receipts of this state.
fn receipts_since(info: &Info) -> Timestamp {
    let first = info.config.first_sequence.unwrap_or(1).max(1);
    let oldest = if info.state.first_sequence > first {
        Some(follow::timestamp(info.state.first_timestamp.unix_timestamp_nanos()))
    } else {
        topology::recreated_at(&info.config)
    };
    oldest.map_or(Timestamp::MIN, |oldest| oldest + ACCEPTANCE_RECORDED_WITHIN)
}

/// Repeats a request that a region did not answer: after a server was killed, the others first elect a leader.
async fn with_retries<T>(
    region: &Region,
    mut ask: impl AsyncFnMut() -> Result<T, async_nats::Error>,
) -> Result<T, Unreadable> {
    let mut attempts = 1;
    loop {
        match ask().await {
            Err(_) if attempts < follow::MAX_FRUITLESS_ATTEMPTS => attempts += 1,
            asked => return asked.map_err(|error| unreadable(region, &error)),
        }
        tokio::time::sleep(READ_AGAIN_AFTER).await;
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
    /// Counts a message in the stream of receipts that is none.
    fn unreadable(&mut self, entry: &Entry, region: &Region) {
        let group = self.group_of_nobody(entry, region);
        self.unreadable.add(Uuid::from_u64_pair(0, entry.sequence), group, 1);
    }

    /// The group of a message whose content does not count.
    fn group_of_nobody(&mut self, entry: &Entry, region: &Region) -> u32 {
        let app = subject::app_of(&entry.subject).and_then(|app| app.parse().ok());
        self.group(&app.unwrap_or_else(AppId::unknown), region, region)
    }

    fn batch(&mut self, batch: &Batch, scope: &Scope) {
        let group = self.group(&batch.app, &batch.origin, &batch.region);
        for accepted in &batch.accepted {
            if scope.reaches(accepted.at) && accepted.at >= self.receipts_since {
                self.accepted(accepted, group);
            }
        }
        for receipt in &batch.receipts {
            if let Some(expanded) = &receipt.expanded {
                let accepted_at = expanded.accepted_at();
                // Receipts of a slice's jobs exist in their own region alone.
                let is_complete = scope.reaches(accepted_at)
                    && accepted_at >= self.receipts_since
                    && self.read.contains_key(&batch.region);
                self.expanded(receipt, expanded, group, is_complete);
                continue;
            }
            // It was stored, and may have ended, a little before.
            let stored_at = receipt.at - ACCEPTANCE_RECORDED_WITHIN;
            if let Some(next) = receipt.next_job
                && scope.reaches(stored_at)
                && stored_at >= self.receipts_since
                && self.read.contains_key(&batch.region)
            {
                self.promised(receipt, next, group);
            }
            // A later attempt at an unknown job belongs to a notification that was accepted before `scope.since`.
            let earlier =
                scope.since.is_some() && receipt.attempt > 1 && !self.jobs.contains_key(receipt.job.0.as_bytes());
            if !earlier {
                self.receipt(receipt, group);
            }
        }
    }

    /// Takes in a message of work for `region`.
    fn work(&mut self, scope: &Scope, entry: &Entry, region: &Region, place: Place) {
        if !scope.has(subject::app_of(&entry.subject)) {
            return;
        }
        let ids = &self.ids;
        match envelope::read(
            &entry.subject,
            &entry.headers,
            &entry.payload,
            entry.stored_at,
            region,
            ids,
        ) {
            Ok(Work::Job(job)) if scope.reaches(entry.stored_at) => {
                let group = self.group(&job.app, &job.origin, region);
                self.stored(job.id, job.notification, group, place, part(&job));
            }
            Ok(Work::Broadcast(broadcast)) if scope.reaches(entry.stored_at) => {
                let group = self.group(&broadcast.app, &broadcast.origin, region);
                self.stored(broadcast.id, broadcast.notification, group, place, Part::Whole);
            }
            // An unreadable message is accepted work too, and must become a dead letter. In an outbox it has no id yet.
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

/// What a refused message or notification of an intake may name.
#[derive(Default, Deserialize)]
struct Named {
    event_id: Option<EventId>,
    #[serde(default)]
    to: To,
    plan: Option<Planned>,
    push: Option<IgnoredAny>,
    email: Option<IgnoredAny>,
    sms: Option<IgnoredAny>,
    webhook: Option<IgnoredAny>,
    notifications: Option<Vec<Box<RawValue>>>,
}

#[derive(Deserialize)]
struct Planned {
    mode: Mode,
}

impl Named {
    /// Number of jobs that it becomes at once for each recipient.
    fn jobs_each(&self) -> usize {
        let contents = [&self.push, &self.email, &self.sms, &self.webhook];
        match &self.plan {
            Some(Planned { mode: Mode::All }) => contents.into_iter().flatten().count().max(1),
            _ => 1,
        }
    }
}

#[derive(Default, Deserialize)]
struct To {
    recipients: Option<Vec<IgnoredAny>>,
    topic: Option<IgnoredAny>,
}

/// The notifications of a message of an intake.
fn items(app: &AppId, region: &Region, regions: usize, entry: &Entry, is_waiting: bool) -> Vec<Item> {
    let item = |index: Option<usize>, named: Named| {
        let each = named.jobs_each();
        let event = named.event_id.or_else(|| {
            let header = |name| envelope::header(&entry.headers, name);
            let text = index
                .is_none()
                .then(|| header("ce-id").or_else(|| header("Nats-Msg-Id")))??;
            text.parse().ok()
        });
        let jobs = named.to.recipients.map_or(1, |recipients| recipients.len());
        let to_topic = named.to.topic.is_some();
        Item {
            refused: envelope::refused(app, entry.sequence, entry.stored_at, region, index),
            notification: event.map(|event| NotificationId::of(app, &event)),
            jobs: u32::try_from(each * if to_topic { regions } else { jobs }).unwrap_or(u32::MAX),
            to_topic,
            is_waiting,
        }
    };
    let read = |json: &[u8]| serde_json::from_slice::<Named>(json).unwrap_or_default();
    let whole = read(&entry.payload);
    match whole.notifications {
        // A message that is refused as a whole has one letter.
        None => vec![item(None, whole)],
        Some(many) => {
            let many = many.iter().enumerate();
            many.map(|(index, json)| item(Some(index), read(json.get().as_bytes())))
                .collect()
        }
    }
}

fn part(job: &Job) -> Part {
    match job.slice {
        _ if job.step().is_some_and(|step| step > 0) => Part::Step,
        Some(_) => Part::Member,
        None => Part::Whole,
    }
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
    async fn a_silent_region_is_asked_three_times() {
        let region: Region = "eu".parse().unwrap();
        let asked = async |silent: u32| {
            let mut attempts = 0;
            let answered = with_retries(&region, async || {
                attempts += 1;
                if attempts > silent {
                    Ok(attempts)
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
