//! The ledger equation, computed from the streams: what was accepted = what every delivery came to + what is in flight.
//!
//! A broadcast and its slices are no deliveries; they stand for the jobs they become. While one is held it counts as one job
//! in flight; then it says how many there are, and each must be found.
//!
//! Only ids of 16 bytes are kept in memory: a process that reads a million notifications to one address each needs less than
//! 300 MB at its peak.

mod read;
mod report;

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use uuid::Uuid;

pub use self::{
    read::{Unreadable, read},
    report::{Break, Broken, Equation, InFlight, Report, Row},
};
use crate::{
    id::{AddressId, AppId, DeliveryId, JobId, NotificationId, Region},
    receipt::{Accepted, Expanded, Receipt, State},
};

/// What is looked at.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Only this app.
    pub app: Option<AppId>,
    /// Only what was accepted, or first worked on, since then.
    pub since: Option<Timestamp>,
}

/// Uuids as bytes: a map aligned to 16 bytes would be half as large again.
type Id = [u8; 16];

/// A few of those that break the equation are named; all are counted.
const NAMED: usize = 20;

/// What the streams said so far. May be told the same thing twice by several readings, but no receipt.
#[derive(Debug, Default)]
struct Audit {
    groups: Vec<Group>,
    group_of: HashMap<(AppId, Region, Region), u32>,
    jobs: HashMap<Id, Job>,
    notifications: HashMap<Id, Notification>,
    deliveries: HashMap<Id, Standing>,
    /// Deliveries whose last receipt is not final.
    parked: HashMap<Id, Parked>,
    /// Deliveries that a schedule brings back.
    scheduled: HashSet<Id>,
    dead: HashMap<Uuid, (JobId, u32)>,
    letters: HashMap<Uuid, u32>,
    /// Messages of work that repeat a job.
    repeated: u64,
    contradicted: Named,
    /// Receipts of what was accepted before are not all there.
    remembered: Timestamp,
    /// By region whose streams were read.
    read: BTreeMap<Region, Removed>,
}

/// What was accepted for one app in one region to be worked on in another, or the same.
#[derive(Debug)]
struct Group {
    app: AppId,
    origin: Region,
    region: Region,
    by_state: BTreeMap<State, usize>,
    /// Members of topics that a withdrawal spared: jobs that were never made.
    spared: usize,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    group: u32,
    /// Has receipts, so the first pass over it is complete.
    worked_on: bool,
    /// A broadcast or a slice, which became other work.
    expanded: bool,
    /// A receipt states that it waits as a whole. This matters until it is worked on.
    deferred: bool,
    place: Place,
}

/// Where the streams of work have a job; the later one says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Nowhere: it is known from receipts alone.
    Gone,
    /// Nowhere yet, but a broadcast was split into it.
    Promised,
    /// It was accepted before the oldest receipt that is left.
    Forgotten,
    /// In an outbox, and its region has taken everything from there.
    Lost,
    /// In an outbox, on its way.
    Outbox,
    /// In the stream of work, behind what its lane has acknowledged.
    Acknowledged,
    /// In the stream of work.
    Lane,
    /// It is scheduled as a whole.
    Scheduled,
}

#[derive(Debug, Clone, Copy)]
struct Notification {
    group: u32,
    /// Jobs for recipients that a gateway says it stored; 0 without its record.
    named: u32,
    /// Broadcasts that it says it stored, one a region.
    regions: u32,
    /// Jobs that any stream speaks of, but for those that came out of slices.
    known: u32,
    /// Jobs that slices say they became.
    expanded: u32,
    /// Jobs that came out of slices.
    members: u32,
    /// Jobs that the streams of work hold.
    stored: u32,
}

impl Notification {
    fn knows(&mut self, part: Part) {
        match part {
            Part::Whole => self.known += 1,
            Part::Slice => {}
            Part::Member => self.members += 1,
        }
    }

    /// Jobs that a gateway says it stored.
    const fn promised(&self) -> u32 {
        self.named + self.regions
    }

    /// Jobs that gateways and slices speak of, and nothing else.
    fn missing(&self) -> u32 {
        let wholes = self.promised().saturating_sub(self.known);
        let members = self.expanded.saturating_sub(self.members);
        // Who was named and is a member too, under one event id, has one job for both.
        (wholes + members).saturating_sub(self.named.min(self.expanded))
    }
}

/// What a piece of work is of its notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Something that a gateway stored: a job, or a broadcast in one region.
    Whole,
    /// A slice of a broadcast.
    Slice,
    /// A job that came out of a slice.
    Member,
}

#[derive(Debug, Clone, Copy)]
struct Standing {
    group: u32,
    attempt: u16,
    state: State,
}

#[derive(Debug, Clone, Copy)]
struct Parked {
    job: JobId,
    group: u32,
}

/// How many messages the streams of a region have no more.
#[derive(Debug, Clone, Copy, Default)]
struct Removed {
    /// Messages of work.
    work: u64,
    /// Dead letters.
    letters: u64,
}

/// How many, and the first of them by name.
#[derive(Debug, Default, Clone)]
struct Named {
    count: usize,
    names: Vec<(Uuid, u32)>,
}

