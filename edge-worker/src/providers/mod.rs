//! The providers that deliver messages. A provider knows an address, a message and its own settings; nothing of NATS,
//! the ledger or acknowledgements. The outcome of one attempt is a value, [`Outcome`].
//!
//! This file lists them. Each provider implements the trait in `carrier`; `desk` has the code around every attempt,
//! once for all providers; `transport` connects to them. `docs/adding-a-provider.md` describes how to add one.

mod allowance;
mod attempt;
mod breaker;
mod carrier;
mod desk;
mod destinations;
mod html;
mod outcome;
mod places;
mod renditions;
mod reports;
mod tracking;
mod transport;

pub mod apns;
pub mod fcm;
pub mod hms;
pub mod jpush;
pub mod log;
pub mod mailchimp;
pub mod sendgrid;
pub mod smtp;
pub mod sns;
pub mod twilio;
pub mod vonage;
pub mod web_push;
pub mod webhook;

mod route;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::join_all;
use serde::Deserialize;
use shared::{
    address::Address,
    app::Route,
    channel::Channel,
    clock::Clock,
    id::{AppId, DeliveryId},
    job::Job,
    private_host::PrivateHost,
    provider::{Credential, Provider},
};
use tokio::time::Instant;

pub(crate) use self::breaker::BREAKER_OPEN;
pub use self::{
    allowance::{Allowance, Claim, Source, Use},
    attempt::{Attempt, Attempted, Handover, Recorded},
    breaker::{BreakerState, Watched},
    outcome::{Outcome, Reason},
    renditions::{Message, Renditions},
    reports::Followed,
    tracking::Tracking,
    transport::{
        BadSettings,
        endpoints::{EndpointState, Settings as EndpointSettings, Why},
        guard::Settings as ReceiverSettings,
    },
};
use self::{
    carrier::Common,
    desk::{AnyDesk, Desk, DeskContext},
    places::Bulkheads,
    reports::Reports,
    route::Routes,
    transport::{guard::Guard, http2::Network},
};
use crate::limits::FAIL_OVER_WITHIN;

/// Settings of all providers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Apple Push Notification service.
    pub apns: apns::Settings,
    /// Firebase Cloud Messaging.
    pub fcm: fcm::Settings,
    /// Push services of browsers.
    pub web_push: web_push::Settings,
    /// Mail servers.
    pub smtp: smtp::Settings,
    /// `SendGrid`.
    pub sendgrid: sendgrid::Settings,
    /// Mailchimp Transactional.
    pub mailchimp: mailchimp::Settings,
    /// The provider that sends nothing.
    pub log: log::Settings,
    /// Twilio.
    pub twilio: twilio::Settings,
    /// Vonage.
    pub vonage: vonage::Settings,
    /// Huawei Push Kit.
    pub hms: hms::Settings,
    /// `JPush`.
    pub jpush: jpush::Settings,
    /// Amazon SNS.
    pub sns: sns::Settings,
    /// Webhooks.
    pub webhook: webhook::Settings,
    /// How the endpoints of all providers are measured and chosen.
    pub endpoints: EndpointSettings,
    /// Where requests may go whose URL comes from a tenant or a user.
    pub receivers: ReceiverSettings,
}

