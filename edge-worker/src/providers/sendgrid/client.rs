//! Sends mails to `SendGrid`.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::Url;
use shared::{
    address::Target,
    provider::{Provider, sendgrid::Credential},
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
    outcome::{WRONG_TARGET, fingerprint},
    transport::https::{self, Https, secret_header},
};

/// `SendGrid`, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct SendGrid {
    https: Https,
    url: Url,
    eu_url: Url,
}

impl Carrier for SendGrid {
    const PROVIDER: Provider = Provider::SendGrid;
    const TEMPLATE: &'static str = "POST /v3/mail/send";

    type Settings = Settings;
    type Credential = Credential;
    type Account = Account;

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        Ok(Self {
            https: Https::new(settings.ca_file.as_deref(), settings.timeout_ms, common)?,
            url: https::url(&settings.endpoint, "/v3/mail/send")?,
            eu_url: https::url(&settings.eu_endpoint, "/v3/mail/send")?,
        })
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
    }

    fn account(&self, credential: Credential) -> Result<Account, BadCredential> {
        let key = credential.api_key.reveal();
        Ok(Account {
            name: fingerprint(key),
            url: if credential.eu { &self.eu_url } else { &self.url }.clone(),
            authorization: secret_header(format!("Bearer {key}"))
                .ok_or(BadCredential::new("api_key", "must be text"))?,
        })
    }

    fn name(account: &Account) -> String {
        account.name.clone()
    }

    /// `SendGrid` knows no key by which it would recognize a repeated request, so an answer that is lost leaves the mail in
    /// doubt.
    async fn attempt(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let (Target::Email(mailbox), Some(email)) = (&attempt.address.target, attempt.message.email()) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        let Some(body) = body(attempt, email, mailbox) else {
            return Outcome::rejected("no_sender");
        };
        let request = self.https.post(account.url.clone());
        let request = request
            .header(AUTHORIZATION, account.authorization.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let judge = |answer: &https::Answer| {
            let body = answer.body.as_deref().unwrap_or_default();
            judge(answer.status, &answer.headers, body, answer.retry_after, answer.at)
        };
        self.https.ask(request, progress, judge).await
    }
}
