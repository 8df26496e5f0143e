//! Sends mails to Mailchimp Transactional.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use reqwest::Url;
use shared::{
    address::Target,
    provider::{Provider, mailchimp::Credential},
};

use super::{
    config::{Account, Settings},
    outcome::judge,
    request::body,
};
use crate::providers::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
    outcome::WRONG_TARGET,
    transport::https::{self, Https},
};

/// Mailchimp Transactional, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Mailchimp {
    https: Https,
    url: Url,
}

impl Carrier for Mailchimp {
    const PROVIDER: Provider = Provider::Mailchimp;
    const TEMPLATE: &'static str = "POST /api/1.0/messages/send";

    type Settings = Settings;
    type Credential = Credential;
    type Account = Account;

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        Ok(Self {
            https: Https::new(settings.ca_file.as_deref(), settings.timeout_ms, common)?,
            url: https::url(&settings.endpoint, "/api/1.0/messages/send")?,
        })
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
    }

    fn account(&self, credential: Credential) -> Result<Account, BadCredential> {
        Ok(Account::new(credential))
    }

    fn name(account: &Account) -> String {
        account.name.clone()
    }

    /// Mailchimp knows no key by which it would recognize a repeated request, so an answer that is lost leaves the mail in
    /// doubt.
    async fn attempt(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let (Target::Email(mailbox), Some(email)) = (&attempt.address.target, attempt.message.email()) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        let Some(body) = body(account, attempt, email, mailbox) else {
            return Outcome::rejected("no_sender");
        };
        let request = self.https.post(self.url.clone());
        let request = request.header(CONTENT_TYPE, "application/json").body(body);
        progress.decides_in_body = true;
        let judge = |answer: &https::Answer| judge(answer.status, answer.body.as_deref(), answer.retry_after);
        self.https.ask(request, progress, judge).await
    }
}
