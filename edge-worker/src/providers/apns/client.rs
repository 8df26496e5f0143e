//! Sends pushes to APNs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use h2::RecvStream;
use http::{HeaderMap, HeaderName, StatusCode};
use shared::provider::apns::Credential;
use shared::{clock::Clock, provider::Provider};

use super::{
    Device,
    config::{Account, Settings},
    outcome::{Circumstances, Remedy, Verdict, judge},
    request::request,
    team::Team,
    token::ProviderToken,
};
use crate::providers::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    carrier::Common,
    outcome::WRONG_TARGET,
    transport::{
        endpoints::Endpoints,
        http2::{Exchanged, Host, Network, Pool, exchange, read},
        retry_after::retry_after,
        tls,
    },
};

/// Apple's refusals have a few hundred bytes.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

static APNS_ID: HeaderName = HeaderName::from_static("apns-id");
static APNS_UNIQUE_ID: HeaderName = HeaderName::from_static("apns-unique-id");

/// APNs, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Apns {
    production: Arc<Network>,
    sandbox: Arc<Network>,
    connections: usize,
    /// How long a connection may be silent while an answer is awaited.
    patience: Duration,
    clock: Clock,
    /// By team id and key id. Apps with the same key share a team.
    teams: Mutex<HashMap<(String, String), Weak<Team>>>,
}

impl Apns {
    pub(super) fn connect(settings: &Settings, common: &Common) -> Result<Self, BadSettings> {
        let Common { endpoints, clock, .. } = common;
        let tls = tls::http2_config(settings.ca_file.as_deref())?;
        let network = |environment, names: &[String]| {
            let hosts = hosts(names)?;
            let endpoints = Endpoints::new(Provider::Apns, Some(environment), hosts, *endpoints, clock.clone());
            Ok(Network::new(endpoints, tls.clone()))
        };
        Ok(Self {
            production: network("production", &settings.production)?,
            sandbox: network("sandbox", &settings.sandbox)?,
            connections: settings.connections,
            patience: Duration::from_millis(settings.timeout_ms) / 2,
            clock: clock.clone(),
            teams: Mutex::default(),
        })
    }

    /// The networks of production and sandbox, in this order.
    pub(super) fn networks(&self) -> [Arc<Network>; 2] {
        [self.production.clone(), self.sandbox.clone()]
    }

    /// Checks `credential` and prepares its use. Credentials with the same key share connections and a provider token.
    pub(super) fn open(&self, credential: &Credential) -> Result<Account, BadCredential> {
        check_id("team_id", &credential.team_id)?;
        check_id("key_id", &credential.key_id)?;
        let mut teams = self.teams.lock().unwrap_or_else(PoisonError::into_inner);
        let known = teams
            .get(&(credential.team_id.clone(), credential.key_id.clone()))
            .and_then(Weak::upgrade);
        let team = match known {
            Some(team) if team.token.is_of(credential.private_key.reveal()) => team,
            _ => self.team(credential)?,
        };
        let usable = Account::new(team.clone(), credential)?;
        teams.retain(|_, team| team.strong_count() > 0);
        teams.insert(
            (credential.team_id.clone(), credential.key_id.clone()),
            Arc::downgrade(&team),
        );
        Ok(usable)
    }

    fn team(&self, credential: &Credential) -> Result<Arc<Team>, BadCredential> {
        let token = ProviderToken::new(
            credential.team_id.clone(),
            credential.key_id.clone(),
            credential.private_key.reveal(),
            self.clock.clone(),
        )?;
        let pool = |network: &Arc<Network>| Pool::new(network.clone(), self.connections, self.patience);
        Ok(Arc::new(Team::new(token, pool(&self.production), pool(&self.sandbox))))
    }

    /// Sends the push; sends it once more if a remedy for the refusal exists.
    pub(super) async fn send(&self, account: &Account, attempt: &Attempt<'_>, progress: &mut Progress) -> Outcome {
        let Some(device) = Device::of(attempt) else {
            return Outcome::rejected(WRONG_TARGET);
        };
        let pool = account.team.pool(device.environment);
        let mut token = account.team.token.current();
        let mut remedied = false;
        loop {
            let make = |authority: &_| request(account, attempt, &device, authority, &token.header);
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
            // After a change of the token that came too soon, Apple takes nothing on the connection for a while.
            if matches!(
                verdict.remedy,
                Remedy::Reconnect | Remedy::LeaveConnection | Remedy::FormerToken
            ) {
                lease.leave_connection();
            }
            let helps = match verdict.remedy {
                Remedy::None | Remedy::LeaveConnection => false,
                Remedy::Reconnect => true,
                Remedy::LaterToken => {
                    token = account.team.token.after_expired(&token);
                    true
                }
                Remedy::FormerToken => match account.team.token.former(&token) {
                    Some(former) => {
                        token = former;
                        true
                    }
                    None => false,
                },
                Remedy::TokenByClock => {
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
        match read(answer.into_body(), MAX_ANSWER_BYTES).await {
            Some(body) => judge(&body, &at),
            None => Outcome::retry_later("answer_incomplete", at.retry_after).into(),
        }
    }
}

fn provider_id(headers: &HeaderMap) -> Option<String> {
    // Only the sandbox returns `apns-unique-id`, by which Apple's console finds the push.
    let id = headers.get(&APNS_UNIQUE_ID).or_else(|| headers.get(&APNS_ID))?;
    id.to_str().ok().map(str::to_owned)
}

fn hosts(names: &[String]) -> Result<Vec<Arc<Host>>, BadSettings> {
    let parse = |name: &String| {
        Host::parse(name)
            .map(Arc::new)
            .ok_or_else(|| BadSettings::Endpoint(name.clone(), "host:port"))
    };
    names.iter().map(parse).collect()
}

/// Apple's team ids and key ids have ten letters and digits.
fn check_id(field: &'static str, id: &str) -> Result<(), BadCredential> {
    let is_valid = id.len() == 10 && id.bytes().all(|b| b.is_ascii_alphanumeric());
    if is_valid {
        Ok(())
    } else {
        Err(BadCredential::new(field, "must be 10 letters and digits"))
    }
}
