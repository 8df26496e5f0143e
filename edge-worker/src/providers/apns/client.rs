//! Making attempts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use h2::RecvStream;
use http::{HeaderMap, HeaderName, StatusCode};
use shared::{channel::Provider, clock::Clock, recipient::Environment};
use tokio::time::{Instant, timeout};

use super::{
    config::{Account, ApnsAccount, Settings},
    outcome::{Circumstances, Remedy, Verdict, judge},
    request::request,
    team::Team,
    token::ProviderToken,
};
use crate::providers::{
    Attempt, Attempted, BadCredential, BadTrust, Outcome,
    transport::{
        endpoints::{self, Endpoints},
        http2::{Exchanged, Host, Network, Pool, Progress, exchange, read},
        retry_after::retry_after,
        tls,
    },
};

/// Apple's refusals are some hundred bytes.
const MOST_BODY: usize = 16 * 1024;

static APNS_ID: HeaderName = HeaderName::from_static("apns-id");
static APNS_UNIQUE_ID: HeaderName = HeaderName::from_static("apns-unique-id");

/// APNs, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Apns {
    production: Arc<Network>,
    sandbox: Arc<Network>,
    connections: usize,
    timeout: Duration,
    clock: Clock,
    /// By team id and key id; apps of one team share what is here.
    teams: Mutex<HashMap<(String, String), Weak<Team>>>,
    nowhere: Arc<str>,
}

impl Apns {
    pub(in crate::providers) fn new(
        settings: &Settings,
        endpoints: endpoints::Settings,
        clock: Clock,
    ) -> Result<Self, BadTrust> {
        let tls = tls::http2_config(settings.ca_file.as_deref())?;
        let network = |environment, names: &[String]| {
            let hosts = hosts(names)?;
            let endpoints = Endpoints::new(Provider::Apns, Some(environment), hosts, endpoints, clock.clone());
            Ok(Network::new(endpoints, tls.clone()))
        };
        Ok(Self {
            production: network("production", &settings.production)?,
            sandbox: network("sandbox", &settings.sandbox)?,
            connections: settings.connections,
            timeout: Duration::from_millis(settings.timeout_ms),
            clock,
            teams: Mutex::default(),
            nowhere: "".into(),
        })
    }

    /// How `environment` is reached.
    pub(in crate::providers) fn network(&self, environment: Environment) -> &Arc<Network> {
        match environment {
            Environment::Production => &self.production,
            Environment::Sandbox => &self.sandbox,
        }
    }

    /// Checks `account` and makes it usable. Accounts with the same key share connections and provider token.
    pub(in crate::providers) fn account(&self, account: &ApnsAccount) -> Result<Arc<Account>, BadCredential> {
        check_id("team_id", &account.team_id)?;
        check_id("key_id", &account.key_id)?;
        let mut teams = self.teams.lock().unwrap_or_else(PoisonError::into_inner);
        let known = teams
            .get(&(account.team_id.clone(), account.key_id.clone()))
            .and_then(Weak::upgrade);
        let team = match known {
            Some(team) if team.token.is_of(&account.private_key) => team,
            _ => self.team(account)?,
        };
        let usable = Account::new(team.clone(), account.topic.clone())?;
        teams.retain(|_, team| team.strong_count() > 0);
        teams.insert((account.team_id.clone(), account.key_id.clone()), Arc::downgrade(&team));
        Ok(Arc::new(usable))
    }

    fn team(&self, account: &ApnsAccount) -> Result<Arc<Team>, BadCredential> {
        let token = ProviderToken::new(
            account.team_id.clone(),
            account.key_id.clone(),
            &account.private_key,
            self.clock.clone(),
        )?;
        let pool = |network: &Arc<Network>| Pool::new(network.clone(), self.connections, self.timeout / 2);
        Ok(Arc::new(Team::new(token, pool(&self.production), pool(&self.sandbox))))
    }

    pub(in crate::providers) async fn deliver(&self, account: &Account, attempt: &Attempt<'_>) -> Attempted {
        let started = Instant::now();
        let pool = account.team.pool(attempt.address.environment);
        let mut progress = Progress::none(&self.nowhere);
        let outcome = timeout(self.timeout, self.attempt(account, pool, attempt, &mut progress)).await;
        progress.into_attempted(outcome.ok(), started)
    }

    async fn attempt(
        &self,
        account: &Account,
        pool: &Arc<Pool>,
        attempt: &Attempt<'_>,
        progress: &mut Progress,
    ) -> Outcome {
        let mut token = account.team.token.current();
        let mut remedied = false;
        loop {
            let make = |authority: &_| request(account, attempt, authority, &token.header);
            let Exchanged { answer, lease } = match exchange(pool, progress, make).await {
                Ok(exchanged) => exchanged,
                Err(outcome) => return outcome,
            };
            let status = answer.status();
            if status == StatusCode::OK {
                return Outcome::Accepted {
                    provider_id: provider_id(answer.headers()),
                };
            }
            let verdict = self.judge(account, status, answer).await;
            if matches!(verdict.remedy, Remedy::Reconnect | Remedy::Leave) {
                lease.leave_connection();
            }
            let helps = match verdict.remedy {
                Remedy::None | Remedy::Leave => false,
                Remedy::Reconnect => true,
                Remedy::LaterToken => {
                    token = account.team.token.after_expired(&token);
                    true
                }
                Remedy::ClocksToken => {
                    account.team.token.learn_invalid(&token);
                    false
                }
            };
            if remedied || !helps {
                return verdict.outcome;
            }
            remedied = true;
        }
    }

    async fn judge(&self, account: &Account, status: StatusCode, answer: http::Response<RecvStream>) -> Verdict {
        let at = Circumstances {
            status: status.as_u16(),
            retry_after: retry_after(answer.headers(), self.clock.now()),
            token_wait: account.team.token.wait_to_change(),
        };
        match read(answer.into_body(), MOST_BODY).await {
            Some(body) => judge(&body, &at),
            None => Outcome::retry_later("answer_incomplete", at.retry_after).into(),
        }
    }
}

fn provider_id(headers: &HeaderMap) -> Option<String> {
    // Only the sandbox has the unique id, with which Apple's console finds the push.
    let id = headers.get(&APNS_UNIQUE_ID).or_else(|| headers.get(&APNS_ID))?;
    id.to_str().ok().map(str::to_owned)
}

fn hosts(names: &[String]) -> Result<Vec<Arc<Host>>, BadTrust> {
    let parse = |name: &String| {
        Host::parse(name)
            .map(Arc::new)
            .ok_or_else(|| BadTrust::Endpoint(name.clone(), "host:port"))
    };
    names.iter().map(parse).collect()
}

/// Apple's ids of teams and keys are ten letters and digits.
fn check_id(field: &'static str, id: &str) -> Result<(), BadCredential> {
    let right = id.len() == 10 && id.bytes().all(|b| b.is_ascii_alphanumeric());
    if right {
        Ok(())
    } else {
        Err(BadCredential::new(field, "must be 10 letters and digits"))
    }
}
