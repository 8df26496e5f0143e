//! The devices that are registered at a simulator.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

/// The registered devices. Until the first one is registered, every well-formed token counts as registered.
#[derive(Debug, Default)]
pub struct Devices {
    any: AtomicBool,
    owners: RwLock<HashMap<String, String>>,
}

/// The registration of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registration {
    /// It belongs to this owner.
    Registered,
    /// It belongs to another topic (APNs) or project (FCM).
    OtherOwner,
    /// It is not registered.
    Unknown,
}

impl Devices {
    /// Registers a device for an owner: the topic at APNs, which is the app's bundle id with the suffix of the token's use; the
    /// project at FCM. From then on, tokens that are not registered are unknown.
    pub fn register(&self, token: &str, owner: &str) {
        self.owners
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(token.to_owned(), owner.to_owned());
        self.any.store(true, Ordering::Release);
    }

    pub(crate) fn look_up(&self, token: &str, owner: &str) -> Registration {
        if !self.any.load(Ordering::Acquire) {
            return Registration::Registered;
        }
        match self.owners.read().unwrap_or_else(PoisonError::into_inner).get(token) {
            Some(registered) if registered == owner => Registration::Registered,
            Some(_) => Registration::OtherOwner,
            None => Registration::Unknown,
        }
    }
}
