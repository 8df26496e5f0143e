//! Vonage, formerly Nexmo: text messages by its SMS API.
//!
//! The rules are Vonage's ("SMS API reference", "Troubleshooting SMS", "Concatenation and encoding").

mod client;
mod config;
mod outcome;
mod request;

pub(super) use self::client::Vonage;
pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
