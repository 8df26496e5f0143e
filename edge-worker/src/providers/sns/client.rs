//! Publishes to Amazon SNS.

use std::time::Duration;

use aws_credential_types::Credentials;
use shared::{
    address::{Address, Target},
    provider::{Provider, sns::Credential},
};

use super::{
    config::{Account, Settings},
    outcome::judge,
    request::{push, request, text},
};
use crate::providers::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::{Carrier, Common},
    outcome::WRONG_TARGET,
    transport::https::{self, Https},
};

/// Amazon SNS, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Sns {
    https: Https,
    /// With `{region}`.
    endpoint: String,
}

impl Carrier for Sns {
    const PROVIDER: Provider = Provider::Sns;
    const TEMPLATE: &'static str = "POST /?Action=Publish";
    /// A key may publish to the one and not to the other.
    const ENVIRONMENTS: &'static [Option<&'static str>] = &[Some("push"), Some("sms")];

    type Settings = Settings;
    type Credential = Credential;
    type Account = Account;

    fn new(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        https::base(&in_region(&settings.endpoint, "us-east-1"))?;
        Ok(Self {
            https: Https::new(settings.ca_file.as_deref(), settings.timeout_ms, common)?,
            endpoint: settings.endpoint.clone(),
        })
    }

    fn timeout(settings: &Settings) -> Duration {
        Duration::from_millis(settings.timeout_ms)
    }

    fn account(&self, credential: Credential) -> Result<Account, BadCredential> {
        let Credential {
            region,
            access_key_id,
            secret_access_key,
        } = credential;
        let url = https::base(&in_region(&self.endpoint, &region));
        Ok(Account {
            name: format!("{region}/{access_key_id}"),
            url: url.map_err(|_| BadCredential::new("region", "must be a region of AWS"))?,
            region,
            credentials: Credentials::new(access_key_id, secret_access_key.reveal(), None, None, "peal"),
        })
    }

    fn name(account: &Account) -> String {
        account.name.clone()
    }

    fn environment(address: &Address) -> usize {
        usize::from(matches!(address.target, Target::Phone(_)))
    }

    /// SNS knows no key by which it would recognize a repeated request, so an answer that is lost leaves the message in doubt.
    async fn attempt(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let now = self.https.now();
        let message = attempt.message;
        let form = match (&attempt.address.target, message.push(), message.sms()) {
            (Target::Sns(target), Some(content), _) => {
                push(target, content, &message.collapse_id(content), attempt.left(now))
            }
            (Target::Phone(phone), _, Some(content)) => text(phone, content),
            _ => return Outcome::rejected(WRONG_TARGET),
        };
        let Some(request) = request(self.https.post(account.url.clone()), account, &form, now) else {
            return Outcome::credential("cannot_sign", None);
        };
        let judge = |answer: &https::Answer| judge(answer.status, answer.body.as_deref(), answer.retry_after);
        self.https.ask(request, progress, judge).await
    }
}

fn in_region(endpoint: &str, region: &str) -> String {
    endpoint.replace("{region}", region)
}