/// Makes the desk of a provider. The match is total, so a provider without an arm does not compile.
fn desk(provider: Provider, settings: &Settings, context: &DeskContext) -> Result<Box<dyn AnyDesk>, BadSettings> {
    Ok(match provider {
        Provider::Apns => Box::new(Desk::<apns::Apns>::new(&settings.apns, context)?),
        Provider::Fcm => Box::new(Desk::<fcm::Fcm>::new(&settings.fcm, context)?),
        Provider::WebPush => Box::new(Desk::<web_push::WebPush>::new(&settings.web_push, context)?),
        Provider::Smtp => Box::new(Desk::<smtp::Smtp>::new(&settings.smtp, context)?),
        Provider::SendGrid => Box::new(Desk::<sendgrid::SendGrid>::new(&settings.sendgrid, context)?),
        Provider::Mailchimp => Box::new(Desk::<mailchimp::Mailchimp>::new(&settings.mailchimp, context)?),
        Provider::Log => Box::new(Desk::<log::Log>::new(&settings.log, context)?),
        Provider::Twilio => Box::new(Desk::<twilio::Twilio>::new(&settings.twilio, context)?),
        Provider::Vonage => Box::new(Desk::<vonage::Vonage>::new(&settings.vonage, context)?),
        Provider::Hms => Box::new(Desk::<hms::Hms>::new(&settings.hms, context)?),
        Provider::JPush => Box::new(Desk::<jpush::JPush>::new(&settings.jpush, context)?),
        Provider::Sns => Box::new(Desk::<sns::Sns>::new(&settings.sns, context)?),
        Provider::Webhook => Box::new(Desk::<webhook::Webhook>::new(&settings.webhook, context)?),
    })
}

/// A credential that cannot work: the field, and the rule that it breaks; never the value.
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
    desks: Vec<Box<dyn AnyDesk>>,
    routes: Routes,
    reports: Arc<Reports>,
    context: DeskContext,
}

impl Providers {
    /// Providers without any credential; nothing is connected yet.
    ///
    /// # Errors
    /// If a `ca_file` or the operating system's trusted certificates cannot be read, an endpoint is malformed, or a
    /// time-out exceeds [`crate::limits::ATTEMPT_WITHIN`].
    pub fn new(settings: &Settings, clock: Clock) -> Result<Self, BadSettings> {
        let context = DeskContext {
            common: Common {
                endpoints: settings.endpoints,
                receivers: Guard::new(settings.receivers.clone()),
                clock,
            },
            allowances: Arc::default(),
            bulkheads: Bulkheads::new(),
        };
        let desks = Provider::ALL.iter().map(|provider| desk(*provider, settings, &context));
        Ok(Self {
            desks: desks.collect::<Result<_, _>>()?,
            routes: Routes::default(),
            reports: Arc::default(),
            context,
        })
    }

    /// Limits sending to the grants of [`Self::allowances`], for providers that limit it. Applies to credentials that
    /// are configured afterwards.
    #[must_use]
    pub fn with_allowances(self) -> Self {
        self.context.allowances.limit();
        self
    }

    /// Keeps a slow credential from taking all of `in_flight` places from the others.
    #[must_use]
    pub fn with_bulkheads(self, in_flight: usize) -> Self {
        self.context.bulkheads.divide(in_flight);
        self
    }

    /// Replaces the credentials of `app` by these.
    ///
    /// All are checked before any is used. Attempts in flight finish with the old ones, whose connections close after
    /// the last of them. An unchanged APNs key keeps its connections and its provider token, because Apple limits how
    /// often a token may change.
    ///
    /// # Errors
    /// The first field that breaks a rule; then nothing has changed.
    pub fn configure(&self, app: &AppId, credentials: Vec<Credential>) -> Result<(), BadCredential> {
        let given: Vec<_> = credentials.iter().map(Credential::provider).collect();
        let checked = credentials
            .into_iter()
            .map(|credential| self.desk(credential.provider()).check(app, credential));
        let checked = checked.collect::<Result<Vec<_>, _>>()?;
        for activate in checked {
            activate();
        }
        for provider in Provider::ALL {
            if !given.contains(provider) {
                self.desk(*provider).forget(app);
            }
        }
        Ok(())
    }

    /// Replaces the routes of `app`: by channel, the providers in the order in which they are asked.
    pub fn route(&self, app: &AppId, routes: &BTreeMap<Channel, Vec<Route>>) {
        self.routes.set(app, routes);
    }

    /// Replaces the hosts in private networks that webhooks of `app`, and of no other app, may reach.
    pub fn allow_hosts(&self, app: &AppId, hosts: &[PrivateHost]) {
        self.context.common.receivers.allow(app, hosts);
    }

