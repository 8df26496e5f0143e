//! The provider that sends nothing: what would be sent ends as delivered, and its receipt is the record. For new apps, dry runs
//! and tests.

use std::{future::Future, time::Duration};

use serde::Deserialize;
use shared::{
    clock::Clock,
    provider::{Provider, log::Credential},
};

use super::{
    Attempt, Attempted, BadCredential, BadSettings, Outcome,
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

/// Records an attempt of a test, for which the app needs no credential.
pub(super) fn record(attempt: &Attempt<'_>, clock: &Clock) -> Attempted {
    tracing::debug!(app = %attempt.app, delivery = %attempt.delivery, "a test is recorded and not sent");
    let now = clock.now();
    Attempted {
        outcome: Outcome::Accepted { provider_id: None },
        provider: Provider::Log,
        status: None,
        endpoint: Log::TEMPLATE.into(),
        template: Log::TEMPLATE,
        started_at: now,
        ended_at: now,
        took: Duration::ZERO,
    }
}

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
