//! Who gets what, and when: one file for each rule. A rule is a pure function of what is known about a recipient, the policy of
//! the app and the time, so that whoever asks gets the same answer: the worker that sends, and whoever explains.

pub mod category;
pub mod consent;
pub mod controls;
pub mod limit;
pub mod quiet;
pub mod recurrence;
pub mod zone;

use jiff::Timestamp;

use crate::receipt::State;

/// What a rule says of a job, or of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// Nothing forbids it.
    Send,
    /// Not now. Waiting is no attempt.
    Wait {
        /// When it is to be decided again.
        until: Timestamp,
        /// The reason, as a word of receipts.
        why: &'static str,
    },
    /// Never: it ends here.
    Drop {
        /// The final state in which it ends.
        state: State,
        /// The reason, as a word of receipts.
        why: &'static str,
    },
}
