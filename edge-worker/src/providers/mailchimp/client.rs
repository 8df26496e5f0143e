//! Sends mails to Mailchimp Transactional.

use http::header::CONTENT_TYPE;
use reqwest::{Client, Url};
use shared::{address::Target, clock::Clock};

use super::{
    config::{Account, Settings},
    outcome::judge,
    request::body,
};
use crate::providers::{
    Attempt, BadSettings, Outcome,
    attempt::Progress,
    carrier::Common,
    outcome::WRONG_TARGET,
    transport::{https, retry_after::retry_after},
};

/// Mailchimp's answers have some hundred bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Mailchimp Transactional, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Mailchimp {
    client: Client,
    url: Url,
    clock: Clock,
}

impl Mailchimp {
    pub(super) fn connect(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        let mut url = https::base(&settings.endpoint)?;
        url.set_path("/api/1.0/messages/send");
        Ok(Self {
            client: https::client(settings.ca_file.as_deref(), https::connect_within(settings.timeout_ms))?,
            url,
            clock: common.clock.clone(),
        })
    }

    /// Sends one mail. Mailchimp knows no key by which it would recognize a repeated request, so an answer that is lost
    /// leaves the mail in doubt.
    pub(super) async fn send(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let (Target::Email(mailbox), Some(email)) = (&attempt.address.target, attempt.message.email()) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        let Some(body) = body(account, attempt, email, mailbox) else {
            return Outcome::rejected("no_sender");
        };
        let request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let Ok(request) = request.build() else {
            return Outcome::rejected("malformed");
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
