//! The code around every attempt, the same for all providers: the accounts of the apps, places, allowances, breakers
//! and the time limit.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use jiff::Timestamp;
use shared::{id::AppId, provider::Credential};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Allowance, Attempt, Attempted, BadCredential, BadSettings, BreakerState, Claim, Handover, Outcome,
    allowance::Allowances,
    attempt::Progress,
    breaker::Circuit,
    carrier::{Carrier, Common},
    destinations::Destinations,
    places::{Bulkheads, Places, SLOW_AFTER},
    transport::http2::Network,
};
use crate::limits::{ATTEMPT_WITHIN, FINAL_ANSWER_WITHIN};

/// The desk of any provider, so that [`super::Providers`] can list all of them.
pub(super) trait AnyDesk: std::fmt::Debug + Send + Sync {
    /// Checks `credential` for `app`. Nothing changes until the result is called, which activates the credential.
    fn check<'a>(&'a self, app: &'a AppId, credential: Credential) -> Result<Activate<'a>, BadCredential>;

    /// Removes the credential of `app`. Attempts in flight finish.
    fn forget(&self, app: &AppId);

    /// Whether `app` has a credential for this provider.
    fn has_account(&self, app: &AppId) -> bool;

    /// How long its final answers may take; `None` if they come within the time limit of an attempt.
    fn final_answer(&self) -> Option<Duration>;

    /// Makes one attempt, within [`ATTEMPT_WITHIN`] plus the wait for its allowance, and for the final answer.
    fn deliver<'a>(&'a self, attempt: Attempt<'a>) -> BoxFuture<'a, Attempted>;

    /// Its networks, in the order of [`Carrier::ENVIRONMENTS`]; empty if its endpoints are not measured.
    fn networks(&self) -> &[Arc<Network>];

    /// Every breaker and whether it is open.
    fn breaker_states(&self) -> Vec<BreakerState>;

    /// The limit that each app with a credential for `allowance` states.
    fn claims(&self, allowance: &Allowance) -> Vec<Claim>;
}

/// Activates a checked credential.
pub(super) type Activate<'a> = Box<dyn FnOnce() + 'a>;

/// Shared by all desks of one worker.
#[derive(Debug, Clone)]
pub(super) struct DeskContext {
    pub(super) common: Common,
    pub(super) allowances: Arc<Allowances>,
    pub(super) bulkheads: Arc<Bulkheads>,
}

/// A provider with the accounts of all apps.
#[derive(Debug)]
pub(super) struct Desk<C: Carrier> {
    carrier: C,
    timeout: Duration,
    final_answer: Option<Duration>,
    context: DeskContext,
    networks: Vec<Arc<Network>>,
    accounts: ArcSwap<HashMap<AppId, Arc<Opened<C>>>>,
    /// By name of the credential. Its lock serializes the writers of `accounts`; readers never wait. A guard is kept
    /// when its credential is removed, so that configuring a bad credential again does not close its breaker.
    guards: Mutex<BTreeMap<String, Guard>>,
    no_endpoint: Arc<str>,
}

/// The breakers and places of one credential.
#[derive(Debug, Clone)]
struct Guard {
    /// In the order of [`Carrier::ENVIRONMENTS`].
    circuits: Arc<[Circuit]>,
    destinations: Arc<Destinations>,
    places: Arc<Places>,
}

/// The account of one app, with everything that its attempts need.
#[derive(Debug)]
struct Opened<C: Carrier> {
    account: C::Account,
    credential: String,
    guard: Guard,
    /// Absent if the provider sets no limit, or the worker does not enforce limits.
    allowance: Option<Arc<Allowance>>,
}

impl<C: Carrier> Desk<C> {
    /// A desk without accounts.
    pub(super) fn new(settings: &C::Settings, context: &DeskContext) -> Result<Self, BadSettings> {
        let timeout = C::timeout(settings);
        if timeout > ATTEMPT_WITHIN {
            return Err(BadSettings::Timeout(C::PROVIDER));
        }
        let final_answer = C::final_answer(settings);
        if final_answer.is_some_and(|within| within > FINAL_ANSWER_WITHIN) {
            return Err(BadSettings::FinalAnswer(C::PROVIDER));
        }
        let carrier = C::new(settings, &context.common)?;
        Ok(Self {
            timeout,
            final_answer,
            networks: carrier.networks(),
            carrier,
            context: context.clone(),
            accounts: ArcSwap::default(),
            guards: Mutex::default(),
            no_endpoint: "".into(),
        })
    }

