//! The life of one job, in every order of steps and faults. `job.rs` has the steps of the edge worker, and at its end
//! the properties that must hold. `intake.rs` has the same for what services publish: the steps of gateways until its jobs
//! are stored and have ended, and an audit meanwhile. `chain.rs` has two steps of a plan. Tests break each rule on purpose and expect a property to fail.

mod chain;
mod intake;
mod job;
mod state;

use std::{fmt::Debug, hash::Hash};

use chain::Chain;
use intake::Intake;
use job::{ENDS, ENDS_ONCE, EXCUSED_PUSHES, Flaw, Job, NOT_LOST, STORED_FIRST};
use state::Faults;
use stateright::{Checker, HasDiscoveries, Model};

const FAULTLESS: Faults = Faults {
    crashes: 0,
    server_crashes: 0,
    early_redeliveries: 0,
    lost: 0,
    copies: 0,
};

const CRASH: Faults = Faults {
    crashes: 1,
    ..FAULTLESS
};

const ONE_ADDRESS: Job = Job {
    addresses: 1,
    flaky: 1,
    attempts: 2,
    deferrals: 0,
    faults: FAULTLESS,
    restarts: true,
    lenient: true,
    flaws: &[],
};

/// A healthy address beside one that may need retries.
const TWO_ADDRESSES: Job = Job {
    addresses: 2,
    ..ONE_ADDRESS
};

