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
        self.worked_on(receipt, group, part);
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
    fn worked_on(&mut self, receipt: &Receipt, group: u32, part: Part) -> &mut Job {
        let unknown = Job {
            group: u32::MAX,
            worked_on: true,
            expanded: false,
            place: Place::Gone,
        };
        let key = receipt.job.0.into_bytes();
        let job = *self.jobs.entry(key).or_insert(unknown);
        if job.group == u32::MAX {
            self.notification(receipt.notification, group).knows(part);
        }
        let job = Job {
            group: if job.group == u32::MAX { group } else { job.group },
            worked_on: true,
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
        let job = self.worked_on(receipt, group, part);
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
mod tests {
    use super::*;
    use crate::{
        channel::Channel,
        id::EventId,
        receipt::{ExpandedSlice, Split},
    };

    fn id(number: u128) -> Uuid {
        // Ids are digests; small numbers would not be spread as those are.
        crate::digest::derive("test", &[&number.to_string()])
    }

    /// An audit of one region whose streams lost nothing, and its one group.
    fn audit() -> (Audit, u32) {
        let mut audit = Audit::default();
        let eu: Region = "eu".parse().unwrap();
        audit.read.insert(eu.clone(), Removed::default());
        let group = audit.group(&"shop".parse().unwrap(), &eu, &eu);
        (audit, group)
    }

    fn receipt(job: u128, address: u128, attempt: u32, state: State) -> Receipt {
        let (notification, job) = (NotificationId(id(job + 1000)), JobId(id(job)));
        Receipt {
            address: Some(AddressId(id(address + 2000))),
            attempt,
            ..Receipt::new(notification, job, Channel::Push, state, Timestamp::UNIX_EPOCH)
        }
    }

    fn stored(audit: &mut Audit, job: u128, place: Place) {
        audit.stored(JobId(id(job)), NotificationId(id(job + 1000)), 0, place, Part::Whole);
    }

    fn breaks(audit: &Audit) -> Vec<(Break, usize)> {
        let report = audit.report(&Scope::default());
        report.broken.iter().map(|broken| (broken.how, broken.count)).collect()
    }

    #[test]
    fn what_the_streams_hold_is_in_flight_and_what_nothing_holds_is_lost() {
        let (mut audit, group) = audit();
        stored(&mut audit, 1, Place::Lane);
        stored(&mut audit, 2, Place::Outbox);
        stored(&mut audit, 3, Place::Acknowledged);
        audit.receipt(&receipt(3, 1, 1, State::Delivered), group);
        audit.receipt(&receipt(3, 2, 1, State::Parked), group);
        audit.scheduled(JobId(id(3)), AddressId(id(2002)));
        let total = audit.report(&Scope::default()).total();
        assert!(total.holds() && !total.is_settled());
        assert_eq!((total.accepted, total.deliveries, total.in_flight), (3, 4, 3));

        stored(&mut audit, 4, Place::Acknowledged);
        stored(&mut audit, 5, Place::Lost);
        stored(&mut audit, 6, Place::Acknowledged);
        audit.receipt(&receipt(6, 1, 1, State::Parked), group);
        let expected = [(Break::Unanswered, 1), (Break::Strayed, 1), (Break::Abandoned, 1)];
        assert_eq!(breaks(&audit), expected);
        let total = audit.report(&Scope::default()).total();
        assert_eq!((total.accepted, total.deliveries, total.lost), (6, 7, 3));
    }

    #[test]
    fn a_promise_without_a_trace_is_named() {
        let (mut audit, group) = audit();
        let accepted = Accepted {
            notification: NotificationId(id(1001)),
            event_id: "e".parse().unwrap(),
            jobs: 2,
            topic: None,
            at: Timestamp::UNIX_EPOCH,
            trace: None,
        };
        audit.accepted(&accepted, group);
        audit.accepted(&accepted, group);
        audit.receipt(&receipt(1, 1, 1, State::Delivered), group);
        assert_eq!(breaks(&audit), [(Break::Vanished, 1)]);
        let report = audit.report(&Scope::default());
        assert_eq!(report.broken[0].named[0].id, id(1001));
        assert_eq!(report.total().accepted, 2);
    }

    #[test]
    fn two_final_receipts_are_a_contradiction_and_late_or_replayed_ones_are_not() {
        let (mut audit, group) = audit();
        stored(&mut audit, 1, Place::Acknowledged);
        audit.receipt(&receipt(1, 1, 1, State::Dead), group);
        audit.letter(DeliveryId::of(JobId(id(1)), AddressId(id(2001))).0, group);
        audit.receipt(&receipt(1, 1, 2, State::Delivered), group);
        audit.receipt(&receipt(1, 1, 1, State::Parked), group);
        assert_eq!(breaks(&audit), []);
        let total = audit.report(&Scope::default()).total();
        assert_eq!((total.by_state.get(&State::Delivered), total.deliveries), (Some(&1), 1));
        audit.receipt(&receipt(1, 1, 2, State::Delivered), group);
        assert_eq!(breaks(&audit), [(Break::Contradicted, 1)]);
        assert_eq!(audit.report(&Scope::default()).total().wrong, 1);
    }

    #[test]
    fn letters_and_receipts_of_them_belong_together_unless_letters_were_removed() {
        let (mut audit, group) = audit();
        stored(&mut audit, 1, Place::Acknowledged);
        audit.receipt(&receipt(1, 1, 1, State::Dead), group);
        audit.letter(id(7), group);
        assert_eq!(breaks(&audit), [(Break::LetterAlone, 1), (Break::LetterMissing, 1)]);
        audit.read.values_mut().for_each(|removed| removed.letters = 1);
        assert_eq!(breaks(&audit), [(Break::LetterAlone, 1)]);
    }

    #[test]
    fn a_broadcast_counts_as_what_it_became() {
        let (mut audit, group) = audit();
        let broadcast = JobId(id(1));
        let told = |job: JobId, expanded: &Expanded| Receipt {
            job,
            address: None,
            notification: NotificationId(id(1001)),
            expanded: Some(expanded.clone().into()),
            ..receipt(1, 1, 1, State::Expanded)
        };
        let accepted_at = Timestamp::UNIX_EPOCH;
        let split = Expanded::Slices(Split {
            slices: 3,
            members: 5,
            accepted_at,
        });
        let slice = |number, jobs, cancelled| {
            Expanded::Jobs(ExpandedSlice {
                broadcast,
                number,
                of: 3,
                jobs,
                by_state: BTreeMap::new(),
                cancelled,
                forwarded: 0,
                accepted_at,
            })
        };
        let member = |job| Receipt {
            notification: NotificationId(id(1001)),
            slice: Some(0),
            ..receipt(job, 1, 1, State::Delivered)
        };
        stored(&mut audit, 1, Place::Lane);
        assert_eq!(audit.report(&Scope::default()).total().in_flight, 1);
        audit.expanded(&told(broadcast, &split), &split, group, true);
        assert_eq!(breaks(&audit), [(Break::SliceLost, 3)]);
        for number in 0..3 {
            let slice = broadcast.slice(number);
            audit.stored(slice, NotificationId(id(1001)), group, Place::Scheduled, Part::Slice);
        }
        audit.receipt(&member(11), group);
        let total = audit.report(&Scope::default()).total();
        assert!(total.holds(), "{total}");
        assert_eq!((total.accepted, total.in_flight), (4, 3));
        // Nobody was found in the second, and the third was withdrawn but for one.
        for (number, jobs, cancelled) in [(0, 2, 0), (1, 0, 0), (2, 1, 2)] {
            let slice = slice(number, jobs, cancelled);
            audit.expanded(&told(broadcast.slice(number), &slice), &slice, group, true);
        }
        assert_eq!(
            breaks(&audit),
            [(Break::Vanished, 2)],
            "a slice says it became what nothing speaks of"
        );
        audit.receipt(&member(12), group);
        audit.receipt(&member(13), group);
        let total = audit.report(&Scope::default()).total();
        assert!(total.is_settled(), "{total}");
        assert_eq!((total.accepted, total.deliveries), (5, 5));
        let ends = [(State::Delivered, 3), (State::Cancelled, 2)];
        assert_eq!(total.by_state, ends.into());
    }

    #[test]
    fn who_is_named_and_a_member_has_one_job_for_both() {
        for named_first in [true, false] {
            let (mut audit, group) = audit();
            let notification = NotificationId(id(1001));
            let part = if named_first { Part::Whole } else { Part::Member };
            for topic in [None, Some("news".parse().unwrap())] {
                let accepted = Accepted {
                    notification,
                    event_id: EventId::fresh(),
                    jobs: 1,
                    topic,
                    at: Timestamp::UNIX_EPOCH,
                    trace: None,
                };
                audit.accepted(&accepted, group);
            }
            let of = |job: u128, part| Receipt {
                notification,
                slice: (part == Part::Member).then_some(0),
                ..receipt(job, 1, 1, State::Delivered)
            };
            audit.receipt(&of(11, part), group);
            audit.stored(JobId(id(11)), notification, group, Place::Acknowledged, Part::Whole);
            let accepted_at = Timestamp::UNIX_EPOCH;
            let split = Split {
                slices: 1,
                members: 2,
                accepted_at,
            };
            let broadcast = JobId(id(1));
            let slice = ExpandedSlice {
                broadcast,
                number: 0,
                of: 1,
                jobs: 2,
                by_state: BTreeMap::new(),
                cancelled: 0,
                forwarded: 0,
                accepted_at,
            };
            for (job, expanded) in [
                (broadcast, Expanded::Slices(split)),
                (broadcast.slice(0), Expanded::Jobs(slice)),
            ] {
                let told = Receipt {
                    job,
                    address: None,
                    ..of(1, Part::Whole)
                };
                audit.expanded(&told, &expanded, group, true);
            }
            assert_eq!(breaks(&audit), [(Break::Vanished, 1)], "the other member has nothing");
            audit.receipt(&of(12, Part::Member), group);
            assert_eq!(breaks(&audit), [], "named first: {named_first}");
        }
    }

    #[test]
    fn receipts_of_what_nothing_holds_are_excused_only_by_what_was_trimmed() {
        let (mut audit, group) = audit();
        audit.receipt(&receipt(1, 1, 1, State::Delivered), group);
        assert_eq!(breaks(&audit), [(Break::NeverAccepted, 1)]);
        audit.read.values_mut().for_each(|removed| removed.work = 1);
        assert_eq!(breaks(&audit), []);
    }
}