impl Named {
    fn add(&mut self, id: Uuid, group: u32, count: usize) {
        self.count += count;
        if self.names.len() < NAMED {
            self.names.push((id, group));
        }
    }
}

impl Audit {
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
            spared: 0,
        });
        self.group_of.insert(key, group);
        group
    }

    fn notification(&mut self, id: NotificationId, group: u32) -> &mut Notification {
        let new = Notification {
            group,
            named: 0,
            regions: 0,
            known: 0,
            expanded: 0,
            members: 0,
            stored: 0,
        };
        self.notifications.entry(id.0.into_bytes()).or_insert(new)
    }

    /// A stream of work has a job, or had it: where it now is at the latest.
    fn stored(&mut self, id: JobId, notification: NotificationId, group: u32, place: Place, part: Part) {
        let job = self.jobs.get(&id.0.into_bytes()).copied();
        let before = job.map_or(Place::Gone, |job| job.place);
        if before == Place::Gone {
            let notification = self.notification(notification, group);
            notification.stored += u32::from(part == Part::Whole);
            if job.is_none() {
                notification.knows(part);
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

    /// A schedule brings back one delivery.
    fn scheduled(&mut self, job: JobId, address: AddressId) {
        self.scheduled.insert(delivery(job, Some(address)));
    }

    fn accepted(&mut self, accepted: &Accepted, group: u32) {
        let notification = self.notification(accepted.notification, group);
        let promised = match accepted.topic {
            None => &mut notification.named,
            Some(_) => &mut notification.regions,
        };
        // A repeated request is recorded again.
        *promised = accepted.jobs.max(*promised);
    }

    fn receipt(&mut self, receipt: &Receipt, group: u32) {
        // That something was about to be sent says nothing of what came of it.
        if receipt.state == State::Attempting {
            return;
        }
        let part = receipt.slice.map_or(Part::Whole, |_| Part::Member);
        if receipt.state == State::Deferred {
            self.mentioned(receipt, group, part).deferred = true;
            return;
        }
        self.mentioned(receipt, group, part).worked_on = true;
        let key = delivery(receipt.job, receipt.address);
        let (state, attempt) = (receipt.state, u16::try_from(receipt.attempt).unwrap_or(u16::MAX));
        let before = self.deliveries.get(&key).filter(|one| one.state.is_final());
        if let Some(&Standing {
            state: before,
            attempt: last,
            group: counted,
        }) = before
        {
            // A dead letter may be replayed; what comes of that counts. Nothing else comes after a final state, and what
            // is not final may arrive late.
            if !before.is_replayable() || last == attempt {
                if state.is_final() {
                    self.contradicted.add(receipt.job.0, group, 1);
                }
                return;
            }
            *self.groups[counted as usize].by_state.entry(before).or_default() -= 1;
        }
        self.deliveries.insert(key, Standing { group, attempt, state });
        if state.is_final() {
            self.parked.remove(&key);
            *self.groups[group as usize].by_state.entry(state).or_default() += 1;
        } else {
            let job = receipt.job;
            self.parked.insert(key, Parked { job, group });
        }
        if state.is_replayable() {
            // The same names that the dead letters have.
            let id = receipt
                .address
                .map_or(receipt.job.0, |address| DeliveryId::of(receipt.job, address).0);
            self.dead.insert(id, (receipt.job, group));
        }
    }

    /// There is a receipt of a job.
    fn mentioned(&mut self, receipt: &Receipt, group: u32, part: Part) -> &mut Job {
        let unknown = Job {
            group: u32::MAX,
            worked_on: false,
            expanded: false,
            deferred: false,
            place: Place::Gone,
        };
        let key = receipt.job.0.into_bytes();
        let job = *self.jobs.entry(key).or_insert(unknown);
        if job.group == u32::MAX {
            self.notification(receipt.notification, group).knows(part);
        }
        let job = Job {
            group: if job.group == u32::MAX { group } else { job.group },
            ..job
        };
        self.jobs.entry(key).insert_entry(job).into_mut()
    }

    /// A broadcast or a slice became other work. If all of that is remembered it must be found.
    fn expanded(&mut self, receipt: &Receipt, expanded: &Expanded, group: u32, is_remembered: bool) {
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
            Expanded::Slices(split) if is_remembered => {
                for number in 0..split.slices {
                    let slice = receipt.job.slice(number).0.into_bytes();
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
                here.spared += slice.cancelled as usize;
                *here.by_state.entry(State::Cancelled).or_default() += slice.cancelled as usize;
                if is_remembered {
                    self.notification(receipt.notification, group).expanded += slice.jobs;
                }
            }
            Expanded::Slices(_) => {}
        }
    }

    fn letter(&mut self, id: Uuid, group: u32) {
        self.letters.insert(id, group);
    }
}

/// Both are digests, so their sum is as good as one of both.
fn delivery(job: JobId, address: Option<AddressId>) -> Id {
    let address = address.map_or(0, |address| address.0.as_u128().rotate_left(1));
    (job.0.as_u128() ^ address).to_be_bytes()
}

#[cfg(test)]
mod tests;
