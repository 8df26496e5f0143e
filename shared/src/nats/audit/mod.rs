//! The ledger equation, computed from the streams: accepted = deliveries in a final state + deliveries in flight.
//!
//! A broadcast and its slices are not deliveries; they stand for the jobs that they become. While a stream holds one, it
//! counts as one job in flight; later its receipt states how many jobs it became, and each of them must be found.
//!
//! Only ids of 16 bytes are kept in memory: for a million notifications to one address each, a process needs less than
//! 300 MB at its peak.

mod read;
mod report;

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use uuid::Uuid;

pub use self::{
    read::{Unreadable, read},
    report::{Break, Broken, Equation, InFlight, Report, Row},
};
use crate::{
    id::{AddressId, AppId, DeliveryId, JobId, NotificationId, Region},
    id_key::IdKey,
    nats::{
        planned::Fate,
        topology::{DEAD, NOTIFY, OUTBOX, SCHEDULE},
    },
    proof::Prover,
    receipt::{Accepted, Expanded, REFUSED, Receipt, State},
};

/// A worker that has a job when its stream is deleted reports it within this time.
const WORK_ENDS_WITHIN: SignedDuration = SignedDuration::from_mins(1);

/// Limits an audit to a part of the notifications.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Only notifications of this app.
    pub app: Option<AppId>,
    /// Only notifications accepted, or first worked on, at this time or later.
    pub since: Option<Timestamp>,
}

/// What an audit needs of the mesh key.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The mesh's key of ids, by which messages are recognised as jobs.
    pub ids: IdKey,
    /// What checks the signatures of receipts, and the time from which on they must have one; `None` if none is required, or
    /// the mesh key is not known.
    pub proofs: Option<(Prover, Timestamp)>,
}

impl From<IdKey> for Keys {
    fn from(ids: IdKey) -> Self {
        Self { ids, proofs: None }
    }
}

/// A UUID as bytes: alignment to 16 bytes would make the maps half as large again.
type Id = [u8; 16];

/// Maximum number of ids that a report names for each way in which the equation is broken; all are counted.
const MAX_NAMED_IDS: usize = 20;

/// What was read from the streams so far. Several readings may add the same message twice, but not the same receipt.
#[derive(Debug)]
struct Audit {
    /// The mesh's key of ids.
    ids: IdKey,
    groups: Vec<Group>,
    group_of: HashMap<(AppId, Region, Region), u32>,
    jobs: HashMap<Id, Job>,
    notifications: HashMap<Id, Notification>,
    deliveries: HashMap<Id, DeliveryState>,
    /// Deliveries whose last receipt is not final.
    parked: HashMap<Id, Parked>,
    /// Deliveries that a schedule brings back.
    scheduled: HashSet<Id>,
    /// Messages of intakes, or notifications of them, that name no event id, and whether they still wait there.
    unread: HashMap<Id, (u32, bool)>,
    /// The ids under which refusals would be recorded of what waits in intakes. A gateway that ends between a letter and its
    /// receipt leaves the letter alone until the message is delivered again.
    refusing: HashSet<Id>,
    /// Deliveries that must have a dead letter.
    dead: HashMap<Uuid, (JobId, u32)>,
    /// Deliveries whose dead letter was in a stream that was deleted.
    buried: HashSet<Uuid>,
    letters: HashMap<Uuid, u32>,
    /// Number of messages of work that repeat a job.
    repeated: u64,
    contradicted: Faults,
    unreadable: Faults,
    /// Messages in the streams of receipts about what another region accepted, without its signature.
    unproven: Faults,
    /// Jobs that may have been in a stream of work that was deleted.
    deleted: HashSet<Id>,
    /// Notifications whose record of acceptance and work may both have been in streams that were deleted.
    forgotten: HashSet<Id>,
    /// The streams that replaced deleted ones.
    recreated: Vec<Recreated>,
    /// Receipts of notifications accepted before this time may have expired.
    receipts_since: Timestamp,
    /// The regions whose streams were read, with the messages that these no longer hold.
    read: BTreeMap<Region, Removed>,
}

