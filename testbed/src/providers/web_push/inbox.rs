//! What the push service keeps for browsers that are not connected (RFC 8030, sections 5.2 and 5.4).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// The pushes that wait, for each browser that is away.
#[derive(Debug, Default)]
pub(super) struct Inbox(Mutex<HashMap<String, Vec<Waiting>>>);

/// A push that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) topic: Option<String>,
    pub(super) expires_ms: i64,
    pub(super) payload: Bytes,
}

impl Inbox {
    pub(super) fn go_away(&self, token: &str) {
        self.waiting().entry(token.to_owned()).or_default();
    }

    /// Keeps a push if the browser is away; returns whether it is.
    pub(super) fn keep(&self, token: &str, push: Waiting) -> bool {
        let mut waiting = self.waiting();
        let Some(pushes) = waiting.get_mut(token) else {
            return false;
        };
        if push.topic.is_some() {
            pushes.retain(|older| older.topic != push.topic);
        }
        pushes.push(push);
        true
    }

    /// The payloads that have waited and have not expired, the oldest first.
    pub(super) fn come_back(&self, token: &str, now_ms: i64) -> Vec<Bytes> {
        let waiting = self.waiting().remove(token).unwrap_or_default();
        let alive = waiting.into_iter().filter(|push| push.expires_ms > now_ms);
        alive.map(|push| push.payload).collect()
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Vec<Waiting>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
