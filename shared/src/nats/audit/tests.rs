//! Short histories of one region, and the equation after each.

use super::*;
use crate::{
    channel::Channel,
    id::EventId,
    nats::planned::{Decision, Plan},
    receipt::{ExpandedSlice, Split},
};

fn id(number: u128) -> Uuid {
    // Ids are digests; small numbers would not be distributed like them.
    crate::digest::derive("test", &[&number.to_string()])
}

/// An audit of one region whose streams removed nothing, and its only group.
fn audit() -> (Audit, u32) {
    let mut audit = Audit::new(IdKey::unkeyed());
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
fn a_job_in_a_stream_is_in_flight_and_one_in_no_stream_is_lost() {
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
fn a_deferred_job_is_in_flight_while_something_will_bring_it() {
    let (mut audit, group) = audit();
    let deferred = |job| Receipt {
        address: None,
        ..receipt(job, 1, 1, State::Deferred)
    };
    // In its lane, as the worker has not acknowledged it; scheduled; scheduled, and trimmed from its lane.
    stored(&mut audit, 1, Place::Lane);
    stored(&mut audit, 2, Place::Acknowledged);
    for job in [1, 2, 3] {
        audit.receipt(&deferred(job), group);
        audit.receipt(&deferred(job), group);
    }
    stored(&mut audit, 2, Place::Scheduled);
    stored(&mut audit, 3, Place::Scheduled);
    let report = audit.report(&Scope::default());
    let total = report.total();
    assert!(report.holds() && !total.is_settled());
    assert_eq!((total.accepted, total.deliveries, total.in_flight), (3, 3, 3));
    assert_eq!((report.in_flight.lanes, report.in_flight.deferred), (1, 2));
    assert!(total.by_state.is_empty());

    // Its attempt was made, and the receipt of the wait is late.
    audit.receipt(&receipt(2, 1, 1, State::Delivered), group);
    audit.receipt(&receipt(2, 2, 1, State::Delivered), group);
    audit.receipt(&deferred(2), group);
    let total = audit.report(&Scope::default()).total();
    assert_eq!((total.accepted, total.deliveries, total.in_flight), (3, 4, 2));

    stored(&mut audit, 4, Place::Acknowledged);
    audit.receipt(&deferred(4), group);
    audit.receipt(&deferred(5), group);
    // The last was trimmed from its lane.
    audit.read.values_mut().for_each(|removed| removed.work = 1);
    assert_eq!(breaks(&audit), [(Break::Abandoned, 2)]);
    let total = audit.report(&Scope::default()).total();
    assert_eq!((total.accepted, total.lost), (5, 2));
}

#[test]
fn an_accepted_job_that_no_stream_mentions_is_reported() {
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
fn two_final_receipts_contradict_each_other_unless_late_or_replayed() {
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
fn every_letter_needs_a_receipt_and_every_receipt_a_letter_unless_letters_were_removed() {
    let (mut audit, group) = audit();
    stored(&mut audit, 1, Place::Acknowledged);
    audit.receipt(&receipt(1, 1, 1, State::Dead), group);
    audit.letter(id(7), group);
    assert_eq!(breaks(&audit), [(Break::LetterAlone, 1), (Break::LetterMissing, 1)]);
    audit.read.values_mut().for_each(|removed| removed.letters = 1);
    assert_eq!(breaks(&audit), [(Break::LetterAlone, 1)]);
}

#[test]
fn a_broadcast_counts_as_the_jobs_that_it_became() {
    let (mut audit, group) = audit();
    let broadcast = JobId(id(1));
    let expansion = |job: JobId, expanded: &Expanded| Receipt {
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
    audit.expanded(&expansion(broadcast, &split), &split, group, true);
    assert_eq!(breaks(&audit), [(Break::SliceLost, 3)]);
    for number in 0..3 {
        let slice = broadcast.slice(number);
        audit.stored(slice, NotificationId(id(1001)), group, Place::Scheduled, Part::Slice);
    }
    audit.receipt(&member(11), group);
    let total = audit.report(&Scope::default()).total();
    assert!(total.holds(), "{total}");
    assert_eq!((total.accepted, total.in_flight), (4, 3));
    // The second slice had no members left, and all but one member of the third were withdrawn.
    for (number, jobs, cancelled) in [(0, 2, 0), (1, 0, 0), (2, 1, 2)] {
        let slice = slice(number, jobs, cancelled);
        audit.expanded(&expansion(broadcast.slice(number), &slice), &slice, group, true);
    }
    assert_eq!(
        breaks(&audit),
        [(Break::Vanished, 2)],
        "a slice's receipt counts jobs that no stream mentions"
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
fn a_named_recipient_that_is_also_a_member_has_one_job() {
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
            let expansion = Receipt {
                job,
                address: None,
                ..of(1, Part::Whole)
            };
            audit.expanded(&expansion, &expanded, group, true);
        }
        assert_eq!(breaks(&audit), [(Break::Vanished, 1)], "the other member has no job");
        audit.receipt(&of(12, Part::Member), group);
        assert_eq!(breaks(&audit), [], "named first: {named_first}");
    }
}

#[test]
fn receipts_without_an_acceptance_are_a_fault_unless_work_was_trimmed() {
    let (mut audit, group) = audit();
    audit.receipt(&receipt(1, 1, 1, State::Delivered), group);
    assert_eq!(breaks(&audit), [(Break::NeverAccepted, 1)]);
    audit.read.values_mut().for_each(|removed| removed.work = 1);
    assert_eq!(breaks(&audit), []);
}

fn published(event: Option<u128>, refused: u128, jobs: u32, is_waiting: bool) -> Item {
    Item {
        refused: JobId(id(refused)),
        notification: event.map(|event| NotificationId(id(event + 1000))),
        jobs,
        to_topic: false,
        is_waiting,
    }
}

#[test]
fn what_waits_in_an_intake_is_in_flight_until_it_is_found_elsewhere() {
    let (mut audit, group) = audit();
    audit.published(&published(Some(1), 91, 3, true), group);
    audit.published(&published(None, 92, 1, true), group);
    let report = audit.report(&Scope::default());
    assert!(report.holds());
    assert_eq!((report.total().accepted, report.in_flight.intakes), (4, 4));

    // Of its three jobs one is stored already; the message without an event id is refused meanwhile.
    stored(&mut audit, 1, Place::Lane);
    let letter = Receipt {
        address: None,
        reason: Some(REFUSED.into()),
        ..receipt(92, 1, 1, State::Dead)
    };
    audit.receipt(&letter, group);
    audit.letter(id(92), group);
    let report = audit.report(&Scope::default());
    assert!(report.holds(), "{:?}", report.broken);
    assert_eq!(
        (
            report.total().accepted,
            report.in_flight.intakes,
            report.in_flight.lanes
        ),
        (4, 2, 1)
    );
}

#[test]
fn what_an_intake_acknowledged_must_be_jobs_or_a_letter() {
    let (mut audit, group) = audit();
    audit.published(&published(Some(1), 91, 2, false), group);
    audit.published(&published(None, 92, 1, false), group);
    assert_eq!(breaks(&audit), [(Break::Vanished, 3)]);
    stored(&mut audit, 1, Place::Lane);
    assert_eq!(breaks(&audit), [(Break::Vanished, 2)]);
}

#[test]
fn a_letter_of_what_waits_in_an_intake_has_its_receipt_still_to_come() {
    let (mut audit, group) = audit();
    audit.letter(id(91), group);
    audit.letter(id(92), group);
    assert_eq!(breaks(&audit), [(Break::LetterAlone, 2)]);
    audit.published(&published(Some(1), 91, 1, true), group);
    // The letter of a message that is refused as a whole, whatever it holds.
    audit.refusable(JobId(id(92)), true);
    let report = audit.report(&Scope::default());
    assert!(report.holds(), "{:?}", report.broken);
    assert_eq!((report.total().accepted, report.total().in_flight), (1, 1));
    // In a later reading the message is worked off.
    audit.published(&published(Some(1), 91, 1, false), group);
    assert_eq!(breaks(&audit), [(Break::Vanished, 1), (Break::LetterAlone, 1)]);
}

#[test]
fn the_next_step_that_a_receipt_promises_must_be_found() {
    let (mut audit, group) = audit();
    let next = |step| JobId(id(10 * step));
    for job in [1, 2, 3, 4] {
        stored(&mut audit, job, Place::Acknowledged);
        let failed = Receipt {
            step: Some(0),
            next_job: Some(next(job)),
            ..receipt(job, 1, 1, State::Rejected)
        };
        audit.receipt(&failed, group);
        audit.promised(&failed, next(job), group);
    }
    let step = |job: u128, state| Receipt {
        notification: NotificationId(id(job + 1000)),
        step: Some(1),
        ..receipt(10 * job, 2, 1, state)
    };
    // One waits on a schedule, one is done, one waits for another attempt.
    let notification = |job: u128| NotificationId(id(job + 1000));
    audit.stored(next(1), notification(1), group, Place::Scheduled, Part::Step);
    audit.receipt(&step(2, State::Delivered), group);
    audit.stored(next(3), notification(3), group, Place::Scheduled, Part::Step);
    audit.receipt(&step(3, State::Parked), group);
    audit.scheduled(next(3), AddressId(id(2002)));
    assert_eq!(breaks(&audit), [(Break::StepLost, 1)], "nothing holds the fourth");
    let total = audit.report(&Scope::default()).total();
    assert_eq!((total.accepted, total.in_flight, total.lost), (8, 2, 1));

    // It ended a moment before the receipt that promises it.
    audit.receipt(&step(4, State::Delivered), group);
    assert!(
        breaks(&audit).is_empty(),
        "the gateway's records do not count later steps"
    );
}

#[test]
fn what_fired_must_be_found_whatever_its_gateway_recorded() {
    let (mut audit, group) = audit();
    let at = Timestamp::UNIX_EPOCH;
    let fired = |jobs| Fate {
        decision: Decision::Fired,
        at,
        plan: Plan {
            event_id: "e".parse().unwrap(),
            send_at: at,
            expires_at: None,
            group_key: None,
            schedule_id: None,
            planned_at: at,
            test_key: false,
            jobs,
            revision: None,
        },
        to_topic: false,
        notification: None,
    };
    stored(&mut audit, 1, Place::Lane);
    audit.fired(NotificationId(id(1001)), &fired(1), group);
    assert!(breaks(&audit).is_empty());
    audit.fired(NotificationId(id(1002)), &fired(2), group);
    assert_eq!(breaks(&audit), [(Break::Vanished, 2)]);
    stored(&mut audit, 2, Place::Lane);
    assert_eq!(breaks(&audit), [(Break::Vanished, 1)]);
}
