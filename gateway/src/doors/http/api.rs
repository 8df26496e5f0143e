//! The state that all handlers share.

use std::{sync::Arc, time::Duration};

use axum::extract::FromRef;
use serde::Deserialize;
use shared::public_url::PublicUrl;
use tokio::sync::Semaphore;

use super::{callbacks::Callbacks, places::Places, quota::Keys};
use crate::{
    admin::relay::Relay,
    context::Context,
    intake::accept::Intake,
    keeping::{key_use::KeyUses, readiness::Readiness},
    recipients::homes::Homes,
    records::{dead_letters::DeadLetters, feedback::Feedbacks, receipts::Receipts},
};

/// The rooms behind the HTTP API. Handlers that need only one of them take that one.
#[derive(Debug)]
pub(crate) struct Api {
    /// Identifies this process among all gateways; 16 hexadecimal digits.
    pub(crate) instance: String,
    pub(crate) context: Arc<Context>,
    pub(crate) intake: Arc<Intake>,
    pub(crate) homes: Homes,
    pub(crate) receipts: Receipts,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) feedback: Feedbacks,
    pub(crate) callbacks: Callbacks,
    /// Where gateways are known outside of the mesh.
    pub(crate) public_url: Option<PublicUrl>,
    pub(crate) readiness: Readiness,
    pub(crate) limits: Limits,
    /// As many permits as requests may be in progress.
    pub(crate) permits: Arc<Semaphore>,
    /// As many permits as signed requests may have their body read before their signature is checked.
    pub(crate) unproven: Semaphore,
    /// What API keys use of their quotas.
    pub(crate) keys: Keys,
    /// When they were last used.
    pub(crate) key_uses: KeyUses,
    pub(crate) imports: Places,
    pub(crate) exports: Places,
    /// Hands writes of apps to the admin gateways.
    pub(crate) relay: Relay,
}

/// Limits on requests.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Maximum size of a request body, in bytes.
    pub body_bytes: usize,
    /// Maximum number of recipients in one request.
    pub recipients: usize,
    /// Maximum number of requests in progress at a time.
    pub in_flight: usize,
    /// Maximum number of open connections.
    pub connections: usize,
    /// Maximum number of open connections from one address.
    pub connections_per_address: usize,
    /// Time after which a request is given up, in seconds.
    pub request_timeout_s: u64,
    /// Number of notifications whose status can be queried; the oldest are forgotten first.
    pub status_notifications: usize,
    /// Number of notifications of each app that may wait for their time in the region.
    pub scheduled_notifications: usize,
}

impl Limits {
    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_s)
    }
}

impl FromRef<Arc<Api>> for Homes {
    fn from_ref(api: &Arc<Api>) -> Self {
        api.homes.clone()
    }
}

impl FromRef<Arc<Api>> for DeadLetters {
    fn from_ref(api: &Arc<Api>) -> Self {
        api.dead_letters.clone()
    }
}

impl FromRef<Arc<Api>> for Readiness {
    fn from_ref(api: &Arc<Api>) -> Self {
        api.readiness.clone()
    }
}
