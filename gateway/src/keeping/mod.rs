//! Keeps the region's streams as the mesh requires, and watches whether this gateway can serve requests.

pub(crate) mod canary;
mod facts;
pub(crate) mod key_use;
pub(crate) mod planned;
pub(crate) mod readiness;
pub(crate) mod trim;
pub(crate) mod upkeep;
