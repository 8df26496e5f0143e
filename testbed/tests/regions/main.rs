//! Regions together: added, cut off, helping each other, and moving recipients, tokens and quota between them.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

mod rig;

mod addition;
mod back_to_back;
mod cut_off;
mod erasures;
mod help;
mod moving;
mod owners;
mod quota;
mod residency;
