//! Sends pushes to Huawei.

use std::time::Duration;

use http::HeaderValue;
use reqwest::{Client, Url};
use shared::{
    address::{Address, Target},
    clock::Clock,
    content::push::Push,
    provider::{
        Provider,
        hms::{self, Credential, Generation},
    },
};

use super::{
    config::{Account, Settings},
    outcome::judge,
    request::request,
    token::ServiceToken,
};
use crate::providers::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
    outcome::WRONG_TARGET,
    transport::{
        access_token::{AccessToken, Granting, Verdict},
        https::{self, Https},
    },
};

/// Huawei Push Kit, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Hms {
    https: Https,
    base: Url,
    token_url: Url,
    tokens: Client,
    /// How long fetching an access token may take.
    token_within: Duration,
    clock: Clock,
}

impl Carrier for Hms {
    const PROVIDER: Provider = Provider::Hms;
    const TEMPLATE: &'static str = "POST /{version}/{project}/messages:send";
    /// Each generation has a part of the credential, which may be missing or fail by itself.
    const ENVIRONMENTS: &'static [Option<&'static str>] = &[Some("v3"), Some("v1")];

    type Settings = Settings;
    type Credential = Credential;
    type Account = Account;

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        let ca_file = settings.ca_file.as_deref();
        Ok(Self {
            https: Https::new(ca_file, settings.timeout_ms, common)?,
            base: https::base(&settings.endpoint)?,
            token_url: https::url(&settings.oauth_endpoint, "/oauth2/v3/token")?,
            tokens: https::client(ca_file, https::connect_within(settings.timeout_ms))?,
            token_within: Duration::from_millis(settings.timeout_ms) / 2,
            clock: common.clock.clone(),
        })
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
    }

    fn account(&self, credential: Credential) -> Result<Account, BadCredential> {
        let url = |version: &str, id: &str, field| {
            let path = format!("/{version}/{id}/messages:send");
            self.base
                .join(&path)
                .map_err(|_| BadCredential::new(field, "must be an id"))
        };
        let mut name = String::new();
        let third = match credential.service_account {
            Some(file) => {
                let (project, token) = ServiceToken::new(file.reveal(), self.clock.now())?;
                let url = url("v3", &project, "service_account")?;
                name = project;
                Some((url, token))
            }
            None => None,
        };
        let first = match (credential.client_id, credential.client_secret) {
            (Some(client), Some(secret)) => {
                let url = match &credential.project_id {
                    Some(project) => url("v2", project, "project_id")?,
                    None => url("v1", &client, "client_id")?,
                };
                name.clone_from(&client);
                let form = [
                    ("grant_type", "client_credentials".to_owned()),
                    ("client_id", client),
                    ("client_secret", secret.reveal().to_owned()),
                ];
                let token = AccessToken::new(
                    Granting {
                        provider: Provider::Hms,
                        url: self.token_url.clone(),
                        form: Box::new(move |_| Some(form.clone().into())),
                    },
                    self.tokens.clone(),
                    self.token_within,
                    self.clock.clone(),
                );
                Some((url, token))
            }
            _ => None,
        };
        Ok(Account { name, third, first })
    }

    fn name(account: &Account) -> String {
        account.name.clone()
    }

    fn environment(address: &Address) -> usize {
        match &address.target {
            Target::Hms(target) if target.generation == Generation::First => 1,
            _ => 0,
        }
    }

    /// A repeated push replaces the first on the device, where it shows. Sends once more with another access token if the first
    /// has expired.
    async fn attempt(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let (Target::Hms(target), Some(push)) = (&attempt.address.target, attempt.message.push()) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        progress.decides_in_body = true;
        match (target.generation, &account.third, &account.first) {
            (Generation::Third, Some((url, token)), _) => match token.header(self.clock.now()) {
                Some(header) => self.send(url, header, target, push, attempt, progress).await.outcome,
                None => Outcome::credential("cannot_sign", None),
            },
            (Generation::First, _, Some((url, token))) => {
                progress.endpoint = token.endpoint.clone();
                let granted = match token.current().await {
                    Ok(granted) => granted,
                    Err(outcome) => return outcome,
                };
                let first = self
                    .send(url, granted.header.clone(), target, push, attempt, progress)
                    .await;
                if !first.renew_token {
                    return first.outcome;
                }
                progress.sent = false;
                match token.after_refused(&granted).await {
                    Ok(granted) => {
                        let again = self.send(url, granted.header.clone(), target, push, attempt, progress);
                        again.await.outcome
                    }
                    Err(outcome) => outcome.unwrap_or(first.outcome),
                }
            }
            (Generation::Third, None, _) => Outcome::credential("no_service_account", None),
            (Generation::First, _, None) => Outcome::credential("no_client", None),
        }
    }
}

impl Hms {
    async fn send(
        &self,
        url: &Url,
        authorization: HeaderValue,
        target: &hms::Target,
        push: &Push,
        attempt: &Attempt<'_>,
        progress: &mut Progress,
    ) -> Verdict {
        let collapse_id = attempt.message.collapse_id(push);
        let left_s = attempt.left(self.clock.now()).as_secs();
        let post = self.https.post(url.clone());
        let request = match request(post, authorization, target, push, &collapse_id, left_s) {
            Ok(request) => request,
            Err(outcome) => return outcome.into(),
        };
        let Ok(request) = request.build() else {
            return Outcome::rejected("malformed").into();
        };
        match self.https.exchange(request, progress).await {
            Ok(answer) => judge(
                target.generation,
                answer.status,
                answer.body.as_deref(),
                answer.retry_after,
            ),
            Err(outcome) => outcome.into(),
        }
    }
}
