//! What surrounds every attempt, whoever the provider: the accounts of the apps, places, allowances, breakers and the
//! time limit.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use jiff::Timestamp;
use shared::{id::AppId, provider::Credential};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Allowance, Attempt, Attempted, BadCredential, BadSettings, BreakerState, Claim, Outcome,
    allowance::Allowances,
    attempt::Progress,
    breaker::Circuit,
    carrier::{Carrier, Common},
    places::{Bulkheads, Places, SLOW_AFTER},
    transport::http2::Network,
};
use crate::limits::ATTEMPT_WITHIN;

/// A provider, as the list of all of them sees it.
pub(super) trait Door: std::fmt::Debug + Send + Sync {
    /// Checks `credential` for `app`. The result puts it in use; until then nothing has changed.
    fn check<'a>(&'a self, app: &'a AppId, credential: Credential) -> Result<PutInUse<'a>, BadCredential>;

    /// Takes its credential from `app`. Attempts under way finish.
    fn forget(&self, app: &AppId);

    /// Whether `app` has a credential here.
    fn admits(&self, app: &AppId) -> bool;

    /// Makes one attempt, within [`ATTEMPT_WITHIN`] and the time that its allowance makes it wait.
    fn deliver<'a>(&'a self, attempt: Attempt<'a>) -> BoxFuture<'a, Attempted>;

    /// How its endpoints are reached.
    fn networks(&self) -> &[Arc<Network>];

    /// Every breaker and whether it is open.
    fn breaker_states(&self) -> Vec<BreakerState>;

    /// What each app states of the limit that `allowance` keeps.
    fn claims(&self, allowance: &Allowance) -> Vec<Claim>;
}

/// Puts a checked credential in use.
pub(super) type PutInUse<'a> = Box<dyn FnOnce() + 'a>;

/// What the desks of one worker share.
#[derive(Debug, Clone)]
pub(super) struct Hall {
    pub(super) common: Common,
    pub(super) allowances: Arc<Allowances>,
    pub(super) bulkheads: Arc<Bulkheads>,
}

/// A provider with the accounts of all apps.
#[derive(Debug)]
pub(super) struct Desk<C: Carrier> {
    carrier: C,
    timeout: Duration,
    hall: Hall,
    networks: Vec<Arc<Network>>,
    accounts: ArcSwap<HashMap<AppId, Arc<Opened<C>>>>,
    /// By credential. Serializes writers of `accounts`; readers never wait. Kept when a credential is forgotten, so that
    /// giving it again does not make a bad one good.
    guards: Mutex<BTreeMap<String, Guard>>,
    nowhere: Arc<str>,
}

/// What guards the attempts with one credential.
#[derive(Debug, Clone)]
struct Guard {
    /// By environment.
    circuits: Arc<[Circuit]>,
    places: Arc<Places>,
}

/// What one app may use.
#[derive(Debug)]
struct Opened<C: Carrier> {
    account: C::Account,
    credential: String,
    guard: Guard,
    /// Absent where nobody grants allowances, and nothing is limited.
    allowance: Option<Arc<Allowance>>,
}

impl<C: Carrier> Desk<C> {
    /// A desk without accounts.
    pub(super) fn new(settings: &C::Settings, hall: &Hall) -> Result<Self, BadSettings> {
        let timeout = C::timeout(settings);
        if timeout > ATTEMPT_WITHIN {
            return Err(BadSettings::Timeout(C::PROVIDER));
        }
        let carrier = C::new(settings, &hall.common)?;
        Ok(Self {
            timeout,
            networks: carrier.networks(),
            carrier,
            hall: hall.clone(),
            accounts: ArcSwap::default(),
            guards: Mutex::default(),
            nowhere: "".into(),
        })
    }

    async fn attempt(&self, attempt: Attempt<'_>) -> Attempted {
        let started_at = self.hall.common.clock.now();
        let Some(opened) = self.accounts.load().get(attempt.app).cloned() else {
            return self.untried(Outcome::credential("no_credential", None), started_at);
        };
        let _place = match opened.guard.places.take() {
            Ok(place) => place,
            Err(outcome) => return self.untried(outcome, started_at),
        };
        if let Some(allowance) = &opened.allowance
            && let Err(outcome) = allowance.take().await
        {
            return self.untried(outcome, started_at);
        }
        let environment = C::environment(attempt.address);
        let circuit = &opened.guard.circuits[environment];
        if let Err(outcome) = circuit.admit() {
            return self.untried(outcome, started_at);
        }
        let attempted = self.ask(&opened, &attempt, started_at).await;
        let network = self.networks.get(environment);
        circuit.learn(&attempted, || {
            network.is_some_and(|network| network.has_another(&attempted.endpoint))
        });
        attempted
    }

