//! Whether this gateway can serve requests.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use shared::{lifecycle::Lifecycle, nats::connect};

use tokio::sync::watch;

use crate::context::Context;

/// Whether requests can be served. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Readiness {
    context: Arc<Context>,
    lifecycle: Lifecycle,
    /// Whether JetStream stored the last probe.
    stores: Arc<AtomicBool>,
    /// Whether no stream of the region is missing.
    streams: watch::Receiver<bool>,
    /// Whether the bucket of recipients is not being restored.
    facts: watch::Receiver<bool>,
}

impl Readiness {
    /// Not ready before the first [`Readiness::set_stores`].
    pub(crate) fn new(
        context: Arc<Context>,
        streams: watch::Receiver<bool>,
        facts: watch::Receiver<bool>,
        lifecycle: Lifecycle,
    ) -> Self {
        Self {
            context,
            lifecycle,
            stores: Arc::default(),
            streams,
            facts,
        }
    }

    /// Records whether JetStream stored the last probe. Returns whether it had stored the one before.
    pub(super) fn set_stores(&self, stores: bool) -> bool {
        self.stores.swap(stores, Ordering::Relaxed)
    }

    /// The conditions of readiness that do not hold; empty if the gateway is ready.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let context = &self.context;
        let is_connected = connect::is_connected(&context.js.client());
        // With another mesh's key nothing else can be known.
        if !context.config.tenants().are_sealed_with(&context.mesh_key) {
            return vec!["mesh_key"];
        }
        let conditions = [
            ("nats", is_connected),
            ("directory", context.directory.is_loaded()),
            ("config", context.config.is_loaded()),
            ("streams", *self.streams.borrow()),
            ("facts", *self.facts.borrow()),
            // Nothing is stored without a connection; then only the connection is reported.
            ("storage", !is_connected || self.stores.load(Ordering::Relaxed)),
            ("not finishing", !self.lifecycle.is_finishing()),
        ];
        conditions
            .into_iter()
            .filter(|(_, holds)| !holds)
            .map(|(name, _)| name)
            .collect()
    }
}
