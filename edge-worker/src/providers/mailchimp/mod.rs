//! Mailchimp Transactional, formerly Mandrill: e-mail by its API 1.0.
//!
//! The rules are Mailchimp's ("Send new message", "Transactional API errors", "Rejection denylist").

mod client;
mod config;
mod outcome;
mod request;

pub(super) use self::client::Mailchimp;
pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
