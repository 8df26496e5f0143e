//! Twilio: text messages by its API for Programmable Messaging.
//!
//! The rules are Twilio's ("Messages resource", "Error and warning dictionary", "Best practices for scaling with messaging
//! services").

mod client;
mod config;
mod outcome;
mod request;

use std::{future::Future, time::Duration};

use shared::provider::{self, Provider, twilio::Credential};

pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
pub(super) use self::{client::Twilio, config::Account};
use super::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
};

impl Carrier for Twilio {
    const PROVIDER: Provider = Provider::Twilio;
    const TEMPLATE: &'static str = "POST /2010-04-01/Accounts/{account}/Messages.json";

    type Settings = Settings;
    type Credential = Credential;
    type Account = Account;

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        Self::connect(settings, common)
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
    }

    fn credential(credential: provider::Credential) -> Option<Credential> {
        match credential {
            provider::Credential::Twilio(credential) => Some(credential),
            _ => None,
        }
    }

    fn account(&self, credential: Credential) -> Result<Account, BadCredential> {
        self.open(&credential)
    }

    fn name(account: &Account) -> String {
        account.sid.clone()
    }

    fn attempt(
        &self,
        account: &Account,
        attempt: &Attempt<'_>,
        progress: &mut Progress,
    ) -> impl Future<Output = Outcome> + Send {
        self.send(account, attempt, progress)
    }
}
