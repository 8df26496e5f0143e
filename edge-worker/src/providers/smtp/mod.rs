//! SMTP submission: a mail server of the app's choice takes its mail.
//!
//! The rules are those of RFC 5321 (SMTP), RFC 6409 (submission), RFC 3207 and 8314 (TLS), RFC 4954 (authentication),
//! RFC 2920 (pipelining), RFC 1870 (size), RFC 3461 (reports), RFC 3463 (enhanced status codes), RFC 6376 (DKIM) and RFC 8058
//! (one-click unsubscription).

mod client;
mod config;
mod connection;
mod dkim;
mod message;
mod outcome;
mod pool;

use std::{future::Future, time::Duration};

use shared::{
    address::{Address, Mailbox, Target},
    provider::{Provider, smtp::Credential},
};

pub use self::config::Settings;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use self::outcome::judged;
pub(super) use self::{client::Smtp, config::Account};
use super::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
};

/// The mailbox of `address`; `None` if it is of another channel.
fn mailbox(address: &Address) -> Option<&Mailbox> {
    match &address.target {
        Target::Email(mailbox) => Some(mailbox),
        _ => None,
    }
}

impl Carrier for Smtp {
    const PROVIDER: Provider = Provider::Smtp;
    const TEMPLATE: &'static str = "DATA";

    type Settings = Settings;
    type Credential = Credential;
    type Account = Account;

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        Self::prepare(settings, common)
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
    }

    fn final_answer(settings: &Settings) -> Option<Duration> {
        Some(Duration::from_millis(settings.final_answer_ms))
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
