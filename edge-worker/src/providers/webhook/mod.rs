//! Webhooks: requests to receivers that recipients or apps name.
//!
//! Signed receivers get what Standard Webhooks 1.0 specifies. Chats such as Slack, Mattermost and Agit get a text.

mod client;
mod config;
mod outcome;
mod request;

use std::{
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use shared::{
    address::{Address, Target},
    provider::{self, Provider, webhook::Credential},
};

pub(super) use self::client::Webhook;
pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
use super::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
};

impl Carrier for Webhook {
    const PROVIDER: Provider = Provider::Webhook;
    const TEMPLATE: &'static str = "POST {url}";
    const IS_OF_APP: bool = true;

    type Settings = Settings;
    type Credential = Credential;
    type Account = ();

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        Self::connect(settings, common)
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
    }

    fn credential(credential: provider::Credential) -> Option<Credential> {
        match credential {
            provider::Credential::Webhook(credential) => Some(credential),
            _ => None,
        }
    }

    fn account(&self, _: Credential) -> Result<(), BadCredential> {
        Ok(())
    }

    fn name((): &()) -> String {
        "webhook".to_owned()
    }

    /// The host and port of the receiver: a receiver that fails does not pause the others.
    fn destination(address: &Address) -> Option<u64> {
        let Target::Webhook(receiver) = &address.target else {
            return None;
        };
        let (scheme, rest) = receiver.url().split_once("://")?;
        let mut hash = DefaultHasher::new();
        (scheme, rest.split(['/', '?']).next()).hash(&mut hash);
        Some(hash.finish())
    }

    fn attempt(&self, (): &(), attempt: &Attempt<'_>, progress: &mut Progress) -> impl Future<Output = Outcome> + Send {
        self.send(attempt, progress)
    }
}
