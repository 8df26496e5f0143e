//! The provider simulators, seen from the other end of a real TLS connection.
#![expect(clippy::unwrap_used, reason = "in a test's helpers a surprise fails the test")]

mod client;

mod connections;
mod fcm;
mod program;
mod provider_tokens;
mod requests;
mod scripts;
