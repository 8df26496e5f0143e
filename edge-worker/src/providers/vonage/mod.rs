//! Vonage, formerly Nexmo: text messages by its SMS API.
//!
//! The rules are Vonage's ("SMS API reference", "Troubleshooting SMS", "Concatenation and encoding").

mod client;
mod config;
mod outcome;
mod request;

use std::{future::Future, time::Duration};

use shared::provider::{self, Provider, vonage::Credential};

pub(super) use self::client::Vonage;
pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
use super::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
};

impl Carrier for Vonage {
    const PROVIDER: Provider = Provider::Vonage;
    const TEMPLATE: &'static str = "POST /sms/json";

    type Settings = Settings;
    type Credential = Credential;
    type Account = Credential;

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        Self::connect(settings, common)
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
    }

    fn credential(credential: provider::Credential) -> Option<Credential> {
        match credential {
            provider::Credential::Vonage(credential) => Some(credential),
            _ => None,
        }
    }

    /// Gateways have checked it.
    fn account(&self, credential: Credential) -> Result<Credential, BadCredential> {
        Ok(credential)
    }

    fn name(account: &Credential) -> String {
        account.api_key.clone()
    }

    fn attempt(
        &self,
        account: &Credential,
        attempt: &Attempt<'_>,
        progress: &mut Progress,
    ) -> impl Future<Output = Outcome> + Send {
        self.send(account, attempt, progress)
    }
}
