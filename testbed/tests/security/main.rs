//! Who may do what: every forbidden act is refused by real nats-servers, and whoever tries is told so.
//!
//! That the permissions are enough is what every other test of a whole mesh shows: all run under them.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

mod rig;

mod entry;
mod hub;
mod refusals;
mod roles;
