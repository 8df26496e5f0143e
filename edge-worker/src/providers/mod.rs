//! Those who carry a push to the device. A provider knows an address, a rendered message and its own settings; nothing
//! of NATS, the ledger or acknowledgements. What happened to one attempt is a value, [`Outcome`].
//!
//! How it is reached is `transport`: where to, over which connections.
//!
//! Adding a provider: a folder with the files of the others (`config`, `token`, `client`, `outcome`), a field in
//! [`Settings`], and a line each in [`Providers::deliver`] and `networks`.

mod attempt;
mod breaker;
mod message;
mod outcome;
mod transport;

pub mod apns;
pub mod fcm;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::future::join_all;
use serde::Deserialize;
use shared::{
    channel::Provider,
    clock::Clock,
    id::AppId,
    recipient::{Address, Environment},
};

pub use self::{
    apns::ApnsAccount,
    attempt::{Attempt, Attempted},
    breaker::{BreakerState, Watched},
    fcm::{FcmAccount, Granted, Quota, Use},
    message::Message,
    outcome::{Outcome, Reason},
    transport::endpoints::{EndpointState, Settings as EndpointSettings, Why},
    transport::tls::BadTrust,
};
use self::{breaker::Breakers, transport::http2::Network};
use tokio::sync::Notify;

/// How the providers are reached.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Apple Push Notification service.
    pub apns: apns::Settings,
    /// Firebase Cloud Messaging.
    pub fcm: fcm::Settings,
    /// How the endpoints of both are measured and chosen.
    pub endpoints: EndpointSettings,
}

/// A credential that cannot work: which field, and which rule it breaks. Never the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct BadCredential {
    /// The field, as the configuration names it.
    pub field: &'static str,
    /// The rule, as a sentence without subject.
    pub rule: &'static str,
}

impl BadCredential {
    pub(crate) const fn new(field: &'static str, rule: &'static str) -> Self {
        Self { field, rule }
    }
}

/// All providers with the credentials of all apps.
#[derive(Debug)]
pub struct Providers {
    apns: apns::Apns,
    fcm: fcm::Fcm,
    accounts: ArcSwap<HashMap<AppId, Accounts>>,
    /// Serializes writers of `accounts`; readers never wait.
    configuring: Mutex<()>,
    /// By provider and name. Kept when a credential is forgotten, so that giving it again does not make a bad one good.
    breakers: Mutex<BTreeMap<(Provider, String), Arc<Breakers>>>,
    /// By project; absent where nobody grants, and nothing is limited.
    quotas: Option<Mutex<BTreeMap<String, Arc<Quota>>>>,
    more_quotas: Notify,
    nowhere: Arc<str>,
}

/// What one app may use.
#[derive(Debug, Clone)]
struct Accounts {
    apns: Option<Apple>,
    fcm: Option<Google>,
}

#[derive(Debug, Clone)]
struct Apple {
    account: Arc<apns::Account>,
    production: Arc<Breakers>,
    sandbox: Arc<Breakers>,
}

#[derive(Debug, Clone)]
struct Google {
    account: Arc<fcm::Account>,
    breakers: Arc<Breakers>,
    quota: Option<Arc<Quota>>,
}

impl Providers {
    /// Providers without any credential; nothing is connected yet.
    ///
    /// # Errors
    /// When a `ca_file`, or what the operating system trusts, cannot be read, or an endpoint is malformed.
    pub fn new(settings: &Settings, clock: Clock) -> Result<Self, BadTrust> {
        Ok(Self {
            apns: apns::Apns::new(&settings.apns, settings.endpoints, clock.clone())?,
            fcm: fcm::Fcm::new(&settings.fcm, settings.endpoints, clock)?,
            accounts: ArcSwap::default(),
            configuring: Mutex::new(()),
            breakers: Mutex::default(),
            quotas: None,
            more_quotas: Notify::new(),
            nowhere: "".into(),
        })
    }

    /// From now on, before any credential is given, nothing is sent through FCM but what is granted to the
    /// [`Self::quotas`].
    #[must_use]
    pub fn with_quotas(self) -> Self {
        Self {
            quotas: Some(Mutex::default()),
            ..self
        }
    }

    /// Gives `app` these credentials in place of those it had.
    ///
    /// Both are checked before either is used. Attempts under way finish with the old ones, whose connections close
    /// when the last of them is done. An unchanged APNs key keeps its connections and its provider token, because
    /// Apple limits how often a token may change.
    ///
    /// # Errors
    /// The first field that breaks a rule; then nothing has changed.
    pub fn configure(
        &self,
        app: &AppId,
        apns: Option<ApnsAccount>,
        fcm: Option<FcmAccount>,
    ) -> Result<(), BadCredential> {
        let apple = |account: ApnsAccount| {
            let breakers = |environment| {
                let name = format!("{}/{}/{environment}", account.team_id, account.key_id);
                self.breakers(Provider::Apns, &name)
            };
            Ok::<_, BadCredential>(Apple {
                account: self.apns.account(&account)?,
                production: breakers("production"),
                sandbox: breakers("sandbox"),
            })
        };
        let google = |account: FcmAccount| {
            Ok::<_, BadCredential>(Google {
                account: self.fcm.account(&account)?,
                breakers: self.breakers(Provider::Fcm, &account.project_id),
                quota: self.quota(&account.project_id),
            })
        };
        let accounts = Accounts {
            apns: apns.map(apple).transpose()?,
            fcm: fcm.map(google).transpose()?,
        };
        self.change(|all| {
            all.insert(app.clone(), accounts);
        });
        Ok(())
    }

