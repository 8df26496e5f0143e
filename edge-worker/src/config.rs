//! The settings of the edge worker. `config.default.toml` has the defaults.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;
use shared::{
    nats::{connect::Nats, topology::RegionSettings},
    public_url::PublicUrl,
    secret::Secret,
    telemetry,
};

use crate::{freshness::StaleAfter, providers};

/// The defaults, as TOML.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// The settings of the edge worker; unknown keys are errors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The address on which health, readiness and metrics are served.
    pub admin_listen: SocketAddr,
    /// The name of this worker, unique in its region and the same after a restart.
    pub name: String,
    /// The folder of the cache and the ledger.
    pub data: PathBuf,
    /// The number of jobs in flight in the normal lane; the other lanes have a share of it.
    pub in_flight: usize,
    /// The number of attempts at a delivery before it becomes a dead letter.
    pub max_attempts: u32,
    /// The maximum number of addresses per minute that are removed because their provider reported them gone.
    pub removals_per_minute: u32,
    /// Seconds that work in flight has to finish after the first signal.
    pub grace_s: u64,
    /// Seconds that finished work stays in the stream.
    pub keep_s: u64,
    /// Seconds that the ledger remembers an outcome.
    pub remember_s: u64,
    /// Where gateways are known outside of the mesh, to providers and in links; the same in every process.
    #[serde(default)]
    pub public_url: Option<PublicUrl>,
    /// Seconds of silence from another region after which consent counts as stale, by class.
    pub stale_after_s: StaleAfter,
    /// The key that opens sealed credentials: 32 bytes in base64.
    pub mesh_key: Secret,
    /// How NATS is reached.
    pub nats: Nats,
    /// This worker's region, and what all processes of the region must agree on.
    pub mesh: RegionSettings,
    /// Where traces, metrics and logs are sent.
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
