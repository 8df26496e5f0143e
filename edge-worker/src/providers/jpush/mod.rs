//! JPush (Aurora): pushes by its API v3.
//!
//! The rules are JPush's ("Push API v3", "Advanced features API: cid", "HTTP status code", "API rate limit").

mod client;
mod config;
mod outcome;

pub(super) use self::client::JPush;
pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
