//! The clock of the simulated providers.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
#[expect(
    clippy::disallowed_methods,
    reason = "the provider is another party: its clock is not the mesh's, and a test that sets ours must not set Apple's"
)]
pub(crate) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The simulated providers' clock: seconds since the Unix epoch.
pub fn now_s() -> i64 {
    now_ms() / 1000
}