/// The jobs of one app that one region accepted and one region, another or the same, works on.
#[derive(Debug)]
struct Group {
    app: AppId,
    origin: Region,
    region: Region,
    by_state: BTreeMap<State, usize>,
    /// Members of topics whose jobs were never made, because the notification was withdrawn first.
    never_made: usize,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    group: u32,
    /// It has receipts, so its first pass through the pipeline is complete.
    worked_on: bool,
    /// A broadcast or a slice, which became other work.
    expanded: bool,
    /// A receipt states that it waits as a whole. This matters until it is worked on.
    deferred: bool,
    place: Place,
}

/// Where the streams of work hold a job. Of two places the later in this order counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// In no stream: it is known from receipts alone.
    Gone,
    /// In no stream yet, but a broadcast was split into it.
    Promised,
    /// In no stream yet, but the receipt of the step before it says that it was stored.
    NextStep,
    /// It was accepted before the oldest receipt that still exists.
    Forgotten,
    /// In an outbox from which its region has already copied everything.
    Lost,
    /// In an outbox, on its way.
    Outbox,
    /// In the stream of work; its lane has acknowledged it.
    Acknowledged,
    /// In the stream of work; its lane has not acknowledged it.
    Lane,
    /// In the stream of schedules.
    Scheduled,
}

#[derive(Debug, Clone, Copy)]
struct Notification {
    group: u32,
    /// It was accepted before a stream of work was deleted.
    deleted: bool,
    /// Jobs for recipients that a gateway recorded as stored; 0 without a record.
    named: u32,
    /// Broadcasts that a gateway recorded as stored, one per region.
    regions: u32,
    /// Jobs that any stream mentions, except those of slices.
    known: u32,
    /// Jobs that slices became, by their receipts.
    expanded: u32,
    /// Jobs of slices that any stream mentions.
    members: u32,
    /// Jobs that the streams of work hold.
    stored: u32,
    /// Jobs that a message of an intake becomes, which gateways have not worked off.
    waiting: u32,
}

impl Notification {
    fn count(&mut self, part: Part) {
        match part {
            Part::Whole => self.known += 1,
            Part::Slice | Part::Step | Part::Refused => {}
            Part::Member => self.members += 1,
        }
    }

    /// Jobs and broadcasts that a gateway recorded as stored.
    const fn promised(&self) -> u32 {
        self.named + self.regions
    }

    /// Jobs that only an intake holds.
    fn in_intake(&self) -> u32 {
        self.waiting.saturating_sub(self.known.max(self.promised()))
    }

    /// Jobs that only the records of gateways and slices mention.
    fn missing(&self) -> u32 {
        let wholes = self.promised().saturating_sub(self.known);
        let members = self.expanded.saturating_sub(self.members);
        // A recipient that was named and is also a member, under one event id, has one job for both.
        (wholes + members).saturating_sub(self.named.min(self.expanded))
    }
}

/// One notification of a message in an intake.
#[derive(Debug, Clone, Copy)]
struct Item {
    /// The id under which its refusal would be recorded.
    refused: JobId,
    /// The notification, if it names an event id.
    notification: Option<NotificationId>,
    /// Jobs that it becomes, as far as it tells.
    jobs: u32,
    to_topic: bool,
    /// Gateways have not worked it off.
    is_waiting: bool,
}

/// How a piece of work belongs to its notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Stored by a gateway: a job, or a broadcast in one region.
    Whole,
    /// A slice of a broadcast.
    Slice,
    /// A job of a slice.
    Member,
    /// A job of a later step of a plan. No gateway counts it: the step before promises it.
    Step,
    /// What a service published and a gateway refused: it became no job.
    Refused,
}

#[derive(Debug, Clone, Copy)]
struct DeliveryState {
    group: u32,
    attempt: u16,
    state: State,
}

