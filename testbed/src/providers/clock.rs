//! The clock of the simulated providers.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since the Unix epoch.
#[expect(
    clippy::disallowed_methods,
    reason = "the provider is another party: its clock is not the mesh's, and a test that sets ours must not set Apple's"
)]
pub(crate) fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> i64 {
    now_us() / 1000
}

/// The simulated providers' clock: seconds since the Unix epoch.
pub fn now_s() -> i64 {
    now_ms() / 1000
}
