//! The edge's copy of what its region knows of recipients.
//!
//! Invariant: the cache is a copy. Deleting its file costs the time to fill it, never correctness.

mod store;
mod sync;

pub use self::{
    store::{Became, Change, Range, Store, StoreError},
    sync::{Sync, SyncError},
};
