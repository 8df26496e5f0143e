//! Mailchimp Transactional, formerly Mandrill: e-mail by its API 1.0.
//!
//! The rules are Mailchimp's ("Send new message", "Transactional API errors", "Rejection denylist").

mod client;
mod config;
mod outcome;
mod request;

use std::{future::Future, time::Duration};

use shared::provider::{self, Provider, mailchimp::Credential};

pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
pub(super) use self::{client::Mailchimp, config::Account};
use super::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
};

impl Carrier for Mailchimp {
    const PROVIDER: Provider = Provider::Mailchimp;
    const TEMPLATE: &'static str = "POST /api/1.0/messages/send";

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
            provider::Credential::Mailchimp(credential) => Some(credential),
            _ => None,
        }
    }

    fn account(&self, credential: Credential) -> Result<Account, BadCredential> {
        Ok(Account::new(credential))
    }

    fn name(account: &Account) -> String {
        account.name.clone()
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
