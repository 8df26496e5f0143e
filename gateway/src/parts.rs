//! What every handler works with.

use shared::{
    clock::Clock,
    id::Region,
    lifecycle::Lifecycle,
    nats::{config::Config, connect, directory::Directory},
    seal::MeshKey,
    telemetry::Telemetry,
};
use tokio::sync::Semaphore;

use crate::{config::Limits, receipts::Receipts, record::Recorder};

/// The parts of a running gateway.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) here: Region,
    /// Every region of the mesh, this one too.
    pub(crate) regions: Vec<Region>,
    pub(crate) js: async_nats::jetstream::Context,
    pub(crate) directory: Directory,
    pub(crate) config: Config,
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

/// What a gateway needs before it can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) nats: bool,
    pub(crate) directory: bool,
    pub(crate) config: bool,
    pub(crate) finishing: bool,
}

impl Parts {
    pub(crate) fn readiness(&self) -> Readiness {
        Readiness {
            nats: connect::is_connected(&self.js.client()),
            directory: self.directory.is_loaded(),
            config: self.config.is_loaded(),
            finishing: self.lifecycle.is_finishing(),
        }
    }

    /// Whether keys and homes are known. Without them a good key would be refused, and a recipient's job would go to
    /// the wrong region.
    pub(crate) fn is_informed(&self) -> bool {
        self.directory.is_loaded() && self.config.is_loaded()
    }

    pub(crate) fn is_region(&self, region: &Region) -> bool {
        self.regions.contains(region)
    }
}

impl Readiness {
    pub(crate) fn is_ready(self) -> bool {
        self.nats && self.directory && self.config && !self.finishing
    }
}