#[derive(Debug, Clone, Copy)]
struct Parked {
    job: JobId,
    group: u32,
    /// It may have been in a stream of schedules that was deleted.
    deleted: bool,
}

/// Numbers of messages that the streams of a region once held and hold no more.
#[derive(Debug, Clone, Copy, Default)]
struct Removed {
    /// Messages of work.
    work: u64,
    /// Dead letters.
    letters: u64,
}

/// A stream that replaced a deleted one. What the former held is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recreated {
    /// The region.
    pub region: Region,
    /// The stream's name.
    pub stream: &'static str,
    /// When it was created.
    pub at: Timestamp,
}

impl Recreated {
    fn held_work(&self) -> bool {
        [NOTIFY, OUTBOX, SCHEDULE].contains(&self.stream)
    }
}

/// A number of faults, with the ids and groups of the first ones.
#[derive(Debug, Default, Clone)]
struct Faults {
    count: usize,
    ids: Vec<(Uuid, u32)>,
}

impl Faults {
    fn add(&mut self, id: Uuid, group: u32, count: usize) {
        self.count += count;
        if self.ids.len() < MAX_NAMED_IDS {
            self.ids.push((id, group));
        }
    }
}

impl Audit {
    fn new(ids: IdKey) -> Self {
        Self {
            ids,
            groups: Vec::new(),
            group_of: HashMap::new(),
            jobs: HashMap::new(),
            notifications: HashMap::new(),
            deliveries: HashMap::new(),
            parked: HashMap::new(),
            scheduled: HashSet::new(),
            unread: HashMap::new(),
            refusing: HashSet::new(),
            dead: HashMap::new(),
            buried: HashSet::new(),
            letters: HashMap::new(),
            repeated: 0,
            contradicted: Faults::default(),
            unreadable: Faults::default(),
            unproven: Faults::default(),
            deleted: HashSet::new(),
            forgotten: HashSet::new(),
            recreated: Vec::new(),
            receipts_since: Timestamp::default(),
            read: BTreeMap::new(),
        }
    }

    fn group(&mut self, app: &AppId, origin: &Region, region: &Region) -> u32 {
        let key = (app.clone(), origin.clone(), region.clone());
        if let Some(&group) = self.group_of.get(&key) {
            return group;
        }
        let group = u32::try_from(self.groups.len()).expect("fewer groups than 2^32");
        self.groups.push(Group {
            app: app.clone(),
            origin: origin.clone(),
            region: region.clone(),
            by_state: BTreeMap::new(),
            never_made: 0,
        });
        self.group_of.insert(key, group);
        group
    }

    fn notification(&mut self, id: NotificationId, group: u32) -> &mut Notification {
        let new = Notification {
            group,
            deleted: false,
            named: 0,
            regions: 0,
            known: 0,
            expanded: 0,
            members: 0,
            stored: 0,
            waiting: 0,
        };
        self.notifications.entry(id.0.into_bytes()).or_insert(new)
    }

    /// Records that a stream of work holds, or held, a job.
    fn stored(&mut self, id: JobId, notification: NotificationId, group: u32, place: Place, part: Part) {
        let job = self.jobs.get(&id.0.into_bytes()).copied();
        let before = job.map_or(Place::Gone, |job| job.place);
        if before == Place::Gone {
            let notification = self.notification(notification, group);
            notification.stored += u32::from(part == Part::Whole);
            if job.is_none() {
                notification.count(part);
            }
        }
        let mut job = job.unwrap_or(Job {
            group,
            worked_on: false,
            expanded: false,
            deferred: false,
            place,
        });
        job.place = before.max(place);
        self.jobs.insert(id.0.into_bytes(), job);
        let in_notify = |place| matches!(place, Place::Lane | Place::Acknowledged);
        self.repeated += u64::from(in_notify(before) && in_notify(place));
    }

    /// Records that a schedule will bring back one delivery.
    fn scheduled(&mut self, job: JobId, address: AddressId) {
        self.scheduled.insert(delivery(job, Some(address)));
    }