/// Explores every state and asserts that all properties hold.
fn assert_holds<M>(model: M)
where
    M: Model<State: Clone + Debug + Hash + Eq + Send + Sync + 'static, Action: Clone + Debug + PartialEq + Send + Sync>,
    M: Send + Sync + 'static,
{
    let checker = model.checker().threads(2).spawn_bfs().join();
    eprintln!("{} states, {} deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

/// Asserts that one of the properties `expected` does not hold.
fn assert_fails<M>(model: M, expected: &[&'static str])
where
    M: Model<State: Clone + Debug + Hash + Eq + Send + Sync + 'static, Action: Clone + Debug + PartialEq + Send + Sync>,
    M: Send + Sync + 'static,
{
    let any = HasDiscoveries::AnyOf(expected.iter().copied().collect());
    let checker = model.checker().threads(2).finish_when(any).spawn_bfs().join();
    let found = expected.iter().find_map(|name| checker.discovery(name));
    let steps = found.expect("a broken rule violates a property").into_actions();
    eprintln!("{} states, violated by {steps:#?}", checker.unique_state_count());
}

#[test]
fn without_faults_there_is_one_final_receipt() {
    let strict = Job {
        lenient: false,
        flaky: 2,
        ..TWO_ADDRESSES
    };
    assert_holds(strict);
}

/// A job that may wait as a whole before its first attempt.
const DEFERRED: Job = Job {
    deferrals: 1,
    ..ONE_ADDRESS
};

#[test]
fn a_job_that_waits_as_a_whole_ends_once() {
    assert_holds(Job {
        deferrals: 2,
        lenient: false,
        ..TWO_ADDRESSES
    });
}

#[test]
fn a_worker_may_crash_while_it_defers_a_job() {
    assert_holds(Job {
        faults: CRASH,
        restarts: false,
        ..DEFERRED
    });
    // The job that comes again may be deferred once more.
    assert_holds(Job {
        deferrals: 2,
        attempts: 1,
        faults: CRASH,
        ..DEFERRED
    });
}

#[test]
fn the_server_may_fail_while_a_job_is_deferred() {
    let server = Faults {
        server_crashes: 1,
        ..FAULTLESS
    };
    let lost = Faults { lost: 1, ..FAULTLESS };
    let early = Faults {
        early_redeliveries: 1,
        ..FAULTLESS
    };
    for faults in [server, lost, early] {
        assert_holds(Job {
            attempts: 1,
            faults,
            ..DEFERRED
        });
    }
}

#[test]
fn a_worker_may_crash_at_any_step() {
    assert_holds(Job {
        faults: CRASH,
        ..ONE_ADDRESS
    });
}

#[test]
fn the_other_worker_finishes_for_one_that_never_restarts() {
    assert_holds(Job {
        faults: CRASH,
        restarts: false,
        ..TWO_ADDRESSES
    });
}

#[test]
fn the_server_may_forget_pulls_and_acknowledgements() {
    let faults = Faults {
        server_crashes: 1,
        ..FAULTLESS
    };
    assert_holds(Job { faults, ..ONE_ADDRESS });
}

#[test]
fn answers_of_the_server_may_be_lost() {
    let faults = Faults { lost: 1, ..FAULTLESS };
    assert_holds(Job {
        faults,
        ..TWO_ADDRESSES
    });
}

#[test]
fn a_job_may_arrive_twice() {
    for faults in [
        Faults { copies: 1, ..FAULTLESS },
        Faults {
            early_redeliveries: 1,
            ..FAULTLESS
        },
    ] {
        assert_holds(Job { faults, ..ONE_ADDRESS });
        // Two workers that have it at the same time may both publish a final receipt: the only known window.
        assert_fails(
            Job {
                faults,
                lenient: false,
                ..ONE_ADDRESS
            },
            &[ENDS_ONCE],
        );
    }
}

#[test]
#[ignore = "takes minutes"]
fn faults_may_combine() {
    let faults = |crashes, server_crashes, early_redeliveries, lost, copies| Faults {
        crashes,
        server_crashes,
        early_redeliveries,
        lost,
        copies,
    };
    for faults in [
        faults(2, 0, 0, 0, 0),
        faults(1, 0, 1, 0, 0),
        faults(1, 0, 0, 1, 0),
        faults(1, 0, 0, 0, 1),
        faults(0, 0, 1, 0, 1),
        faults(0, 0, 0, 2, 0),
    ] {
        assert_holds(Job { faults, ..ONE_ADDRESS });
    }
    assert_holds(Job {
        faults: CRASH,
        ..TWO_ADDRESSES
    });
}

#[test]
#[ignore = "takes minutes"]
fn faults_may_meet_a_deferred_job_and_its_retries() {
    let server = Faults {
        server_crashes: 1,
        ..FAULTLESS
    };
    let lost = Faults { lost: 1, ..FAULTLESS };
    for faults in [CRASH, server, lost] {
        assert_holds(Job { faults, ..DEFERRED });
    }
}

#[test]
fn every_rule_is_needed() {
    let lost = Faults { lost: 1, ..FAULTLESS };
    let rules: [(&[Flaw], Faults, Job, &[&'static str]); 11] = [
        (&[Flaw::AckBeforeCommit], CRASH, ONE_ADDRESS, &[NOT_LOST]),
        (&[Flaw::PublishBeforeCommit], CRASH, ONE_ADDRESS, &[ENDS_ONCE]),
        (&[Flaw::CommitBeforePark], CRASH, ONE_ADDRESS, &[ENDS]),
        (&[Flaw::CommitBeforePark], FAULTLESS, ONE_ADDRESS, &[STORED_FIRST]),
        (&[Flaw::NewIds], lost, ONE_ADDRESS, &[ENDS_ONCE]),
        (&[Flaw::SecondPublishes], CRASH, ONE_ADDRESS, &[ENDS_ONCE]),
        (&[Flaw::ParkedOutweighs], CRASH, ONE_ADDRESS, &[EXCUSED_PUSHES]),
        (&[Flaw::LeftoversPublished], CRASH, ONE_ADDRESS, &[ENDS_ONCE]),
        (&[Flaw::AnyRecordCompletes], CRASH, TWO_ADDRESSES, &[NOT_LOST]),
        (
            &[Flaw::CommitBeforePark],
            FAULTLESS,
            Job { flaky: 0, ..DEFERRED },
            &[STORED_FIRST],
        ),
        (&[Flaw::DeferredCompletes], FAULTLESS, DEFERRED, &[NOT_LOST]),
    ];
    for (flaws, faults, job, expected) in rules {
        eprintln!("{flaws:?}");
        assert_fails(Job { faults, flaws, ..job }, expected);
    }
}

/// A notification that keeps every rule, and one that does not.
const PUBLISHED: Intake = Intake {
    valid: &[true, false],
    faults: UNDISTURBED,
    audits: true,
    flaw: None,
};

const UNDISTURBED: intake::Faults = intake::Faults {
    crashes: 0,
    lost: 0,
    redeliveries: 0,
    copies: 0,
    pauses: 0,
    expiries: 0,
};

#[test]
fn what_is_published_ends_once_and_the_books_hold_meanwhile() {
    assert_holds(PUBLISHED);
    for faults in [
        intake::Faults {
            crashes: 1,
            ..UNDISTURBED
        },
        intake::Faults { lost: 1, ..UNDISTURBED },
        intake::Faults {
            redeliveries: 1,
            ..UNDISTURBED
        },
        intake::Faults {
            expiries: 1,
            ..UNDISTURBED
        },
    ] {
        assert_holds(Intake { faults, ..PUBLISHED });
    }
}

#[test]
fn faults_of_an_intake_may_combine() {
    let faults = intake::Faults {
        crashes: 1,
        lost: 1,
        redeliveries: 1,
        copies: 0,
        pauses: 1,
        expiries: 1,
    };
    let quiet = Intake {
        audits: false,
        ..PUBLISHED
    };
    assert_holds(Intake { faults, ..quiet });
    // An audit whose parts are read between any two steps has states of its own.
    let one = intake::Faults {
        lost: 0,
        expiries: 0,
        ..faults
    };
    assert_holds(Intake {
        faults: one,
        ..PUBLISHED
    });
}

#[test]
fn an_event_that_is_published_twice_is_one_notification() {
    let copies = intake::Faults {
        copies: 1,
        pauses: 1,
        ..UNDISTURBED
    };
    assert_holds(Intake {
        faults: copies,
        ..PUBLISHED
    });
    let faults = intake::Faults { crashes: 1, ..copies };
    assert_holds(Intake { faults, ..PUBLISHED });
}

#[test]
fn every_rule_of_the_door_is_needed() {
    use intake::{BOOKS, ENDED, Faults, Flaw, KEPT, LETTER_FIRST, NOT_LATE, ONCE};
    let crash = Faults {
        crashes: 1,
        ..UNDISTURBED
    };
    let lost = Faults { lost: 1, ..UNDISTURBED };
    let again = Faults {
        redeliveries: 1,
        ..UNDISTURBED
    };
    let expiry = Faults {
        expiries: 1,
        ..UNDISTURBED
    };
    let rules: [(Flaw, Faults, &[&'static str]); 11] = [
        (Flaw::AckFirst, crash, &[ENDED]),
        (Flaw::AckFirst, UNDISTURBED, &[KEPT]),
        (Flaw::AckRefused, lost, &[KEPT]),
        (Flaw::ReceiptFirst, UNDISTURBED, &[LETTER_FIRST]),
        (Flaw::NewJobs, again, &[ONCE]),
        (Flaw::NewLetters, again, &[ONCE]),
        (Flaw::YoungJobs, expiry, &[NOT_LATE]),
        (Flaw::ExpiredDropped, expiry, &[ENDED]),
        (Flaw::FloorLast, UNDISTURBED, &[BOOKS]),
        (Flaw::ReceiptsLate, UNDISTURBED, &[BOOKS]),
        (Flaw::LettersComplete, crash, &[BOOKS]),
    ];
    for (flaw, faults, expected) in rules {
        eprintln!("{flaw:?}");
        let flaw = Some(flaw);
        assert_fails(
            Intake {
                faults,
                flaw,
                ..PUBLISHED
            },
            expected,
        );
    }
}

#[test]
fn the_next_step_of_a_plan_follows_once_and_only_a_failed_one() {
    for (crashes, confirms) in [(0, false), (1, false), (0, true)] {
        assert_holds(Chain {
            crashes,
            confirms,
            flaw: None,
        });
    }
}

#[test]
fn every_rule_of_plans_is_needed() {
    use chain::{FOLLOWS, Flaw, NOT_EARLY, PROMISES_KEPT, SENT_ONCE};
    let rules: [(Flaw, u8, bool, &[&'static str]); 9] = [
        (Flaw::PromiseFirst, 0, false, &[PROMISES_KEPT]),
        (Flaw::PromiseFirst, 1, false, &[FOLLOWS]),
        (Flaw::NoSecondLook, 0, false, &[FOLLOWS]),
        (Flaw::NewIds, 0, false, &[SENT_ONCE]),
        (Flaw::DoubtFails, 0, false, &[NOT_EARLY]),
        (Flaw::OneFails, 0, false, &[NOT_EARLY]),
        (Flaw::RetryCompletes, 1, false, &[NOT_EARLY]),
        (Flaw::DeliveredSuffices, 0, true, &[FOLLOWS]),
        (Flaw::NoWait, 0, true, &[NOT_EARLY]),
    ];
    for (flaw, crashes, confirms, expected) in rules {
        eprintln!("{flaw:?}");
        let flaw = Some(flaw);
        assert_fails(
            Chain {
                crashes,
                confirms,
                flaw,
            },
            expected,
        );
    }
}
