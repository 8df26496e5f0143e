//! Sends text messages to Vonage.

use std::time::Duration;

use reqwest::Url;
use shared::{
    address::Target,
    provider::{Provider, vonage::Credential},
};

use super::{
    config::Settings,
    outcome::judge,
    request::{Receipts, request},
};
use crate::providers::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
    outcome::WRONG_TARGET,
    transport::https::{self, Https},
};

/// Vonage, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Vonage {
    https: Https,
    url: Url,
}

impl Carrier for Vonage {
    const PROVIDER: Provider = Provider::Vonage;
    const TEMPLATE: &'static str = "POST /sms/json";

    type Settings = Settings;
    type Credential = Credential;
    type Account = Credential;

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        Ok(Self {
            https: Https::new(settings.ca_file.as_deref(), settings.timeout_ms, common)?,
            url: https::url(&settings.endpoint, "/sms/json")?,
        })
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
    }

    fn account(&self, credential: Credential) -> Result<Credential, BadCredential> {
        Ok(credential)
    }

    fn name(account: &Credential) -> String {
        account.api_key.clone()
    }

    /// Vonage knows no key by which it would recognize a repeated request, so an answer that is lost leaves the message in
    /// doubt.
    async fn attempt(&self, account: &Credential, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let (Target::Phone(phone), Some(sms)) = (&attempt.address.target, attempt.message.sms()) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        let (post, left) = (self.https.post(self.url.clone()), attempt.left(self.https.now()));
        let receipts = Receipts {
            reference: attempt.reference().unwrap_or_else(|| attempt.delivery.to_string()),
            callback: attempt.callback_url(Provider::Vonage),
        };
        let request = match request(post, account, phone, sms, receipts, left) {
            Ok(request) => request,
            Err(outcome) => return outcome,
        };
        progress.decides_in_body = true;
        let judge = |answer: &https::Answer| judge(answer.status, answer.body.as_deref(), answer.retry_after);
        self.https.ask(request, progress, judge).await
    }
}
