//! Amazon SNS: pushes to platform endpoints, and text messages.
//!
//! The rules are Amazon's ("Amazon SNS API reference: Publish, Common errors", "Sending mobile push notifications", "Publishing
//! SMS messages", "Signature Version 4").

mod client;
mod config;
mod outcome;
mod request;

pub(super) use self::client::Sns;
pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
