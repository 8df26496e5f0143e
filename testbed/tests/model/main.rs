//! One job's life, in every order of steps and faults. What the edge worker does is in `model/job.rs`, step by step; what
//! must hold is at its end. A rule of the worker that is broken on purpose must show.

mod job;
mod state;

use job::{ENDS, ENDS_ONCE, FEW_PUSHES, Flaw, Job, NOT_LOST, STORED_FIRST};
use state::Faults;
use stateright::{Checker, HasDiscoveries, Model};

const FAULTLESS: Faults = Faults {
    crashes: 0,
    server_crashes: 0,
    impatience: 0,
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

/// Explores everything, and insists.
fn holds(job: Job) {
    let checker = job.checker().threads(2).spawn_bfs().join();
    eprintln!("{} states, {} deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

/// Insists that one of `expected` does not hold.
fn fails(job: Job, expected: &[&'static str]) {
    let any = HasDiscoveries::AnyOf(expected.iter().copied().collect());
    let checker = job.checker().threads(2).finish_when(any).spawn_bfs().join();
    let found = expected.iter().find_map(|name| checker.discovery(name));
    let steps = found.expect("a broken rule must show").into_actions();
    eprintln!("{} states, shown by {steps:#?}", checker.unique_state_count());
}

#[test]
fn without_faults_there_is_one_final_receipt() {
    let strict = Job {
        lenient: false,
        flaky: 2,
        ..TWO_ADDRESSES
    };
    holds(strict);
}

#[test]
fn a_worker_may_crash_anywhere() {
    holds(Job {
        faults: CRASH,
        ..ONE_ADDRESS
    });
}

#[test]
fn a_worker_that_never_comes_back_is_not_missed() {
    holds(Job {
        faults: CRASH,
        restarts: false,
        ..TWO_ADDRESSES
    });
}

#[test]
fn the_server_may_forget_what_it_gave_out_and_what_was_acknowledged() {
    let faults = Faults {
        server_crashes: 1,
        ..FAULTLESS
    };
    holds(Job { faults, ..ONE_ADDRESS });
}

#[test]
fn answers_of_the_server_may_be_lost() {
    let faults = Faults { lost: 1, ..FAULTLESS };
    holds(Job {
        faults,
        ..TWO_ADDRESSES
    });
}

#[test]
fn a_job_may_come_twice() {
    for faults in [
        Faults { copies: 1, ..FAULTLESS },
        Faults {
            impatience: 1,
            ..FAULTLESS
        },
    ] {
        holds(Job { faults, ..ONE_ADDRESS });
        // Two workers who have it at one moment both have the last word: the one window that is known.
        fails(
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
fn faults_may_meet() {
    let some = |crashes, server_crashes, impatience, lost, copies| Faults {
        crashes,
        server_crashes,
        impatience,
        lost,
        copies,
    };
    for faults in [
        some(2, 0, 0, 0, 0),
        some(1, 0, 1, 0, 0),
        some(1, 0, 0, 1, 0),
        some(1, 0, 0, 0, 1),
        some(0, 0, 1, 0, 1),
        some(0, 0, 0, 2, 0),
    ] {
        holds(Job { faults, ..ONE_ADDRESS });
    }
    holds(Job {
        faults: CRASH,
        ..TWO_ADDRESSES
    });
}

#[test]
fn every_rule_is_needed() {
    let lost = Faults { lost: 1, ..FAULTLESS };
    let rules: [(&[Flaw], Faults, Job, &[&'static str]); 9] = [
        (&[Flaw::AckBeforeCommit], CRASH, ONE_ADDRESS, &[NOT_LOST]),
        (&[Flaw::PublishBeforeCommit], CRASH, ONE_ADDRESS, &[ENDS_ONCE]),
        (&[Flaw::CommitBeforePark], CRASH, ONE_ADDRESS, &[ENDS]),
        (&[Flaw::CommitBeforePark], FAULTLESS, ONE_ADDRESS, &[STORED_FIRST]),
        (&[Flaw::NewIds], lost, ONE_ADDRESS, &[ENDS_ONCE]),
        (&[Flaw::SecondSpeaks], CRASH, ONE_ADDRESS, &[ENDS_ONCE]),
        (&[Flaw::ParkedOutweighs], CRASH, ONE_ADDRESS, &[FEW_PUSHES]),
        (&[Flaw::LeftOversSpeak], CRASH, ONE_ADDRESS, &[ENDS_ONCE]),
        (&[Flaw::AnyRecordEnds], CRASH, TWO_ADDRESSES, &[NOT_LOST]),
    ];
    for (flaws, faults, job, expected) in rules {
        eprintln!("{flaws:?}");
        fails(Job { faults, flaws, ..job }, expected);
    }
}