    /// Takes all credentials from `app`. Attempts under way finish.
    pub fn forget(&self, app: &AppId) {
        self.change(|all| {
            all.remove(app);
        });
    }

    /// Whether `app` has a credential for the provider of `address`.
    pub fn can_reach(&self, app: &AppId, address: &Address) -> bool {
        self.accounts
            .load()
            .get(app)
            .is_some_and(|accounts| match address.provider {
                Provider::Apns => accounts.apns.is_some(),
                Provider::Fcm => accounts.fcm.is_some(),
            })
    }

    /// Makes one attempt. Takes at most the provider's time-out; dropping the future gives the attempt up.
    pub async fn deliver(&self, attempt: Attempt<'_>) -> Attempted {
        let accounts = self.accounts.load();
        let accounts = accounts.get(attempt.app);
        match attempt.address.provider {
            Provider::Apns => match accounts.and_then(|accounts| accounts.apns.clone()) {
                Some(apple) => {
                    let environment = attempt.address.environment;
                    let breakers = match environment {
                        Environment::Production => &apple.production,
                        Environment::Sandbox => &apple.sandbox,
                    };
                    let network = self.apns.network(environment);
                    let attempt = self.apns.deliver(&apple.account, &attempt);
                    self.guarded(breakers, network, attempt).await
                }
                None => self.untried(Outcome::credential("no_credential", None)),
            },
            Provider::Fcm => match accounts.and_then(|accounts| accounts.fcm.clone()) {
                Some(google) => {
                    if let Some(quota) = &google.quota
                        && let Err(outcome) = quota.take().await
                    {
                        return self.untried(outcome);
                    }
                    let attempt = Box::pin(self.fcm.deliver(&google.account, &attempt));
                    self.guarded(&google.breakers, self.fcm.network(), attempt).await
                }
                None => self.untried(Outcome::credential("no_credential", None)),
            },
        }
    }

    /// Measures the endpoints, chooses among them and keeps spare connections. Does not end; without it connections go to
    /// the first endpoint that can be reached.
    pub fn watch(&self) -> impl Future<Output = ()> + Send + 'static {
        let watching: Vec<_> = self.networks().map(|network| network.clone().watch()).collect();
        async {
            join_all(watching).await;
        }
    }

    /// Every endpoint with its addresses, and which are used and why.
    pub fn endpoint_states(&self) -> Vec<EndpointState> {
        self.networks().flat_map(|network| network.report()).collect()
    }

    fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        let apns = [Environment::Production, Environment::Sandbox].map(|environment| self.apns.network(environment));
        apns.into_iter().chain([self.fcm.network()])
    }

    /// Every breaker and whether it is open.
    pub fn breaker_states(&self) -> Vec<BreakerState> {
        let breakers = self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        breakers.values().flat_map(|breakers| breakers.states()).collect()
    }

    fn breakers(&self, provider: Provider, name: &str) -> Arc<Breakers> {
        let mut breakers = self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Breakers::new(provider, name.to_owned()));
        breakers.entry((provider, name.to_owned())).or_insert_with(new).clone()
    }

    /// Every project's quota. Kept when a credential is forgotten.
    pub fn quotas(&self) -> Vec<Arc<Quota>> {
        let quotas = self.quotas.as_ref();
        let quotas = quotas.map(|quotas| {
            quotas
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .values()
                .cloned()
                .collect()
        });
        quotas.unwrap_or_default()
    }

    /// Waits until there may be more of them.
    pub async fn more_quotas(&self) {
        self.more_quotas.notified().await;
    }

    fn quota(&self, project: &str) -> Option<Arc<Quota>> {
        let mut quotas = self.quotas.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            self.more_quotas.notify_one();
            Arc::new(Quota::new(project.to_owned()))
        };
        Some(quotas.entry(project.to_owned()).or_insert_with(new).clone())
    }

    async fn guarded(
        &self,
        breakers: &Breakers,
        network: &Network,
        attempt: impl Future<Output = Attempted>,
    ) -> Attempted {
        if let Err(outcome) = breakers.admit() {
            return self.untried(outcome);
        }
        let attempted = attempt.await;
        breakers.learn(&attempted, || network.has_another(&attempted.endpoint));
        attempted
    }

    fn untried(&self, outcome: Outcome) -> Attempted {
        Attempted {
            outcome,
            status: None,
            endpoint: self.nowhere.clone(),
            took: Duration::ZERO,
        }
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<AppId, Accounts>)) {
        let _one = self.configuring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = HashMap::clone(&self.accounts.load());
        change(&mut all);
        self.accounts.store(Arc::new(all));
    }
}