    /// Asks the provider, for as long as an attempt may take.
    async fn ask(&self, opened: &Opened<C>, attempt: &Attempt<'_>, started_at: Timestamp) -> Attempted {
        let began = Instant::now();
        let mut progress = Progress::none(&self.nowhere);
        let outcome = {
            let mut answer = pin!(self.carrier.attempt(&opened.account, attempt, &mut progress));
            if let Ok(outcome) = timeout(SLOW_AFTER.min(self.timeout), answer.as_mut()).await {
                Some(outcome)
            } else {
                let _slow = opened.guard.places.slow();
                timeout_at(began + self.timeout, answer).await.ok()
            }
        };
        Attempted {
            outcome: outcome.unwrap_or_else(|| progress.cut_off()),
            status: progress.status,
            endpoint: progress.endpoint,
            took: began.elapsed(),
            ..self.untried(Outcome::Rejected { reason: "".into() }, started_at)
        }
    }

    fn untried(&self, outcome: Outcome, started_at: Timestamp) -> Attempted {
        Attempted {
            outcome,
            provider: C::PROVIDER,
            status: None,
            endpoint: self.nowhere.clone(),
            template: C::TEMPLATE,
            started_at,
            ended_at: self.hall.common.clock.now(),
            took: Duration::ZERO,
        }
    }

    fn open(&self, app: &AppId, account: C::Account) {
        let credential = C::name(&account);
        let mut guards = self.guards();
        let guard = guards
            .entry(credential.clone())
            .or_insert_with(|| self.guard(&credential));
        let opened = Opened {
            guard: guard.clone(),
            allowance: C::limit(&account).and_then(|limit| self.hall.allowances.of(C::PROVIDER, limit.name)),
            credential,
            account,
        };
        self.change(&guards, |all| {
            all.insert(app.clone(), opened.into());
        });
    }

    fn guard(&self, credential: &str) -> Guard {
        let circuit = |environment: Option<&str>| {
            let name = match environment {
                Some(environment) => format!("{credential}/{environment}"),
                None => credential.to_owned(),
            };
            Circuit::new(C::PROVIDER, name)
        };
        Guard {
            circuits: C::ENVIRONMENTS.iter().copied().map(circuit).collect(),
            places: Arc::new(Places::new(self.hall.bulkheads.clone())),
        }
    }

    /// Changes the accounts. The caller holds the lock of the guards.
    fn change(&self, _: &MutexGuard<'_, BTreeMap<String, Guard>>, change: impl FnOnce(&mut Accounts<C>)) {
        let mut all = HashMap::clone(&self.accounts.load());
        change(&mut all);
        let credentials: BTreeSet<_> = all.values().map(|opened| &opened.credential).collect();
        self.hall.bulkheads.count(C::PROVIDER, credentials.len());
        self.accounts.store(Arc::new(all));
    }

    fn guards(&self) -> MutexGuard<'_, BTreeMap<String, Guard>> {
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Accounts<C> = HashMap<AppId, Arc<Opened<C>>>;

impl<C: Carrier> Door for Desk<C> {
    fn check<'a>(&'a self, app: &'a AppId, credential: Credential) -> Result<PutInUse<'a>, BadCredential> {
        let of_another = || BadCredential::new(C::PROVIDER.as_str(), "must be a credential for this provider");
        let credential = C::credential(credential).ok_or_else(of_another)?;
        let account = self.carrier.account(credential)?;
        Ok(Box::new(move || self.open(app, account)))
    }

    fn forget(&self, app: &AppId) {
        self.change(&self.guards(), |all| {
            all.remove(app);
        });
    }

    fn admits(&self, app: &AppId) -> bool {
        self.accounts.load().contains_key(app)
    }

    fn deliver<'a>(&'a self, attempt: Attempt<'a>) -> BoxFuture<'a, Attempted> {
        Box::pin(self.attempt(attempt))
    }

    fn networks(&self) -> &[Arc<Network>] {
        &self.networks
    }

    fn breaker_states(&self) -> Vec<BreakerState> {
        let guards = self.guards();
        let circuits = guards.values().flat_map(|guard| guard.circuits.iter());
        circuits.flat_map(Circuit::states).collect()
    }

    fn claims(&self, allowance: &Allowance) -> Vec<Claim> {
        let accounts = self.accounts.load();
        let claims = accounts.iter().filter_map(|(app, opened)| {
            let limit = C::limit(&opened.account)?;
            (allowance.is_of(C::PROVIDER, &limit.name)).then(|| Claim {
                app: app.clone(),
                per_minute: limit.per_minute,
            })
        });
        claims.collect()
    }
}
