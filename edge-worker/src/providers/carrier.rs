//! The trait that each provider implements. The code around it is the same for all, in [`super::desk`].

use std::{fmt::Debug, future::Future, sync::Arc, time::Duration};

use shared::{
    address::Address,
    clock::Clock,
    provider::{Credential, Provider},
};

use super::{
    Attempt, BadCredential, BadSettings, Outcome,
    attempt::Progress,
    transport::{endpoints, guard::Guard, http2::Network},
};

/// What every provider is given at construction.
#[derive(Debug, Clone)]
pub(super) struct Common {
    /// How endpoints are measured and chosen.
    pub(super) endpoints: endpoints::Settings,
    /// For requests whose URL comes from a tenant or a user.
    pub(super) receivers: Guard,
    /// The clock for tokens, `Retry-After` dates and time stamps.
    pub(super) clock: Clock,
}

/// The rate at which an account may send, if its provider limits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limit {
    /// Accounts with the same name share one limit.
    pub(super) name: String,
    /// Requests a minute.
    pub(super) per_minute: u64,
}

/// A provider. Holds its connections; does not depend on apps, breakers, allowances or time limits.
pub(super) trait Carrier: Debug + Sized + Send + Sync + 'static {
    /// The provider that it implements.
    const PROVIDER: Provider;

    /// Names its request in traces: the method and the URL template, such as `POST /3/device/{token}`.
    const TEMPLATE: &'static str;

    /// Its environments, each with breakers of its own, because a failure in one does not affect another. `[None]` for
    /// a provider with a single one.
    const ENVIRONMENTS: &'static [Option<&'static str>] = &[None];

    /// Whether each app has breakers and places of its own, because its account is none of a provider's.
    const IS_OF_APP: bool = false;

    /// Its part of the settings.
    type Settings;

    /// The credential that an app configures, from `shared::provider`.
    type Credential: TryFrom<Credential>;

    /// A checked credential, ready for use.
    type Account: Debug + Send + Sync;

    /// Makes the provider, without connecting.
    fn new(settings: &Self::Settings, common: &Common) -> Result<Self, BadSettings>;

    /// How long an attempt may take. At most [`crate::limits::ATTEMPT_WITHIN`]; the desk refuses more.
    fn timeout(settings: &Self::Settings) -> Duration;

    /// How long the final answer may take once the message was handed over, if that can be longer than
    /// [`Self::timeout`]. At most [`crate::limits::FINAL_ANSWER_WITHIN`]; the desk refuses more. The time begins when
    /// [`Attempt::handover`] has recorded the handover.
    fn final_answer(_settings: &Self::Settings) -> Option<Duration> {
        None
    }

    /// Checks `credential` and prepares its use.
    fn account(&self, credential: Self::Credential) -> Result<Self::Account, BadCredential>;

    /// Names the credential in metrics and logs; no secret. Accounts of the same name share breakers and places, unless
    /// [`Self::IS_OF_APP`].
    fn name(account: &Self::Account) -> String;

    /// The rate limit that the provider sets for the account; `None` if it sets none.
    fn limit(_account: &Self::Account) -> Option<Limit> {
        None
    }

    /// The environment of `address`, as an index into [`Self::ENVIRONMENTS`].
    fn environment(_address: &Address) -> usize {
        0
    }

    /// What `address` goes to, if a credential's messages go to many places that fail by themselves. Each that fails has
    /// breakers of its own instead of the credential's.
    fn destination(_address: &Address) -> Option<u64> {
        None
    }

    /// The networks, in the order of [`Self::ENVIRONMENTS`]; empty if the endpoints are not measured.
    fn networks(&self) -> Vec<Arc<Network>> {
        Vec::new()
    }

    /// Sends the message and reads the answer. Keeps `progress` current, because the desk may drop the future at any
    /// await.
    fn attempt(
        &self,
        account: &Self::Account,
        attempt: &Attempt<'_>,
        progress: &mut Progress,
    ) -> impl Future<Output = Outcome> + Send;
}
