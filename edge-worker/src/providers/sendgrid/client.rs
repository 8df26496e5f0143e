//! Sends mails to `SendGrid`.

use http::{
    HeaderValue,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use reqwest::{Client, Url};
use shared::{address::Target, clock::Clock, provider::sendgrid::Credential};

use super::{
    config::{Account, Settings},
    outcome::judge,
    request::body,
};
use crate::providers::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::Common,
    outcome::{WRONG_TARGET, fingerprint},
    transport::{https, retry_after::retry_after},
};

/// `SendGrid`'s refusals have some hundred bytes for each fault.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// `SendGrid`, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct SendGrid {
    client: Client,
    url: Url,
    eu_url: Url,
    clock: Clock,
}

impl SendGrid {
    pub(super) fn connect(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        let url = |base: &str| {
            let mut url = https::base(base)?;
            url.set_path("/v3/mail/send");
            Ok(url)
        };
        Ok(Self {
            client: https::client(settings.ca_file.as_deref(), https::connect_within(settings.timeout_ms))?,
            url: url(&settings.endpoint)?,
            eu_url: url(&settings.eu_endpoint)?,
            clock: common.clock.clone(),
        })
    }

    /// Prepares the use of a credential that gateways have checked.
    pub(super) fn open(&self, credential: &Credential) -> Result<Account, BadCredential> {
        let key = credential.api_key.reveal();
        let mut authorization = HeaderValue::try_from(format!("Bearer {key}"))
            .map_err(|_| BadCredential::new("api_key", "must be text"))?;
        authorization.set_sensitive(true);
        Ok(Account {
            name: fingerprint(key),
            url: if credential.eu { &self.eu_url } else { &self.url }.clone(),
            authorization,
        })
    }

    /// Sends one mail. `SendGrid` knows no key by which it would recognize a repeated request, so an answer that is lost
    /// leaves the mail in doubt.
    pub(super) async fn send(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let (Target::Email(mailbox), Some(email)) = (&attempt.address.target, attempt.message.email()) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        let Some(body) = body(attempt, email, mailbox) else {
            return Outcome::rejected("no_sender");
        };
        let request = self
            .client
            .post(account.url.clone())
            .header(AUTHORIZATION, account.authorization.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let Ok(request) = request.build() else {
            return Outcome::rejected("malformed");
        };
        match https::exchange(&self.client, request, progress, MAX_ANSWER_BYTES).await {
            Ok(answer) => judge(
                answer.status.as_u16(),
                &answer.headers,
                answer.body.as_deref().unwrap_or_default(),
                retry_after(&answer.headers, self.clock.now()),
                self.clock.now(),
            ),
            Err(outcome) => outcome,
        }
    }
}
