//! `SendGrid`: e-mail by its API v3.
//!
//! The rules are `SendGrid`'s ("Mail Send API v3", "API v3 errors", "Rate limits").

mod client;
mod config;
mod outcome;
mod request;

use std::{future::Future, time::Duration};

use shared::provider::{self, Provider, sendgrid::Credential};

pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
pub(super) use self::{client::SendGrid, config::Account};
use super::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
};

impl Carrier for SendGrid {
    const PROVIDER: Provider = Provider::SendGrid;
    const TEMPLATE: &'static str = "POST /v3/mail/send";

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
            provider::Credential::SendGrid(credential) => Some(credential),
            _ => None,
        }
    }

    fn account(&self, credential: Credential) -> Result<Account, BadCredential> {
        self.open(&credential)
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
