//! Sends pushes to push services.

use std::time::Duration;

use reqwest::{Client, Url};
use shared::{
    clock::Clock,
    provider::web_push::{self, Credential, MAX_PAYLOAD},
};

use super::{
    Browser,
    config::{Account, Settings},
    encrypt::encrypt,
    outcome::{Party, judge},
    request::request,
    vapid::Vapid,
};
use crate::providers::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::Common,
    transport::{
        guard::Guard,
        https::{Answer, exchange, exchange_unnamed},
        retry_after::retry_after,
    },
};

/// Answers have a few hundred bytes.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// Web push, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct WebPush {
    http: Client,
    receivers: Guard,
    settings: Settings,
    clock: Clock,
}

impl WebPush {
    pub(super) fn connect(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        let half = Duration::from_millis(settings.timeout_ms) / 2;
        Ok(Self {
            http: common.receivers.client(settings.ca_file.as_deref(), half)?,
            receivers: common.receivers.clone(),
            settings: settings.clone(),
            clock: common.clock.clone(),
        })
    }

    /// Checks `credential` and prepares its use.
    pub(super) fn open(&self, credential: Credential) -> Result<Account, BadCredential> {
        let bad = |rule| BadCredential::new("private_key", rule);
        let key = credential
            .signing_key()
            .map_err(|_| bad("must be a P-256 private key"))?;
        let vapid = Vapid::new(key, credential.subject, self.clock.clone());
        vapid.header("https://push.example").ok_or_else(|| bad("cannot sign"))?;
        Ok(Account { vapid })
    }

    /// Encrypts the push and posts it.
    pub(super) async fn send(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let Some(Browser { push, target }) = Browser::of(attempt) else {
            return Outcome::rejected("not_a_web_push_address");
        };
        let Ok(endpoint) = Url::parse(target.endpoint.reveal()) else {
            return Outcome::rejected("malformed");
        };
        let party = self.settings.party(endpoint.host_str().unwrap_or_default());
        let is_forbidden = party == Party::Stranger && !self.settings.others;
        if is_forbidden || self.receivers.check(&endpoint).is_err() {
            return Outcome::rejected("forbidden_address");
        }
        let payload = web_push::render(push, &attempt.message.collapse_id(push));
        if payload.len() > MAX_PAYLOAD {
            return Outcome::rejected("too_large");
        }
        let Ok(body) = encrypt(target, &payload) else {
            return Outcome::rejected("malformed");
        };
        let origin = endpoint.origin().ascii_serialization();
        let left = Duration::try_from(attempt.expires_at.duration_since(self.clock.now())).unwrap_or_default();
        let request = account
            .vapid
            .header(&origin)
            .and_then(|token| request(endpoint, token, push, left, body));
        let Some(request) = request else {
            return Outcome::credential("token", None);
        };
        let answer = match party {
            Party::Known => exchange(&self.http, request, progress, MAX_ANSWER_BYTES).await,
            // Its host may tell whose it is.
            Party::Stranger => exchange_unnamed(&self.http, request, progress, MAX_ANSWER_BYTES).await,
        };
        let outcome = match answer {
            Ok(answer) => self.judge(&answer, party),
            Err(outcome) => of_party(outcome, party),
        };
        if matches!(outcome, Outcome::CredentialTrouble { .. }) {
            account.vapid.refused(&origin);
        }
        outcome
    }

    fn judge(&self, answer: &Answer, party: Party) -> Outcome {
        let asked = retry_after(&answer.headers, self.clock.now());
        judge(
            answer.status.as_u16(),
            &answer.headers,
            answer.body.as_deref(),
            asked,
            party,
        )
    }
}

/// The outcome of a request without an answer. That a stranger cannot be reached says nothing about a service, and the push
/// must not be tried for as long as it lives.
fn of_party(outcome: Outcome, party: Party) -> Outcome {
    match outcome {
        Outcome::EndpointTrouble { reason, not_before } if party == Party::Stranger => {
            Outcome::RetryLater { reason, not_before }
        }
        outcome => outcome,
    }
}
