#![doc = include_str!("../README.md")]

pub mod admin;
pub mod cache;
pub mod config;
pub mod freshness;
pub mod janitor;
pub mod ledger;
pub mod limits;
pub mod pipeline;
pub mod presence;
mod private_file;
pub mod program;
pub mod providers;
pub mod pulled;
mod quota;
mod start_error;
mod station;
mod worker;

pub use self::{start_error::StartError, worker::EdgeWorker};
