//! Apple Push Notification service (APNs), with provider tokens over HTTP/2.
//!
//! The rules are Apple's ("Sending notification requests to APNs", "Establishing a token-based connection to APNs",
//! "Handling notification responses from APNs"). The reasons and collapse ids of `a2` are
//! used; its transport is not, because stock `a2` leaves Nagle's algorithm on, keeps half-open connections, drops
//! `Retry-After` and cannot connect to another host.

mod client;
mod config;
mod outcome;
mod request;
mod team;
mod token;

use std::{future::Future, sync::Arc, time::Duration};

use shared::{
    address::{Address, Target},
    content::push::Push,
    provider::{
        Provider,
        apns::{Credential, Environment},
    },
};

pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
pub(super) use self::{client::Apns, config::Account};
use super::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
    transport::http2::Network,
};

/// What is sent, and to which device.
#[derive(Debug, Clone, Copy)]
struct Device<'a> {
    push: &'a Push,
    token: &'a str,
    environment: Environment,
    /// The bundle id of the application, if it differs from the account's.
    topic: Option<&'a str>,
}

impl<'a> Device<'a> {
    /// `None` if the attempt is for another provider.
    fn of(attempt: &Attempt<'a>) -> Option<Self> {
        let Target::Apns(target) = &attempt.address.target else {
            return None;
        };
        Some(Self {
            push: attempt.message.push()?,
            token: target.token.reveal(),
            environment: target.environment,
            topic: target.topic.as_deref(),
        })
    }
}

impl Carrier for Apns {
    const PROVIDER: Provider = Provider::Apns;
    const TEMPLATE: &'static str = "POST /3/device/{token}";
    const ENVIRONMENTS: &'static [Option<&'static str>] = &[Some("production"), Some("sandbox")];

    type Settings = Settings;
    type Credential = Credential;
    type Account = Account;

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        Self::connect(settings, common)
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
    }

    fn account(&self, credential: Credential) -> Result<Account, BadCredential> {
        self.open(&credential)
    }

    fn name(account: &Account) -> String {
        account.name.clone()
    }

    fn environment(address: &Address) -> usize {
        match &address.target {
            Target::Apns(target) if target.environment == Environment::Sandbox => 1,
            _ => 0,
        }
    }

    fn networks(&self) -> Vec<Arc<Network>> {
        Self::networks(self).into()
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
