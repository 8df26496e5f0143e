//! Keeps the region's JetStream as the mesh wants it, and watches whether it stores.

pub(crate) mod canary;
pub(crate) mod upkeep;
