//! Which devices a simulator knows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

/// The registered devices. Until the first is registered every well-formed token is taken for one.
#[derive(Debug, Default)]
pub struct Devices {
    listed: AtomicBool,
    owners: RwLock<HashMap<String, String>>,
}

/// What is known about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It may be pushed to by this owner.
    Yes,
    /// It belongs to another topic (APNs) or project (FCM).
    Elsewhere,
    /// Nobody registered it.
    No,
}

impl Devices {
    /// Registers a device for an owner: the app's bundle id at APNs, the project at FCM. From now on tokens that were
    /// not registered are unknown.
    pub fn register(&self, token: &str, owner: &str) {
        self.owners
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(token.to_owned(), owner.to_owned());
        self.listed.store(true, Ordering::Release);
    }

    pub(crate) fn look_up(&self, token: &str, owner: &str) -> Known {
        if !self.listed.load(Ordering::Acquire) {
            return Known::Yes;
        }
        match self.owners.read().unwrap_or_else(PoisonError::into_inner).get(token) {
            Some(registered) if registered == owner => Known::Yes,
            Some(_) => Known::Elsewhere,
            None => Known::No,
        }
    }
}
