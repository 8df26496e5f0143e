//! Firebase Cloud Messaging (FCM), HTTP v1.
//!
//! The rules are Google's ("Send a message using FCM HTTP v1 API", "FCM error codes", "Best practices when sending FCM
//! messages at scale", "Using OAuth 2.0 for server to server applications").

mod client;
mod config;
mod outcome;
mod request;
mod token;

use std::{future::Future, sync::Arc, time::Duration};

use shared::{
    address::Target,
    content::push::Push,
    provider::{Provider, fcm::Credential},
};

pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
pub(super) use self::{client::Fcm, config::Account};
use super::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common, Limit},
    transport::http2::Network,
};

/// What is sent, and to which device.
#[derive(Debug, Clone, Copy)]
struct Device<'a> {
    push: &'a Push,
    /// The registration token.
    token: &'a str,
}

impl<'a> Device<'a> {
    /// `None` if the attempt is for another provider.
    fn of(attempt: &Attempt<'a>) -> Option<Self> {
        let Target::Fcm(target) = &attempt.address.target else {
            return None;
        };
        Some(Self {
            push: attempt.message.push()?,
            token: target.token.reveal(),
        })
    }
}

impl Carrier for Fcm {
    const PROVIDER: Provider = Provider::Fcm;
    const TEMPLATE: &'static str = "POST /v1/projects/{project}/messages:send";

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
        self.open(credential)
    }

    fn name(account: &Account) -> String {
        account.project.clone()
    }

    fn limit(account: &Account) -> Option<Limit> {
        Some(Limit {
            name: account.project.clone(),
            per_minute: account.per_minute,
        })
    }

    fn networks(&self) -> Vec<Arc<Network>> {
        vec![self.network().clone()]
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
