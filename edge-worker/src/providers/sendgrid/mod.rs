//! `SendGrid`: e-mail by its API v3.
//!
//! The rules are `SendGrid`'s ("Mail Send API v3", "API v3 errors", "Rate limits").

mod client;
mod config;
mod outcome;
mod request;

pub(super) use self::client::SendGrid;
pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
