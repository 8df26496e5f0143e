//! Making attempts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use h2::RecvStream;
use http::{HeaderMap, HeaderName, StatusCode};
use shared::clock::Clock;
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::ClientConfig;

use super::{
    config::{Account, ApnsAccount, Settings},
    connection::{Connection, NoAnswer, read},
    dial::Host,
    outcome::{Circumstances, Remedy, Verdict, judge},
    pool::Pool,
    request::request,
    team::Team,
    token::ProviderToken,
};
use crate::providers::{
    Attempt, Attempted, BadCredential, BadTrust, Outcome, endpoints::Endpoints, retry_after::retry_after, tls,
};

/// How often a push is sent again at once, if it provably was not processed.
const MOST_REPEATS: u32 = 2;

/// Apple's refusals are some hundred bytes.
const MOST_BODY: usize = 16 * 1024;

static APNS_ID: HeaderName = HeaderName::from_static("apns-id");
static APNS_UNIQUE_ID: HeaderName = HeaderName::from_static("apns-unique-id");

/// APNs, for all apps.
#[derive(Debug)]
pub(in crate::providers) struct Apns {
    production: Arc<Endpoints<Arc<Host>>>,
    sandbox: Arc<Endpoints<Arc<Host>>>,
    tls: Arc<ClientConfig>,
    connections: usize,
    timeout: Duration,
    clock: Clock,
    /// By team id and key id; apps of one team share what is here.
    teams: Mutex<HashMap<(String, String), Weak<Team>>>,
    nowhere: Arc<str>,
}

/// How far an attempt has come; read when its time is up.
struct Progress {
    endpoint: Arc<str>,
    status: Option<u16>,
    sent: bool,
}

impl Apns {
    pub(in crate::providers) fn new(settings: &Settings, clock: Clock) -> Result<Self, BadTrust> {
        Ok(Self {
            production: endpoints(&settings.production)?,
            sandbox: endpoints(&settings.sandbox)?,
            tls: tls::http2_config(settings.ca_file.as_deref())?,
            connections: settings.connections,
            timeout: Duration::from_millis(settings.timeout_ms),
            clock,
            teams: Mutex::default(),
            nowhere: "".into(),
        })
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
        let pool = |endpoints: &Arc<Endpoints<_>>| {
            Pool::new(endpoints.clone(), self.tls.clone(), self.connections, self.timeout / 2)
        };
        Ok(Arc::new(Team::new(token, pool(&self.production), pool(&self.sandbox))))
    }

    pub(in crate::providers) async fn deliver(&self, account: &Account, attempt: &Attempt<'_>) -> Attempted {
        let started = Instant::now();
        let pool = account.team.pool(attempt.address.environment);
        let mut progress = Progress {
            endpoint: self.nowhere.clone(),
            status: None,
            sent: false,
        };
        let outcome = match timeout(self.timeout, self.attempt(account, pool, attempt, &mut progress)).await {
            Ok(outcome) => outcome,
            Err(_) => progress.timed_out(),
        };
        Attempted {
            outcome,
            status: progress.status,
            endpoint: progress.endpoint,
            took: started.elapsed(),
        }
    }

    async fn attempt(
        &self,
        account: &Account,
        pool: &Arc<Pool>,
        attempt: &Attempt<'_>,
        progress: &mut Progress,
    ) -> Outcome {
        let mut token = account.team.token.current();
        let mut avoid = None;
        let mut repeats = 0;
        let mut remedied = false;
        loop {
            let mut lease = match pool.lease(avoid).await {
                Ok(lease) => lease,
                Err(unreachable) => {
                    progress.endpoint = unreachable.endpoint;
                    return Outcome::endpoint(unreachable.reason, None);
                }
            };
            let connection = lease.connection().clone();
            let request = match request(account, attempt, &connection.host.authority, &token.header) {
                Ok(request) => request,
                Err(reason) => return Outcome::rejected(reason),
            };
            progress.sent(&connection);
            let unprocessed = match lease.send(request).await {
                Ok(answer) => {
                    let status = answer.status();
                    progress.status = Some(status.as_u16());
                    if status == StatusCode::OK {
                        return Outcome::Accepted {
                            provider_id: provider_id(answer.headers()),
                        };
                    }
                    let verdict = self.judge(account, status, answer).await;
                    if matches!(verdict.remedy, Remedy::Reconnect | Remedy::Leave) {
                        pool.retire(connection.id);
                    }
                    if remedied {
                        return verdict.outcome;
                    }
                    match verdict.remedy {
                        Remedy::None | Remedy::Leave => return verdict.outcome,
                        Remedy::Reconnect => {}
                        Remedy::NewToken => match account.team.token.after_expired(&token) {
                            Ok(another) => token = another,
                            Err(_) => return verdict.outcome,
                        },
                    }
                    remedied = true;
                    continue;
                }
                Err(NoAnswer::Broken) => return Outcome::ambiguous("connection_lost"),
                Err(NoAnswer::Refused) => {
                    avoid = Some(connection.id);
                    Outcome::retry_later("refused_stream", None)
                }
                Err(NoAnswer::Unsent) => {
                    pool.retire(connection.id);
                    Outcome::endpoint("connection_closed", None)
                }
            };
            progress.sent = false;
            if repeats == MOST_REPEATS {
                return unprocessed;
            }
            repeats += 1;
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

impl Progress {
    fn sent(&mut self, connection: &Arc<Connection>) {
        self.endpoint = connection.host.name.clone();
        self.status = None;
        self.sent = true;
    }

    fn timed_out(&self) -> Outcome {
        match (self.sent, self.status) {
            // Refused, but the rest of the answer, which says why, did not come.
            (true, Some(_)) => Outcome::retry_later("answer_incomplete", None),
            (true, None) => Outcome::ambiguous("timeout"),
            (false, _) => Outcome::endpoint("no_stream_free", None),
        }
    }
}

fn provider_id(headers: &HeaderMap) -> Option<String> {
    // Only the sandbox has the unique id, with which Apple's console finds the push.
    let id = headers.get(&APNS_UNIQUE_ID).or_else(|| headers.get(&APNS_ID))?;
    id.to_str().ok().map(str::to_owned)
}

fn endpoints(names: &[String]) -> Result<Arc<Endpoints<Arc<Host>>>, BadTrust> {
    let parse = |name: &String| {
        Host::parse(name)
            .map(Arc::new)
            .ok_or_else(|| BadTrust::Endpoint(name.clone(), "host:port"))
    };
    Ok(Arc::new(Endpoints::new(
        names.iter().map(parse).collect::<Result<Vec<_>, _>>()?,
    )))
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
