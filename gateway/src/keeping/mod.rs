//! Keeps the region's JetStream as the mesh wants it, and watches whether this gateway can serve.

pub(crate) mod canary;
pub(crate) mod readiness;
pub(crate) mod upkeep;