    /// Removes all credentials and routes of `app`. Attempts in flight finish.
    pub fn forget(&self, app: &AppId) {
        for desk in &self.desks {
            desk.forget(app);
        }
        self.route(app, &BTreeMap::new());
        self.allow_hosts(app, &[]);
        self.reports.forget(app);
    }

    /// Whether `app` has a credential for a provider of `address`.
    pub fn can_reach(&self, app: &AppId, address: &Address) -> bool {
        address
            .target
            .carriers()
            .iter()
            .any(|provider| self.desk(*provider).has_account(app))
    }

    /// The provider that a first attempt at the delivery of `job` to `address` asks first.
    pub fn preferred(&self, job: &Job, address: &Address) -> Provider {
        if job.trial.test {
            return Provider::Log;
        }
        self.order(&job.app, address, job.delivery(address.id), 1)[0]
    }

    /// Makes one attempt, of a test at the provider that sends nothing: asks the providers of the address for which the app has a credential, in the order of its routes,
    /// until one was sent the message. Takes at most [`FAIL_OVER_WITHIN`], [`crate::limits::ATTEMPT_WITHIN`] and
    /// [`crate::limits::ALLOWANCE_WITHIN`], and what [`Self::final_answer`] states; dropping the future abandons the attempt.
    pub async fn deliver(&self, attempt: Attempt<'_>) -> Attempted {
        if attempt.message.job().trial.test {
            return log::record(&attempt, &self.context.common.clock);
        }
        let began = Instant::now();
        let order = self.order(attempt.app, attempt.address, attempt.delivery, attempt.number);
        let mut attempted = self.desk(order[0]).deliver(attempt).await;
        for next in &order[1..] {
            // An outcome that does not count says that nothing was sent.
            if attempted.outcome.counts() || began.elapsed() > FAIL_OVER_WITHIN {
                break;
            }
            tracing::debug!(from = %attempted.provider, to = %next, reason = attempted.outcome.as_str(), "failing over");
            attempted = self.desk(*next).deliver(attempt).await;
        }
        attempted
    }

    /// Begins to follow the report about a message to `address` that `provider` has taken. `None` if it reports nothing, if no
    /// other could be asked instead, or if another delivery is followed.
    pub fn follow(&self, app: &AppId, address: &Address, provider: Provider) -> Option<Followed> {
        let has_account = |provider: Provider| self.desk(provider).has_account(app);
        let is_of_use = provider.reports_arrival() && self.routes.has_choice(app, &address.target, has_account);
        is_of_use.then(|| self.reports.follow(app, provider)).flatten()
    }

    /// For each provider that reports, the number of apps for which its reports have grown slow.
    pub fn slow_routes(&self) -> Vec<(Provider, usize)> {
        self.reports.slow()
    }

    /// The providers to ask, in order; at least one.
    fn order(&self, app: &AppId, address: &Address, delivery: DeliveryId, number: u32) -> Vec<Provider> {
        let has_account = |provider: Provider| self.desk(provider).has_account(app);
        let is_slow = |provider: Provider| self.reports.is_slow(app, provider);
        let order = self
            .routes
            .order(app, &address.target, delivery, number, has_account, is_slow);
        // Its desk answers that the app has no credential.
        if order.is_empty() {
            vec![address.target.carriers()[0]]
        } else {
            order
        }
    }

    /// How long the final answer to an attempt on `channel` may take, if a provider of the channel may need longer than
    /// [`crate::limits::ATTEMPT_WITHIN`].
    pub fn final_answer(&self, channel: Channel) -> Option<Duration> {
        let carriers = Provider::ALL.iter().filter(|provider| provider.carries(channel));
        carriers
            .filter_map(|provider| self.desk(*provider).final_answer())
            .max()
    }