    async fn attempt(&self, attempt: Attempt<'_>) -> Attempted {
        let started_at = self.context.common.clock.now();
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
        let destinations = &opened.guard.destinations;
        if let Some(destination) = C::destination(attempt.address) {
            if let Err(outcome) = destinations.admit(destination) {
                return self.untried(outcome, started_at);
            }
            let attempted = self.ask(&opened, &attempt, started_at).await;
            destinations.learn(destination, &attempted);
            return attempted;
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

    /// Asks the provider, within the time limit of an attempt.
    async fn ask(&self, opened: &Opened<C>, attempt: &Attempt<'_>, started_at: Timestamp) -> Attempted {
        let began = Instant::now();
        let mut progress = Progress::none(&self.no_endpoint);
        let handover = Timed::new(attempt.handover);
        let outcome = {
            let attempt = Attempt {
                handover: &handover,
                ..*attempt
            };
            let mut answer = pin!(self.carrier.attempt(&opened.account, &attempt, &mut progress));
            if let Ok(outcome) = timeout(SLOW_AFTER.min(self.timeout), answer.as_mut()).await {
                Some(outcome)
            } else {
                let _slow = opened.guard.places.slow();
                let within = timeout_at(began + self.timeout, answer.as_mut()).await;
                match (within, handover.recorded_at(), self.final_answer) {
                    (Ok(outcome), ..) => Some(outcome),
                    (Err(_), Some(at), Some(wait)) => timeout_at(at + wait, answer).await.ok(),
                    (Err(_), ..) => None,
                }
            }
        };
        let outcome = outcome.unwrap_or_else(|| progress.cut_off());
        Attempted {
            status: progress.status,
            endpoint: progress.endpoint,
            took: began.elapsed(),
            ..self.untried(outcome, started_at)
        }
    }

    fn untried(&self, outcome: Outcome, started_at: Timestamp) -> Attempted {
        Attempted {
            outcome,
            provider: C::PROVIDER,
            status: None,
            endpoint: self.no_endpoint.clone(),
            template: C::TEMPLATE,
            started_at,
            ended_at: self.context.common.clock.now(),
            took: Duration::ZERO,
        }
    }

    fn open(&self, app: &AppId, account: C::Account) {
        let credential = if C::IS_OF_APP {
            app.to_string()
        } else {
            C::name(&account)
        };
        let mut guards = self.guards();
        let guard = guards
            .entry(credential.clone())
            .or_insert_with(|| self.guard(&credential));
        let opened = Opened {
            guard: guard.clone(),
            allowance: C::limit(&account).and_then(|limit| self.context.allowances.of(C::PROVIDER, limit.name)),
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
            destinations: Arc::new(Destinations::new(C::PROVIDER, credential.to_owned())),
            places: Arc::new(Places::new(self.context.bulkheads.clone())),
        }
    }

    /// Changes the accounts. The first parameter proves that the caller holds the lock of the guards.
    fn change(&self, _: &MutexGuard<'_, BTreeMap<String, Guard>>, change: impl FnOnce(&mut Accounts<C>)) {
        let mut all = HashMap::clone(&self.accounts.load());
        change(&mut all);
        let credentials: BTreeSet<_> = all.values().map(|opened| &opened.credential).collect();
        self.context.bulkheads.count(C::PROVIDER, credentials.len());
        self.accounts.store(Arc::new(all));
    }

    fn guards(&self) -> MutexGuard<'_, BTreeMap<String, Guard>> {
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Remembers when a handover was recorded: from then on the time limit is that of the final answer.
#[derive(Debug)]
struct Timed<'a> {
    caller: &'a dyn Handover,
    recorded_at: OnceLock<Instant>,
}

impl<'a> Timed<'a> {
    fn new(caller: &'a dyn Handover) -> Self {
        Self {
            caller,
            recorded_at: OnceLock::new(),
        }
    }

    fn recorded_at(&self) -> Option<Instant> {
        self.recorded_at.get().copied()
    }
}

impl Handover for Timed<'_> {
    fn record(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            let recorded = self.caller.record().await;
            if recorded {
                self.recorded_at.get_or_init(Instant::now);
            }
            recorded
        })
    }
}

type Accounts<C> = HashMap<AppId, Arc<Opened<C>>>;

impl<C: Carrier> AnyDesk for Desk<C> {
    fn check<'a>(&'a self, app: &'a AppId, credential: Credential) -> Result<Activate<'a>, BadCredential> {
        let of_another = |_| BadCredential::new(C::PROVIDER.as_str(), "must be a credential for this provider");
        let credential = C::Credential::try_from(credential).map_err(of_another)?;
        let account = self.carrier.account(credential)?;
        Ok(Box::new(move || self.open(app, account)))
    }

    fn forget(&self, app: &AppId) {
        self.change(&self.guards(), |all| {
            all.remove(app);
        });
    }

    fn has_account(&self, app: &AppId) -> bool {
        self.accounts.load().contains_key(app)
    }

    fn final_answer(&self) -> Option<Duration> {
        self.final_answer
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
