//! The version of what Peal stores and sends over NATS.
//!
//! Every message that Peal writes has the version of its format in a header. Additions that a reader may ignore do not
//! change the version; `docs/upgrade.md` lists which changes do, and how each reader treats a version that it does not know.

use async_nats::HeaderMap;

use super::envelope::header;
use crate::{plan::Course, trial::Trial};

/// The header with the version of a message's format. A message without it comes from a service or from Peal 0.1.
pub const VERSION: &str = "Peal-Version";

/// The newest version that this program reads; it writes this version.
pub const CURRENT: u32 = 1;

/// The version of work with several steps, which this program reads too. A program that does not know it would take only part of
/// the content.
pub const STEPS: u32 = 2;

/// The version of work of a test, and of work with a step that needs a confirmation, which this program reads too. A program that
/// does not know it would send a test to everybody, and bury the other as unreadable.
pub const RULES: u32 = 3;

/// The version of a job or a broadcast.
pub fn of_work(course: Option<&Course>, trial: Trial) -> u32 {
    if !trial.is_none() || course.is_some_and(Course::waits) {
        RULES
    } else if course.is_some() {
        STEPS
    } else {
        CURRENT
    }
}

/// The headers that every message of Peal has.
pub fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(VERSION, CURRENT.to_string());
    headers
}

/// The version of a message; `None` if it has none, or one that is no number, which Peal never writes.
pub fn of(headers: &HeaderMap) -> Option<u32> {
    header(headers, VERSION)?.parse().ok()
}

/// Whether a message's format is newer than this program can read.
pub fn is_unknown(headers: &HeaderMap) -> bool {
    of(headers).is_some_and(|version| version > CURRENT)
}

/// Whether the format of a message of work is newer than this program can read.
pub fn is_unknown_work(headers: &HeaderMap) -> bool {
    of(headers).is_some_and(|version| version > RULES)
}