    fn accepted(&mut self, accepted: &Accepted, group: u32) {
        let deleted = self.is_before_deletion(accepted.at, Recreated::held_work);
        let notification = self.notification(accepted.notification, group);
        notification.deleted |= deleted;
        let promised = match accepted.topic {
            None => &mut notification.named,
            Some(_) => &mut notification.regions,
        };
        // A repeated request is recorded once more.
        *promised = accepted.jobs.max(*promised);
    }

    /// Records what one notification of a message in an intake becomes: `jobs` jobs, or a dead letter called `refused`.
    fn published(&mut self, item: &Item, group: u32) {
        if self.jobs.contains_key(item.refused.0.as_bytes()) {
            return;
        }
        self.refusable(item.refused, item.is_waiting);
        let Some(id) = item.notification else {
            // Only a letter can come of it.
            self.unread
                .insert(item.refused.0.into_bytes(), (group, item.is_waiting));
            return;
        };
        let notification = self.notification(id, group);
        let promised = match (item.is_waiting, item.to_topic) {
            (true, _) => &mut notification.waiting,
            (false, false) => &mut notification.named,
            (false, true) => &mut notification.regions,
        };
        *promised = item.jobs.max(*promised);
    }

    /// Records that a notification that waited for its time has become jobs.
    fn fired(&mut self, id: NotificationId, fate: &Fate, group: u32) {
        let deleted = self.is_before_deletion(fate.at, Recreated::held_work);
        let notification = self.notification(id, group);
        notification.deleted |= deleted;
        let promised = if fate.to_topic {
            &mut notification.regions
        } else {
            &mut notification.named
        };
        *promised = fate.plan.jobs.max(*promised);
    }

    /// Records whether the refusal of a message of an intake, or of a notification in it, may still be on its way.
    fn refusable(&mut self, refused: JobId, is_waiting: bool) {
        if is_waiting {
            self.refusing.insert(refused.0.into_bytes());
        } else {
            self.refusing.remove(refused.0.as_bytes());
        }
    }

    fn receipt(&mut self, receipt: &Receipt, group: u32) {
        // An intent to send is not an outcome.
        if receipt.state == State::Attempting {
            return;
        }
        let part = match receipt.slice {
            _ if receipt.reason.as_deref() == Some(REFUSED) => Part::Refused,
            _ if receipt.step.is_some_and(|step| step > 0) => Part::Step,
            Some(_) => Part::Member,
            None => Part::Whole,
        };
        let deleted = self.is_before_deletion(receipt.at, Recreated::held_work);
        if receipt.state == State::Deferred {
            self.mentioned(receipt, group, part).deferred = true;
            if deleted {
                self.deleted.insert(receipt.job.0.into_bytes());
            }
            return;
        }
        self.mentioned(receipt, group, part).worked_on = true;
        let key = delivery(receipt.job, receipt.address);
        let (state, attempt) = (receipt.state, u16::try_from(receipt.attempt).unwrap_or(u16::MAX));
        let before = self.deliveries.get(&key).filter(|one| one.state.is_final());
        if let Some(&DeliveryState {
            state: before,
            attempt: last,
            group: counted,
        }) = before
        {
            // A dead letter may be replayed, and the outcome of that counts. No other receipt follows a final state;
            // one that is not final may arrive late.
            if !before.is_replayable() || last == attempt {
                if state.is_final() {
                    self.contradicted.add(receipt.job.0, group, 1);
                }
                return;
            }
            *self.groups[counted as usize].by_state.entry(before).or_default() -= 1;
        }
        self.deliveries.insert(key, DeliveryState { group, attempt, state });
        if state.is_final() {
            self.parked.remove(&key);
            *self.groups[group as usize].by_state.entry(state).or_default() += 1;
        } else {
            let job = receipt.job;
            self.parked.insert(key, Parked { job, group, deleted });
        }
        if state.is_replayable() {
            // The same id that the dead letter has.
            let id = receipt
                .address
                .map_or(receipt.job.0, |address| DeliveryId::of(receipt.job, address).0);
            self.dead.insert(id, (receipt.job, group));
            if self.is_before_deletion(receipt.at, |recreated| recreated.stream == DEAD) {
                self.buried.insert(id);
            }
        }
    }

