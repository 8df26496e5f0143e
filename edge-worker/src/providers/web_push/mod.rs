//! Web push: pushes to browsers by the push service that each of them chose.
//!
//! The rules are those of RFC 8030 (HTTP), RFC 8188 and RFC 8291 (encryption) and RFC 8292 (VAPID), and what Apple, Google,
//! Microsoft and Mozilla publish about their push services.

mod client;
mod config;
mod encrypt;
mod outcome;
mod request;
mod vapid;

pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
pub(super) use self::{client::WebPush, config::Account};
