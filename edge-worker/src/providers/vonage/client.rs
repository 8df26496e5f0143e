//! Sends text messages to Vonage.

use std::time::Duration;

use reqwest::{Client, Url};
use shared::{address::Target, clock::Clock, provider::vonage::Credential};

use super::{config::Settings, outcome::judge, request::request};
use crate::providers::{
    Attempt, BadSettings, Outcome,
    attempt::Progress,
    carrier::Common,
    outcome::WRONG_TARGET,
    transport::{https, retry_after::retry_after},
};

/// Vonage's answers have some 300 bytes for each segment.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Vonage, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Vonage {
    client: Client,
    url: Url,
    clock: Clock,
}

impl Vonage {
    pub(super) fn connect(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        let mut url = https::base(&settings.endpoint)?;
        url.set_path("/sms/json");
        Ok(Self {
            client: https::client(settings.ca_file.as_deref(), https::connect_within(settings.timeout_ms))?,
            url,
            clock: common.clock.clone(),
        })
    }

    /// Sends the message. Vonage knows no key by which it would recognize a repeated request, so an answer that is lost
    /// leaves the message in doubt.
    pub(super) async fn send(&self, account: &Credential, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let (Target::Phone(phone), Some(sms)) = (&attempt.address.target, attempt.message.sms()) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        let now = self.clock.now();
        let left = Duration::try_from(attempt.expires_at.duration_since(now)).unwrap_or_default();
        let request = match request(&self.client, &self.url, account, phone, sms, attempt.delivery, left) {
            Ok(request) => request,
            Err(outcome) => return outcome,
        };
        progress.decides_in_body = true;
        match https::exchange(&self.client, request, progress, MAX_ANSWER_BYTES).await {
            Ok(answer) => judge(
                answer.status.as_u16(),
                answer.body.as_deref(),
                retry_after(&answer.headers, self.clock.now()),
            ),
            Err(outcome) => outcome,
        }
    }
}
