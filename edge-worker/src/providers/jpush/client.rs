//! Sends pushes to JPush.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::Url;
use serde_json::{Map, Value, json};
use shared::{
    address::Target,
    provider::{
        Provider,
        jpush::{Credential, render},
    },
};

use super::{
    config::{Account, Settings},
    outcome::{is_about_cid, judge},
};
use crate::providers::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
    outcome::WRONG_TARGET,
    transport::https::{self, Answer, Https, basic},
};

/// JPush, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct JPush {
    https: Https,
    url: Url,
}

impl Carrier for JPush {
    const PROVIDER: Provider = Provider::JPush;
    const TEMPLATE: &'static str = "POST /v3/push";

    type Settings = Settings;
    type Credential = Credential;
    type Account = Account;

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        Ok(Self {
            https: Https::new(settings.ca_file.as_deref(), settings.timeout_ms, common)?,
            url: https::url(&settings.endpoint, "/v3/push")?,
        })
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
    }

    fn account(&self, credential: Credential) -> Result<Account, BadCredential> {
        let authorization = basic(&credential.app_key, credential.master_secret.reveal());
        Ok(Account {
            authorization: authorization.ok_or(BadCredential::new("master_secret", "must be text"))?,
            app_key: credential.app_key,
        })
    }

    fn name(account: &Account) -> String {
        account.app_key.clone()
    }

    /// One registration id in each request: JPush refuses a request as a whole for one bad id. JPush does not send twice what has
    /// the same `cid`, so the one of a delivery makes its repeat harmless. JPush wants `cid`s that it has issued, in the form that
    /// these have too; should it refuse one, the push is sent without.
    async fn attempt(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let (Target::JPush(target), Some(push)) = (&attempt.address.target, attempt.message.push()) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        let collapse_id = attempt.message.collapse_id(push);
        let mut request = render(push, &collapse_id, attempt.left(self.https.now()).as_secs());
        request.insert("audience".into(), json!({ "registration_id": [target.token.reveal()] }));
        request.insert("cid".into(), format!("{}-{}", account.app_key, attempt.delivery).into());
        let mut answered = self.send(account, &request, progress).await;
        if answered
            .as_ref()
            .is_ok_and(|answer| is_about_cid(answer.status, answer.body.as_deref()))
        {
            progress.sent = false;
            request.remove("cid");
            answered = self.send(account, &request, progress).await;
        }
        let judge = |answer: Answer| {
            let body = answer.body.as_deref();
            judge(answer.status, &answer.headers, body, answer.retry_after)
        };
        answered.map_or_else(|outcome| outcome, judge)
    }
}

impl JPush {
    async fn send(
        &self,
        account: &Account,
        body: &Map<String, Value>,
        progress: &mut Progress,
    ) -> Result<Answer, Outcome> {
        let request = self
            .https
            .post(self.url.clone())
            .header(AUTHORIZATION, account.authorization.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(body).expect("JSON always serializes"));
        let request = request.build().map_err(|_| Outcome::rejected("malformed"))?;
        self.https.exchange(request, progress).await
    }
}
