//! The providers: who delivers a message, and the outcome of one attempt. A provider knows an address, a message and its
//! own settings; nothing of NATS, the ledger or acknowledgements. What happened to one attempt is a value, [`Outcome`].
//!
//! This file is the list of them. What a provider must be able to do is the trait in `carrier`; what surrounds every
//! attempt is written once, in `desk`; what reaches a provider is `transport`. `docs/adding-a-provider.md` says how
//! another is added.

mod allowance;
mod attempt;
mod breaker;
mod carrier;
mod desk;
mod outcome;
mod places;
mod renditions;
mod transport;

pub mod apns;
pub mod fcm;

use std::sync::Arc;

use futures::future::join_all;
use serde::Deserialize;
use shared::{
    address::Address,
    clock::Clock,
    id::AppId,
    provider::{Credential, Provider},
};

pub(crate) use self::allowance::PATIENCE as ALLOWANCE_PATIENCE;
pub use self::{
    allowance::{Allowance, Claim, Source, Use},
    attempt::{Attempt, Attempted},
    breaker::{BreakerState, Watched},
    outcome::{Outcome, Reason},
    renditions::{Message, Renditions},
    transport::{
        BadSettings,
        endpoints::{EndpointState, Settings as EndpointSettings, Why},
    },
};
use self::{
    carrier::Common,
    desk::{Desk, Door, Hall},
    places::Bulkheads,
    transport::http2::Network,
};

/// How the providers are reached.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Apple Push Notification service.
    pub apns: apns::Settings,
    /// Firebase Cloud Messaging.
    pub fcm: fcm::Settings,
    /// How the endpoints of all providers are measured and chosen.
    pub endpoints: EndpointSettings,
}

/// Makes a provider. One without an arm does not compile.
fn door(provider: Provider, settings: &Settings, hall: &Hall) -> Result<Box<dyn Door>, BadSettings> {
    Ok(match provider {
        Provider::Apns => Box::new(Desk::<apns::Apns>::new(&settings.apns, hall)?),
        Provider::Fcm => Box::new(Desk::<fcm::Fcm>::new(&settings.fcm, hall)?),
    })
}

/// The providers that can reach `address`, the preferred one first.
fn carriers(address: &Address) -> [Provider; 1] {
    [address.provider()]
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
    /// In the order of [`Provider::ALL`].
    doors: Vec<Box<dyn Door>>,
    hall: Hall,
}

impl Providers {
    /// Providers without any credential; nothing is connected yet.
    ///
    /// # Errors
    /// When a `ca_file`, or what the operating system trusts, cannot be read, an endpoint is malformed, or a time-out
    /// exceeds [`crate::limits::ATTEMPT_WITHIN`].
    pub fn new(settings: &Settings, clock: Clock) -> Result<Self, BadSettings> {
        let hall = Hall {
            common: Common {
                endpoints: settings.endpoints,
                clock,
            },
            allowances: Arc::default(),
            bulkheads: Bulkheads::new(),
        };
        let doors = Provider::ALL.iter().map(|provider| door(*provider, settings, &hall));
        Ok(Self {
            doors: doors.collect::<Result<_, _>>()?,
            hall,
        })
    }

    /// Limits what is sent, where a provider limits it, to what is granted to the [`Self::allowances`]. Applies to
    /// credentials given afterwards.
    #[must_use]
    pub fn with_allowances(self) -> Self {
        self.hall.allowances.limit();
        self
    }

    /// Keeps a slow credential from taking all of `in_flight` places from the others.
    #[must_use]
    pub fn with_bulkheads(self, in_flight: usize) -> Self {
        self.hall.bulkheads.divide(in_flight);
        self
    }

    /// Gives `app` these credentials in place of those it had.
    ///
    /// All are checked before any is used. Attempts under way finish with the old ones, whose connections close when the
    /// last of them is done. An unchanged APNs key keeps its connections and its provider token, because Apple limits how
    /// often a token may change.
    ///
    /// # Errors
    /// The first field that breaks a rule; then nothing has changed.
    pub fn configure(&self, app: &AppId, credentials: Vec<Credential>) -> Result<(), BadCredential> {
        let given: Vec<_> = credentials.iter().map(Credential::provider).collect();
        let checked = credentials
            .into_iter()
            .map(|credential| self.door(credential.provider()).check(app, credential));
        let checked = checked.collect::<Result<Vec<_>, _>>()?;
        for put_in_use in checked {
            put_in_use();
        }
        for provider in Provider::ALL {
            if !given.contains(provider) {
                self.door(*provider).forget(app);
            }
        }
        Ok(())
    }

    /// Takes all credentials from `app`. Attempts under way finish.
    pub fn forget(&self, app: &AppId) {
        for door in &self.doors {
            door.forget(app);
        }
    }

    /// Whether `app` has a credential for a provider of `address`.
    pub fn can_reach(&self, app: &AppId, address: &Address) -> bool {
        carriers(address)
            .into_iter()
            .any(|provider| self.door(provider).admits(app))
    }

    /// Makes one attempt, with the first provider of the address for which the app has a credential. Takes at most
    /// [`crate::limits::ATTEMPT_WITHIN`] and [`crate::limits::ALLOWANCE_WITHIN`]; dropping the future gives the attempt up.
    pub async fn deliver(&self, attempt: Attempt<'_>) -> Attempted {
        let carriers = carriers(attempt.address);
        let admits = |provider: &Provider| self.door(*provider).admits(attempt.app);
        let chosen = carriers.into_iter().find(admits).unwrap_or(carriers[0]);
        self.door(chosen).deliver(attempt).await
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

    /// Every breaker and whether it is open.
    pub fn breaker_states(&self) -> Vec<BreakerState> {
        self.doors.iter().flat_map(|door| door.breaker_states()).collect()
    }

    /// Every allowance. Kept when a credential is forgotten.
    pub fn allowances(&self) -> Vec<Arc<Allowance>> {
        self.hall.allowances.all()
    }

    /// Waits until there may be more of them.
    pub async fn more_allowances(&self) {
        self.hall.allowances.more().await;
    }

    /// What each app with a credential for `allowance` states of its limit.
    pub fn claims(&self, allowance: &Allowance) -> Vec<Claim> {
        self.door(allowance.provider()).claims(allowance)
    }

    fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.doors.iter().flat_map(|door| door.networks())
    }

    fn door(&self, provider: Provider) -> &dyn Door {
        &*self.doors[provider as usize]
    }
}
