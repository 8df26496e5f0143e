//! Permissions: real nats-servers refuse every forbidden act, and the client learns of it at once.
//!
//! Every other test of a whole mesh shows that the permissions suffice: all run under them.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

mod rig;

mod accounts;
mod apps;
mod controls;
mod entry;
mod foreign;
mod hub;
mod operator;
mod outbox;
mod refusals;
mod roles;
mod setup;
mod stolen;
mod test_keys;
