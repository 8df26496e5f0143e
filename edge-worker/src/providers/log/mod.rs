//! The provider that sends nothing: what would be sent ends as delivered, and its receipt is the record. For new apps and dry
//! runs.

use std::{future::Future, time::Duration};

use serde::Deserialize;
use shared::provider::{Provider, log::Credential};

use super::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
};

/// It has no settings.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {}

/// The provider that sends nothing.
#[derive(Debug)]
pub(super) struct Log;

impl Carrier for Log {
    const PROVIDER: Provider = Provider::Log;
    const TEMPLATE: &'static str = "log";

    type Settings = Settings;
    type Credential = Credential;
    type Account = ();

    fn new(_: &Settings, _: &Common) -> Result<Self, BadSettings> {
        Ok(Self)
    }

    fn timeout(_: &Settings) -> Duration {
        Duration::from_secs(1)
    }

    fn account(&self, _: Credential) -> Result<(), BadCredential> {
        Ok(())
    }

    fn name((): &()) -> String {
        "log".to_owned()
    }

    fn attempt(&self, (): &(), attempt: &Attempt<'_>, progress: &mut Progress) -> impl Future<Output = Outcome> + Send {
        tracing::debug!(app = %attempt.app, delivery = %attempt.delivery, "recorded and not sent");
        progress.endpoint = "log".into();
        std::future::ready(Outcome::Accepted { provider_id: None })
    }
}
