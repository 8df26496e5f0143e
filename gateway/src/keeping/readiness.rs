//! Whether this gateway can serve requests.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use shared::{lifecycle::Lifecycle, nats::connect};

use crate::context::Context;

/// Whether requests can be served. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Readiness {
    context: Arc<Context>,
    lifecycle: Lifecycle,
    /// Whether JetStream stored what was written last.
    stores: Arc<AtomicBool>,
}

impl Readiness {
    /// Not ready before the first [`Readiness::set_stores`].
    pub(crate) fn new(context: Arc<Context>, lifecycle: Lifecycle) -> Self {
        Self {
            context,
            lifecycle,
            stores: Arc::default(),
        }
    }

    /// Notes whether JetStream stores. Returns whether it did before.
    pub(super) fn set_stores(&self, stores: bool) -> bool {
        self.stores.swap(stores, Ordering::Relaxed)
    }

    /// What is missing for the gateway to be ready; nothing if it is.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let context = &self.context;
        let is_connected = connect::is_connected(&context.js.client());
        let needs = [
            ("nats", is_connected),
            ("directory", context.directory.is_loaded()),
            ("config", context.config.is_loaded()),
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
}
