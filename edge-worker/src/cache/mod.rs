//! The worker's copy of its region's facts about recipients.
//!
//! Invariant: the cache is only a copy. Deleting its file costs the time to refill it, never correctness.

mod restore;
mod store;
mod sync;

pub use self::{
    store::{Action, Change, Position, Range, Store, StoreError},
    sync::{FactFollower, FollowerError},
};
