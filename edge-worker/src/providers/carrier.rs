//! What a provider must be able to do. Everything else is written once, in [`super::desk`].

use std::{fmt::Debug, future::Future, sync::Arc, time::Duration};

use shared::{
    address::Address,
    clock::Clock,
    provider::{self, Provider},
};

use super::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    transport::{endpoints, http2::Network},
};

/// What all providers are made with.
#[derive(Debug, Clone)]
pub(super) struct Common {
    /// How endpoints are measured and chosen.
    pub(super) endpoints: endpoints::Settings,
    /// Time.
    pub(super) clock: Clock,
}

/// What an account may send, where its provider limits that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limit {
    /// Accounts with the same name share one limit.
    pub(super) name: String,
    /// Requests a minute.
    pub(super) per_minute: u64,
}

/// A provider. Holds its connections; knows no apps, breakers, allowances or time limits.
pub(super) trait Carrier: Debug + Sized + Send + Sync + 'static {
    /// Its word on the wire and in metrics.
    const PROVIDER: Provider;

    /// Names its request in traces: the method and the URL template, such as `POST /3/device/{token}`.
    const TEMPLATE: &'static str;

    /// Its environments, each with breakers of its own: what fails in one says nothing of another. `None` names the only
    /// one.
    const ENVIRONMENTS: &'static [Option<&'static str>] = &[None];

    /// Its part of the settings.
    type Settings;

    /// What an app brings.
    type Credential;

    /// A credential that was checked and can be used.
    type Account: Debug + Send + Sync;

    /// Makes it; nothing is connected yet.
    fn new(settings: &Self::Settings, common: &Common) -> Result<Self, BadSettings>;

    /// How long an attempt may take. At most [`crate::limits::ATTEMPT_WITHIN`]; the desk refuses more.
    fn timeout(settings: &Self::Settings) -> Duration;

    /// The credential, if it is one for this provider.
    fn credential(credential: provider::Credential) -> Option<Self::Credential>;

    /// Checks `credential` and makes it usable.
    fn account(&self, credential: Self::Credential) -> Result<Self::Account, BadCredential>;

    /// Names the credential in metrics and logs; no secret. Accounts of the same name share breakers and places.
    fn name(account: &Self::Account) -> String;

    /// What the provider lets the account send.
    fn limit(_account: &Self::Account) -> Option<Limit> {
        None
    }

    /// The environment of `address`, as an index into [`Self::ENVIRONMENTS`].
    fn environment(_address: &Address) -> usize {
        0
    }

    /// The endpoints of each environment, in the order of [`Self::ENVIRONMENTS`]; none if they are not measured.
    fn networks(&self) -> Vec<Arc<Network>> {
        Vec::new()
    }

    /// Sends, and reads the answer. Keeps `progress` current, because the desk may drop the future at any await.
    fn attempt(
        &self,
        account: &Self::Account,
        attempt: &Attempt<'_>,
        progress: &mut Progress,
    ) -> impl Future<Output = Outcome> + Send;
}
