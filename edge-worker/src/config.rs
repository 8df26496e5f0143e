//! Settings of the edge worker; the defaults are in `config.default.toml`.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;
use shared::{
    nats::{connect::Nats, topology::RegionSettings},
    secret::Secret,
    telemetry,
};

use crate::{freshness::StaleAfter, providers};

/// The defaults.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// Settings of the edge worker.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address of health, readiness and metrics.
    pub admin_listen: SocketAddr,
    /// Names this worker among its siblings; stable over restarts.
    pub name: String,
    /// Folder of the cache and the ledger.
    pub data: PathBuf,
    /// Jobs under way in the normal lane.
    pub in_flight: usize,
    /// Attempts at a delivery before it becomes a dead letter.
    pub max_attempts: u32,
    /// Addresses that may be removed in a minute.
    pub removals_per_minute: u32,
    /// Seconds for work under way after the first signal.
    pub grace_s: u64,
    /// Seconds that done work stays in the stream.
    pub keep_s: u64,
    /// Seconds that the ledger remembers.
    pub remember_s: u64,
    /// How old what is known of consent may be, by class, in seconds.
    pub stale_after_s: StaleAfter,
    /// The mesh's secret in base64.
    pub mesh_key: Secret,
    /// Where NATS is.
    pub nats: Nats,
    /// The mesh as this region sees it.
    pub mesh: RegionSettings,
    /// Where telemetry goes.
    pub telemetry: telemetry::Settings,
    /// How the providers are reached.
    pub providers: providers::Settings,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_complete() {
        let settings: Settings = shared::settings::load(DEFAULTS, None).unwrap();
        assert_eq!(settings.grace_s, 20);
    }
}
