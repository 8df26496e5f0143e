//! Placeholder.

pub mod providers;
