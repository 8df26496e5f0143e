//! Twilio: text messages by its API for Programmable Messaging.
//!
//! The rules are Twilio's ("Messages resource", "Error and warning dictionary", "Best practices for scaling with messaging
//! services").

mod client;
mod config;
mod outcome;
mod request;

pub(super) use self::client::Twilio;
pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
