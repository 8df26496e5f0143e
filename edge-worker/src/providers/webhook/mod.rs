//! Webhooks: requests to receivers that recipients or apps name.
//!
//! Signed receivers get what Standard Webhooks 1.0 specifies. Chats such as Slack, Mattermost and Agit get a text.

mod client;
mod config;
mod outcome;
mod request;

pub(super) use self::client::Webhook;
pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
