//! Regions that come while the others run, and that help each other.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

mod rig;

mod addition;
mod cut_off;
mod help;
mod moving;
mod owners;
mod quota;
mod residency;
