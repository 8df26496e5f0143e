//! The gateway over real nats-servers: what it promises to callers, and what it does when the servers fail it.
#![expect(clippy::unwrap_used, reason = "in a test's helpers a surprise fails the test")]

#[path = "gateway/rig.rs"]
mod rig;

#[path = "gateway/accept.rs"]
mod accept;
#[path = "gateway/access.rs"]
mod access;
#[path = "gateway/durable.rs"]
mod durable;
#[path = "gateway/faults.rs"]
mod faults;
#[path = "gateway/recipients.rs"]
mod recipients;
#[path = "gateway/status.rs"]
mod status;
#[path = "gateway/traces.rs"]
mod traces;
