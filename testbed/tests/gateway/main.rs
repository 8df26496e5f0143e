//! The gateway over real nats-servers: what it promises to callers, and what it does when the servers fail.
#![expect(clippy::unwrap_used, reason = "in a test's helpers a surprise fails the test")]

mod rig;

mod accept;
mod access;
mod door;
mod durable;
mod erasures;
mod faults;
mod imports;
mod limits;
mod pages;
mod recipients;
mod schemas;
mod signing;
mod status;
mod traces;