    /// Measures the endpoints, chooses among them and keeps spare connections. Does not end; without it connections go
    /// to the first endpoint that can be reached.
    pub fn watch(&self) -> impl Future<Output = ()> + Send + 'static {
        let watching: Vec<_> = self.networks().map(|network| network.clone().watch()).collect();
        async {
            join_all(watching).await;
        }
    }

    /// The state of every address of every endpoint.
    pub fn endpoint_states(&self) -> Vec<EndpointState> {
        self.networks().flat_map(|network| network.report()).collect()
    }

    /// Every breaker and whether it is open.
    pub fn breaker_states(&self) -> Vec<BreakerState> {
        self.desks.iter().flat_map(|desk| desk.breaker_states()).collect()
    }

    /// Every allowance. Kept when a credential is forgotten.
    pub fn allowances(&self) -> Vec<Arc<Allowance>> {
        self.context.allowances.all()
    }

    /// Waits until an allowance may have been added.
    pub async fn more_allowances(&self) {
        self.context.allowances.more().await;
    }

    /// The limit that each app with a credential for `allowance` states.
    pub fn claims(&self, allowance: &Allowance) -> Vec<Claim> {
        self.desk(allowance.provider()).claims(allowance)
    }

    fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.desks.iter().flat_map(|desk| desk.networks())
    }

    fn desk(&self, provider: Provider) -> &dyn AnyDesk {
        &*self.desks[provider as usize]
    }
}

#[cfg(test)]
mod tests {
    use shared::{
        provider::{twilio, vonage},
        testing,
    };

    use super::*;

    #[test]
    fn slow_reports_move_the_deliveries_of_this_app_to_its_next_provider_and_nothing_else() {
        let providers = Providers::new(&Settings::default(), Clock::system()).unwrap();
        let [shop, bank]: [AppId; 2] = ["shop", "bank"].map(|id| id.parse().unwrap());
        let address = testing::address(&shop, Provider::Twilio, "+41791234567");
        let credentials = || {
            let twilio = twilio::Credential {
                account_sid: format!("AC{:032}", 1),
                api_key_sid: None,
                secret: "secret".to_owned().into(),
                messaging_service_sid: None,
                webhook_key: None,
            };
            let vonage = vonage::Credential {
                api_key: "abcd1234".into(),
                api_secret: "secret".to_owned().into(),
                webhook_key: None,
            };
            vec![Credential::Twilio(twilio), Credential::Vonage(vonage)]
        };
        let follow = |app: &AppId, provider| providers.follow(app, &address, provider);
        for app in [&shop, &bank] {
            providers.configure(app, credentials()).unwrap();
            assert!(follow(app, Provider::Twilio).is_none(), "no other may be asked");
            let route = |(provider, weight)| Route { provider, weight };
            let routes = [(Provider::Twilio, 100), (Provider::Vonage, 0), (Provider::Sns, 0)].map(route);
            providers.route(app, &[(Channel::Sms, routes.to_vec())].into());
        }
        for unheard in [Provider::Sns, Provider::Log] {
            assert!(follow(&shop, unheard).is_none(), "{unheard} reports nothing");
        }
        let quick = Some(Duration::from_secs(2));
        for waited in [quick; 8].into_iter().chain([None; 3]) {
            follow(&shop, Provider::Twilio).unwrap().learn(waited);
        }
        // Of 160 deliveries, the number whose first attempt asks Twilio first. Each attempt asks both providers.
        let of_twilio = |app: &AppId| {
            let orders = (0..160).map(|id| {
                let delivery = DeliveryId::of(shared::id::JobId(uuid::Uuid::from_u128(id)), address.id);
                providers.order(app, &address, delivery, 1)
            });
            orders
                .inspect(|order| assert_eq!(order.len(), 2, "{order:?}"))
                .filter(|order| order[0] == Provider::Twilio)
                .count()
        };
        assert!((1..30).contains(&of_twilio(&shop)), "{}", of_twilio(&shop));
        assert_eq!(of_twilio(&bank), 160);
        assert!(providers.slow_routes().contains(&(Provider::Twilio, 1)));
        for _ in 0..2 {
            follow(&shop, Provider::Twilio).unwrap().learn(quick);
        }
        assert_eq!(of_twilio(&shop), 160);
    }
}
