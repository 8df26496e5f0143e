//! Posts webhooks.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use reqwest::Url;
use shared::{
    address::{Address, Format, Target},
    provider::{Provider, webhook::Credential},
};

use super::{config::Settings, outcome::judge, request};
use crate::providers::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
    outcome::WRONG_TARGET,
    transport::{
        guard::{Guard, Way},
        https::{Https, connect_within},
    },
};

/// Webhooks, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Webhook {
    public: Https,
    private: Https,
    guard: Guard,
}

impl Carrier for Webhook {
    const PROVIDER: Provider = Provider::Webhook;
    const TEMPLATE: &'static str = "POST {url}";
    const IS_OF_APP: bool = true;

    type Settings = Settings;
    type Credential = Credential;
    type Account = ();

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        let guard = common.receivers.clone();
        let (ca_file, within) = (settings.ca_file.as_deref(), connect_within(settings.timeout_ms));
        Ok(Self {
            public: Https::with(guard.client(ca_file, within)?, common),
            private: Https::with(guard.private_client(ca_file, within)?, common),
            guard,
        })
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
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

    /// A URL may hold a secret, so `progress` names no endpoint.
    async fn attempt(&self, (): &(), attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let (Target::Webhook(receiver), Some(webhook)) = (&attempt.address.target, attempt.message.webhook()) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        let Ok(url) = receiver.url().parse::<Url>() else {
            return Outcome::rejected("malformed");
        };
        let https = match self.guard.way(attempt.app, &url) {
            Ok(Way::Public) => &self.public,
            Ok(Way::Private) => &self.private,
            Err(_) => return Outcome::rejected("forbidden_address"),
        };
        let post = https.post(url);
        let request = match receiver.format {
            Format::Chat => request::chat(post, webhook),
            Format::Signed => {
                let id = attempt.delivery.to_string();
                let event = request::Event {
                    id: &id,
                    at: attempt.message.accepted_at(),
                    webhook,
                };
                request::signed(post, &event, receiver, https.now())
            }
        };
        let request = match request {
            Ok(request) => request,
            Err(reason) => return Outcome::rejected(reason),
        };
        match https.exchange_unnamed(request, progress).await {
            Ok(answer) => judge(answer.status, answer.retry_after),
            Err(outcome) => outcome,
        }
    }
}
