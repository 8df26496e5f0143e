//! Posts webhooks.

use reqwest::{Client, Url};
use shared::{
    address::{Format, Target},
    clock::Clock,
};

use super::{config::Settings, outcome::judge, request};
use crate::providers::{
    Attempt, BadSettings, Outcome,
    attempt::Progress,
    carrier::Common,
    outcome::WRONG_TARGET,
    transport::{guard::Guard, https, retry_after::retry_after},
};

/// Nothing in the body of an answer matters. It is read so that the connection can be used again.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// Webhooks, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Webhook {
    client: Client,
    guard: Guard,
    clock: Clock,
}

impl Webhook {
    pub(super) fn connect(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        let guard = common.receivers.clone();
        Ok(Self {
            client: guard.client(settings.ca_file.as_deref(), https::connect_within(settings.timeout_ms))?,
            guard,
            clock: common.clock.clone(),
        })
    }

    /// Posts the webhook. A URL may hold a secret, so `progress` names no endpoint.
    pub(super) async fn send(&self, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let (Target::Webhook(receiver), Some(webhook)) = (&attempt.address.target, attempt.message.webhook()) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        let Ok(url) = receiver.url().parse::<Url>() else {
            return Outcome::rejected("malformed");
        };
        if self.guard.check(&url).is_err() {
            return Outcome::rejected("forbidden_address");
        }
        let post = self.client.post(url);
        let request = match receiver.format {
            Format::Chat => request::chat(post, webhook),
            Format::Signed => {
                let id = attempt.delivery.to_string();
                let event = request::Event {
                    id: &id,
                    at: attempt.message.accepted_at(),
                    webhook,
                };
                request::signed(post, &event, receiver, self.clock.now())
            }
        };
        let request = match request {
            Ok(request) => request,
            Err(reason) => return Outcome::rejected(reason),
        };
        match https::exchange_unnamed(&self.client, request, progress, MAX_ANSWER_BYTES).await {
            Ok(answer) => judge(answer.status.as_u16(), retry_after(&answer.headers, self.clock.now())),
            Err(outcome) => outcome,
        }
    }
}
