//! Time limits that build on each other. A job whose worker takes too long is given to another worker, so each of these
//! must leave room for the ones before it.

use std::time::Duration;

use shared::nats::topology::WORK_ACK_WAIT;

/// An attempt ends within this time, whatever the settings say.
pub const ATTEMPT_WITHIN: Duration = Duration::from_secs(12);

/// If nothing was sent within this time, the attempt asks the app's next provider.
pub const FAIL_OVER_WITHIN: Duration = Duration::from_millis(500);

/// Once a message was handed over to a provider that states so, its final answer may take this long. An SMTP server that
/// has the whole mail may need minutes, and giving up sooner makes it deliver twice (RFC 5321 §4.5.3.2.6 asks for ten).
pub const FINAL_ANSWER_WITHIN: Duration = Duration::from_mins(5);

/// While a final answer is awaited, and while a slice is in progress, the server is told so this often. It gives a message
/// to another worker after three times as long.
pub const REPORT_PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Before it begins, an attempt waits this long for its allowance, while a lease is being asked for.
pub const ALLOWANCE_WITHIN: Duration = Duration::from_secs(2);

/// After this time the outcome of an attempt that another worker began must be known, or that worker was interrupted.
pub const ANSWER_DUE_AFTER: Duration = Duration::from_secs(15);

/// A worker that has had a job for this long compares with the receipts of other workers before it publishes: the server
/// may soon give the job to another.
pub const COMPARE_RECEIPTS_AFTER: Duration = Duration::from_secs(15);

/// Work waits this long to learn how new its facts must be, and is then given back. An election of the bucket's leader
/// takes some seconds.
pub const FACTS_ASKED_WITHIN: Duration = Duration::from_secs(8);

/// Work waits this long until the cache is as new as its facts must be, and then reads the region's bucket.
pub const CACHE_CURRENT_WITHIN: Duration = Duration::from_secs(2);

const _: () = assert!(
    FACTS_ASKED_WITHIN.as_millis()
        + CACHE_CURRENT_WITHIN.as_millis()
        + FAIL_OVER_WITHIN.as_millis()
        + ALLOWANCE_WITHIN.as_millis()
        + ATTEMPT_WITHIN.as_millis()
        < WORK_ACK_WAIT.as_millis(),
    "work that waited for its facts must leave time for an attempt"
);

const _: () = assert!(
    FAIL_OVER_WITHIN.as_millis() + ATTEMPT_WITHIN.as_millis() + ALLOWANCE_WITHIN.as_millis()
        < ANSWER_DUE_AFTER.as_millis(),
    "an attempt must have ended before its answer is missed"
);
const _: () = assert!(
    FAIL_OVER_WITHIN.as_millis() + ATTEMPT_WITHIN.as_millis() + ALLOWANCE_WITHIN.as_millis()
        < COMPARE_RECEIPTS_AFTER.as_millis(),
    "an ordinary attempt must not make a worker read the receipts of others"
);

const _: () = assert!(
    3 * REPORT_PROGRESS_EVERY.as_millis() <= WORK_ACK_WAIT.as_millis(),
    "two reports may be lost before the server gives the work to another worker"
);

const _: () = assert!(
    2 * ANSWER_DUE_AFTER.as_millis() <= WORK_ACK_WAIT.as_millis()
        && 2 * COMPARE_RECEIPTS_AFTER.as_millis() <= WORK_ACK_WAIT.as_millis(),
    "servers must wait longer for an acknowledgement than workers for an answer"
);