    /// Records that the job of the next step of a plan was stored because of an outcome. It must be found.
    fn promised(&mut self, receipt: &Receipt, next: JobId, group: u32) {
        if self.is_before_deletion(receipt.at, Recreated::held_work) {
            self.deleted.insert(next.0.into_bytes());
        }
        self.jobs.entry(next.0.into_bytes()).or_insert(Job {
            group,
            worked_on: false,
            expanded: false,
            deferred: false,
            place: Place::NextStep,
        });
    }

    /// Records that a receipt mentions a job.
    fn mentioned(&mut self, receipt: &Receipt, group: u32, part: Part) -> &mut Job {
        let unknown = Job {
            group: u32::MAX,
            worked_on: false,
            expanded: false,
            deferred: false,
            place: Place::Gone,
        };
        // What was in progress at the deletion ends within this time.
        if self.is_before_deletion(receipt.at - WORK_ENDS_WITHIN, Recreated::held_work) {
            self.forgotten.insert(receipt.notification.0.into_bytes());
        }
        let key = receipt.job.0.into_bytes();
        let job = *self.jobs.entry(key).or_insert(unknown);
        if job.group == u32::MAX {
            self.notification(receipt.notification, group).count(part);
        }
        let job = Job {
            group: if job.group == u32::MAX { group } else { job.group },
            ..job
        };
        self.jobs.entry(key).insert_entry(job).into_mut()
    }

    /// Records that a broadcast or a slice became other work. If no receipt of that work can have expired
    /// (`is_complete`), all of it must be found.
    fn expanded(&mut self, receipt: &Receipt, expanded: &Expanded, group: u32, is_complete: bool) {
        let part = match expanded {
            Expanded::Slices(_) => Part::Whole,
            Expanded::Jobs(_) => Part::Slice,
        };
        let job = self.mentioned(receipt, group, part);
        job.worked_on = true;
        if std::mem::replace(&mut job.expanded, true) {
            self.contradicted.add(receipt.job.0, group, 1);
            return;
        }
        match expanded {
            Expanded::Slices(split) if is_complete => {
                let deleted = self.is_before_deletion(receipt.at, Recreated::held_work);
                for number in 0..split.slices {
                    let slice = receipt.job.slice(number).0.into_bytes();
                    if deleted {
                        self.deleted.insert(slice);
                    }
                    self.jobs.entry(slice).or_insert(Job {
                        group,
                        worked_on: false,
                        expanded: false,
                        deferred: false,
                        place: Place::Promised,
                    });
                }
            }
            Expanded::Jobs(slice) => {
                let here = &mut self.groups[group as usize];
                here.never_made += slice.cancelled as usize;
                *here.by_state.entry(State::Cancelled).or_default() += slice.cancelled as usize;
                if is_complete {
                    self.notification(receipt.notification, group).expanded += slice.jobs;
                }
            }
            Expanded::Slices(_) => {}
        }
    }

    /// Whether `at` is earlier than the creation of one of those streams that replaced deleted ones.
    fn is_before_deletion(&self, at: Timestamp, which: impl Fn(&Recreated) -> bool) -> bool {
        self.recreated
            .iter()
            .any(|recreated| which(recreated) && at < recreated.at)
    }

    fn letter(&mut self, id: Uuid, group: u32) {
        self.letters.insert(id, group);
    }
}

/// The key of a delivery. Both ids are digests, so their combination is as unlikely to collide as a digest.
fn delivery(job: JobId, address: Option<AddressId>) -> Id {
    let address = address.map_or(0, |address| address.0.as_u128().rotate_left(1));
    (job.0.as_u128() ^ address).to_be_bytes()
}

#[cfg(test)]
mod tests;
