//! What every handler works with.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use shared::{
    clock::Clock,
    id::Region,
    lifecycle::Lifecycle,
    nats::{config::Config, connect, directory::Directory},
    seal::MeshKey,
    telemetry::Telemetry,
};
use tokio::sync::Semaphore;

use crate::{
    config::Limits,
    intake::publish::Publisher,
    records::{receipts::Receipts, recorder::Recorder},
};

/// The parts of a running gateway.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Names this process among all gateways; 16 hexadecimal digits.
    pub(crate) instance: String,
    pub(crate) here: Region,
    pub(crate) js: async_nats::jetstream::Context,
    pub(crate) publisher: Publisher,
    pub(crate) directory: Directory,
    pub(crate) config: Config,
    /// Whether JetStream stored what was last tried.
    pub(crate) stores: Arc<AtomicBool>,
    pub(crate) mesh_key: MeshKey,
    pub(crate) clock: Clock,
    pub(crate) telemetry: Telemetry,
    pub(crate) recorder: Recorder,
    pub(crate) receipts: Receipts,
    pub(crate) limits: Limits,
    /// One permit for each request that may be in progress.
    pub(crate) places: Semaphore,
    pub(crate) lifecycle: Lifecycle,
}

impl Parts {
    /// What is missing for the gateway to be ready; nothing if it is.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let is_connected = connect::is_connected(&self.js.client());
        let needs = [
            ("nats", is_connected),
            ("directory", self.directory.is_loaded()),
            ("config", self.config.is_loaded()),
            // Without a connection nothing is stored either; the connection is what is missing then.
            ("storage", !is_connected || self.stores.load(Ordering::Relaxed)),
            ("not finishing", !self.lifecycle.is_finishing()),
        ];
        needs
            .into_iter()
            .filter(|(_, is_there)| !is_there)
            .map(|(name, _)| name)
            .collect()
    }

    /// Whether keys and homes are known. Without them a good key would be refused, and a recipient's job would go to
    /// the wrong region.
    pub(crate) fn is_informed(&self) -> bool {
        self.directory.is_loaded() && self.config.is_loaded()
    }

    pub(crate) fn is_region(&self, region: &Region) -> bool {
        self.config.tenants().regions.contains_key(region)
    }

    /// Every region of the mesh, this one too, in the order of their names.
    pub(crate) fn regions(&self) -> Vec<Region> {
        self.config.tenants().regions.keys().cloned().collect()
    }
}
