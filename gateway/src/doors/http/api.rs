//! What the handlers work with.

use std::{sync::Arc, time::Duration};

use axum::extract::FromRef;
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::{
    context::Context,
    intake::accept::Intake,
    keeping::readiness::Readiness,
    recipients::homes::Homes,
    records::{dead_letters::DeadLetters, receipts::Receipts},
};

/// The rooms behind the HTTP API. Handlers that need only one of them take that one.
#[derive(Debug)]
pub(crate) struct Api {
    /// Names this process among all gateways; 16 hexadecimal digits.
    pub(crate) instance: String,
    pub(crate) context: Arc<Context>,
    pub(crate) intake: Intake,
    pub(crate) homes: Homes,
    pub(crate) receipts: Receipts,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) readiness: Readiness,
    pub(crate) limits: Limits,
    /// One permit for each request that may be in progress.
    pub(crate) permits: Semaphore,
}

/// What a caller may ask for.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Largest request body in bytes.
    pub body_bytes: usize,
    /// Most recipients of one request.
    pub recipients: usize,
    /// Requests in progress at one time.
    pub in_flight: usize,
    /// Seconds after which a request is given up.
    pub request_timeout_s: u64,
    /// Notifications that status questions can be answered for.
    pub status_notifications: usize,
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
