//! Huawei Push Kit (HMS): v3 of its API with tokens of a service account, and v1 and v2 with access tokens of OAuth.
//!
//! The rules are Huawei's ("Push Kit REST API: Scenario-specific messages", "Sending downlink messages", "Service account
//! authentication", "OAuth 2.0: client credentials").

mod client;
mod config;
mod outcome;
mod request;
mod token;

pub(super) use self::client::Hms;
pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
