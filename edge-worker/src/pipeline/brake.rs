//! Limits how many addresses are removed in a minute.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

/// Stops the removal of addresses when there is too much of it: a provider, or how we use it, may be at fault.
#[derive(Debug)]
pub struct Brake {
    removals_per_minute: u32,
    /// The current minute since 1970, and the removals asked for in it.
    minute: Mutex<(i64, u32)>,
}

impl Brake {
    /// Allows `removals_per_minute` removals in each minute of the clock.
    pub fn new(removals_per_minute: u32) -> Self {
        Self {
            removals_per_minute,
            minute: Mutex::new((0, 0)),
        }
    }

    /// Counts one removal and returns whether it is allowed.
    pub(super) fn allows(&self, now: Timestamp) -> bool {
        let minute = now.as_second() / 60;
        let mut counted = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.0 != minute {
            *counted = (minute, 0);
        }
        counted.1 += 1;
        counted.1 <= self.removals_per_minute
    }
}
