//! Sends text messages to Twilio.

use std::time::Duration;

use reqwest::Url;
use shared::{
    address::Target,
    provider::{Provider, twilio::Credential},
};

use super::{
    config::{Account, Settings},
    outcome::judge,
    request::request,
};
use crate::providers::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
    outcome::WRONG_TARGET,
    transport::https::{self, Https, basic},
};

/// Twilio, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Twilio {
    https: Https,
    base: Url,
}

impl Carrier for Twilio {
    const PROVIDER: Provider = Provider::Twilio;
    const TEMPLATE: &'static str = "POST /2010-04-01/Accounts/{account}/Messages.json";

    type Settings = Settings;
    type Credential = Credential;
    type Account = Account;

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        Ok(Self {
            https: Https::new(settings.ca_file.as_deref(), settings.timeout_ms, common)?,
            base: https::base(&settings.endpoint)?,
        })
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
    }

    fn account(&self, credential: Credential) -> Result<Account, BadCredential> {
        let sid = credential.account_sid;
        let user = credential.api_key_sid.as_ref().unwrap_or(&sid);
        let url = self.base.join(&format!("2010-04-01/Accounts/{sid}/Messages.json"));
        Ok(Account {
            url: url.map_err(|_| BadCredential::new("account_sid", "must be the SID of an account"))?,
            authorization: basic(user, credential.secret.reveal())
                .ok_or(BadCredential::new("secret", "must be text"))?,
            messaging_service_sid: credential.messaging_service_sid,
            sid,
        })
    }

    fn name(account: &Account) -> String {
        account.sid.clone()
    }

    /// Twilio knows no key by which it would recognize a repeated request, so an answer that is lost leaves the message in
    /// doubt.
    async fn attempt(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let (Target::Phone(phone), Some(sms)) = (&attempt.address.target, attempt.message.sms()) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        let post = self.https.post(account.url.clone());
        let (left, callback) = (
            attempt.left(self.https.now()),
            attempt.callback_url_with_reference(Provider::Twilio),
        );
        let request = match request(post, account, phone, sms, left, callback) {
            Ok(request) => request,
            Err(outcome) => return outcome,
        };
        let judge = |answer: &https::Answer| judge(answer.status, answer.body.as_deref(), answer.retry_after);
        self.https.ask(request, progress, judge).await
    }
}
