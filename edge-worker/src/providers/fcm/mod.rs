//! Firebase Cloud Messaging, HTTP v1.
//!
//! The rules are Google's ("Send a message using FCM HTTP v1 API", "FCM error codes", "Best practices when sending FCM
//! messages at scale", "Using OAuth 2.0 for server to server applications").

mod client;
mod config;
mod outcome;
mod quota;
mod request;
mod token;

#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
pub(super) use self::{client::Fcm, config::Account};
pub use self::{
    config::{FcmAccount, Settings},
    quota::{Granted, Quota, Use},
};
