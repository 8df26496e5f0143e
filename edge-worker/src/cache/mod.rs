//! The worker's copies of its region's facts about recipients, and of the suppression lists of all apps.
//!
//! Invariant: the cache is only a copy. Deleting its file costs the time to refill it, never correctness.

mod restore;
mod store;
mod suppressions;
mod sync;

pub use self::{
    store::{Action, Change, Position, Range, Store, StoreError},
    suppressions::Suppressions,
    sync::{FactFollower, FollowerError},
};
