//! The doors: how a request comes in and how its answer goes out. A door knows the rooms behind it; no room knows a
//! door.

pub(crate) mod http;
pub(crate) mod nats;
pub(crate) mod problem;
pub(crate) mod send;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Whole seconds, rounded up.
fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// A new request id, unique among all gateways; `instance` is this one.
fn request_id(instance: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{instance}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
