//! Sends pushes to push services.

use reqwest::Url;
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
        https::{Https, connect_within},
    },
};

/// Web push, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct WebPush {
    https: Https,
    receivers: Guard,
    settings: Settings,
    clock: Clock,
}

impl WebPush {
    pub(super) fn connect(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        let client = common
            .receivers
            .client(settings.ca_file.as_deref(), connect_within(settings.timeout_ms))?;
        Ok(Self {
            https: Https::with(client, common),
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
        let left = attempt.left(self.clock.now());
        let request = account
            .vapid
            .header(&origin)
            .and_then(|token| request(endpoint, token, push, left, body));
        let Some(request) = request else {
            return Outcome::credential("token", None);
        };
        let answer = match party {
            Party::Known => self.https.exchange(request, progress).await,
            // Its host may tell whose it is.
            Party::Stranger => self.https.exchange_unnamed(request, progress).await,
        };
        let outcome = match answer {
            Ok(answer) => judge(
                answer.status,
                &answer.headers,
                answer.body.as_deref(),
                answer.retry_after,
                party,
            ),
            Err(outcome) => of_party(outcome, party),
        };
        if matches!(outcome, Outcome::CredentialTrouble { .. }) {
            account.vapid.refused(&origin);
        }
        outcome
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
