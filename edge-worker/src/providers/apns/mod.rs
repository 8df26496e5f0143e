//! Apple Push Notification service, by provider tokens over HTTP/2.
//!
//! The rules are Apple's ("Sending notification requests to APNs", "Establishing a token-based connection to APNs",
//! "Handling notification responses from APNs"). The request types and reasons of `a2` are used where they fit; the
//! transport (`http2`) is ours, because stock `a2` leaves Nagle's algorithm on, never leaves a half-open connection, loses
//! `Retry-After` and cannot be pointed at another host.

mod client;
mod config;
mod outcome;
mod request;
mod team;
mod token;

pub use self::config::{ApnsAccount, Settings};
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
pub(super) use self::{client::Apns, config::Account, request::unrepeated};
