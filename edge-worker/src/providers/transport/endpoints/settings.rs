//! Settings of endpoints: how they are measured and chosen.

use std::time::Duration;

use serde::Deserialize;

/// How endpoints are measured and chosen, and how long unused connections live.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Milliseconds between two measurements of an address. In that time at most one connection is opened only to
    /// measure an address that was measured before.
    pub probe_ms: u64,
    /// Milliseconds for which another address must have been clearly faster before it is chosen.
    pub patience_ms: u64,
    /// Milliseconds until an unused connection is closed; the last one of a credential lives twelve times as long.
    pub idle_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            probe_ms: 30_000,
            patience_ms: 60_000,
            idle_ms: 300_000,
        }
    }
}

impl Settings {
    pub(in crate::providers::transport) fn probe(&self) -> Duration {
        Duration::from_millis(self.probe_ms.max(10))
    }

    pub(in crate::providers::transport) fn idle(&self) -> Duration {
        Duration::from_millis(self.idle_ms.max(10))
    }
}
