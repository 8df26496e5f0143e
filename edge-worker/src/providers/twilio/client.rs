//! Sends text messages to Twilio.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use reqwest::{Client, Url};
use shared::{address::Target, clock::Clock, provider::twilio::Credential};

use super::{
    config::{Account, Settings},
    outcome::judge,
    request::request,
};
use crate::providers::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::Common,
    outcome::WRONG_TARGET,
    transport::{https, retry_after::retry_after},
};

/// Twilio's answers have about a thousand bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Twilio, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Twilio {
    client: Client,
    base: Url,
    clock: Clock,
}

impl Twilio {
    pub(super) fn connect(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        Ok(Self {
            client: https::client(settings.ca_file.as_deref(), https::connect_within(settings.timeout_ms))?,
            base: https::base(&settings.endpoint)?,
            clock: common.clock.clone(),
        })
    }

    /// Prepares the use of a credential that gateways have checked.
    pub(super) fn open(&self, credential: &Credential) -> Result<Account, BadCredential> {
        let sid = &credential.account_sid;
        let user = credential.api_key_sid.as_ref().unwrap_or(sid);
        let basic = STANDARD.encode(format!("{user}:{}", credential.secret.reveal()));
        let mut authorization = HeaderValue::try_from(format!("Basic {basic}"))
            .map_err(|_| BadCredential::new("secret", "must be text"))?;
        authorization.set_sensitive(true);
        let url = self.base.join(&format!("2010-04-01/Accounts/{sid}/Messages.json"));
        Ok(Account {
            url: url.map_err(|_| BadCredential::new("account_sid", "must be the SID of an account"))?,
            sid: sid.clone(),
            authorization,
            messaging_service_sid: credential.messaging_service_sid.clone(),
        })
    }

    /// Sends the message. Twilio knows no key by which it would recognize a repeated request, so an answer that is lost
    /// leaves the message in doubt.
    pub(super) async fn send(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let (Target::Phone(phone), Some(sms)) = (&attempt.address.target, attempt.message.sms()) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        let now = self.clock.now();
        let left = Duration::try_from(attempt.expires_at.duration_since(now)).unwrap_or_default();
        let request = match request(&self.client, account, phone, sms, left) {
            Ok(request) => request,
            Err(outcome) => return outcome,
        };
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
