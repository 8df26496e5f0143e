//! Tenants and their provider credentials.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    address::Target,
    channel::{Channel, words},
    country::Country,
    id::{AccountKey, AppId, Category, RecipientId, Region},
    invalid::Invalid,
    job::Job,
    page::Page,
    policy::{
        category::{self, Categories, CategoryKind},
        limit::Limit,
        quiet::QuietHours,
        zone::UnknownZone,
    },
    private_host::PrivateHost,
    provider::{Credential, Provider},
    seal::{MeshKey, SealError, Sealed},
    secret::Secret,
    senders::Senders,
    spend::SpendCap,
    tolerant::{self, is_usual},
};

/// A tenant, as kept in the `config` bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct App {
    /// The name of the app, unique in the mesh.
    pub id: AppId,
    /// The home of recipients that were registered without one.
    pub default_region: Region,
    /// The one region in which its recipients, facts and content are kept; other regions refuse its requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residency: Option<Region>,
    /// By channel, what to do when it is unknown whether a notification was sent; [`Ambiguity::usual`] for channels that
    /// are absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ambiguity: BTreeMap<Channel, Ambiguity>,
    /// The webhook that reports dead letters to its developers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alerts: Option<Alerts>,
    /// Whether services publish notifications of this app over NATS. It then has an intake in every region.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub services: bool,
    /// Whether the app has NATS servers of its own, with a stream `OUTBOX` that its intakes source.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub outbox: bool,
    /// The app's NATS account, where servers name accounts by their keys; else the account has the name of the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountKey>,
    /// What the app's callers may do, where it differs from the gateways' settings.
    #[serde(default, skip_serializing_if = "Quota::is_default")]
    pub quota: Quota,
    /// By channel, the providers in the order in which they are asked; [`Target::carriers`] for channels that are absent.
    ///
    /// [`Target::carriers`]: crate::address::Target::carriers
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<Channel, Vec<Route>>,
    /// What may stand in `from`.
    #[serde(default, skip_serializing_if = "Senders::is_empty")]
    pub senders: Senders,
    /// The countries to whose numbers text messages may be sent.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub sms_countries: BTreeSet<Country>,
    /// The recipients that test keys reach.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub test_recipients: BTreeSet<RecipientId>,
    /// The most segments of text messages in a window, by country and prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spend_caps: Vec<SpendCap>,
    /// Hosts in private networks that its webhooks may reach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_hosts: Vec<PrivateHost>,
    /// What applies to the notifications of each category.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub categories: Categories,
    /// How the pages look to which its links lead.
    #[serde(default, skip_serializing_if = "Page::is_none")]
    pub page: Page,
    /// When recipients are not to be disturbed who set no quiet hours of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quiet_hours: Vec<QuietHours>,
    /// How often each recipient is sent a notification.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
    /// What applies to recipients whose time zone is not known.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub unknown_zone: UnknownZone,
    /// The app's own time zone; UTC if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Whether the operator suspended it: its requests are refused, and its work waits.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub suspended: bool,
    /// The credentials of the app, sealed with the mesh key.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub credentials: BTreeMap<Provider, SealedCredential>,
}

/// A webhook for alerts, signed by the rules of Standard Webhooks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alerts {
    /// The https URL that alerts are posted to.
    pub url: String,
    /// The signing key: `whsec_`, then the key in base64.
    pub secret: Sealed,
}

/// What an app's callers may do. An absent member is the gateway's setting of the same name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Requests a second, for each API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_s: Option<u32>,
    /// Jobs a second, in a region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jobs_per_s: Option<u32>,
    /// Requests at one time, for each API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
    /// Jobs that wait in a lane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_jobs: Option<u32>,
    /// Bytes that wait in the lanes of a region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
}

impl Quota {
    /// The gateways' settings.
    pub const NONE: Self = Self {
        requests_per_s: None,
        jobs_per_s: None,
        in_flight: None,
        waiting_jobs: None,
        stored_bytes: None,
    };

    /// Checks the limits that the contract sets for each member.
    ///
    /// # Errors
    /// The first member outside its limits.
    pub fn check(&self) -> Result<(), Invalid> {
        let ranges = [
            ("requests_per_s", self.requests_per_s, 1_000_000),
            ("jobs_per_s", self.jobs_per_s, 10_000_000),
            ("in_flight", self.in_flight, 8192),
            ("waiting_jobs", self.waiting_jobs, 10_000_000),
        ];
        for (name, value, most) in ranges {
            if value.is_some_and(|value| !(1..=most).contains(&value)) {
                return Err(Invalid::new(name, format!("must be 1 to {most}")));
            }
        }
        if self.stored_bytes.is_some_and(|bytes| bytes < 1 << 20) {
            return Err(Invalid::new("stored_bytes", "must be at least 1048576"));
        }
        Ok(())
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A provider that may carry a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The provider.
    pub provider: Provider,
    /// Its share of the deliveries among the routes of the channel, 0 to 100; with 0 it is asked only if the others fail.
    #[serde(default = "Route::full_weight", skip_serializing_if = "Route::is_full_weight")]
    pub weight: u8,
}

impl Route {
    /// Most routes of a channel.
    const MAX: usize = 4;

    const fn full_weight() -> u8 {
        100
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    const fn is_full_weight(weight: &u8) -> bool {
        *weight == Self::full_weight()
    }

    /// Checks the routes of a channel.
    ///
    /// # Errors
    /// The first route that breaks a rule; its path begins at the list.
    pub fn check(channel: Channel, routes: &[Self]) -> Result<(), Invalid> {
        if !(1..=Self::MAX).contains(&routes.len()) {
            return Err(Invalid::new("", "must be 1 to 4 routes"));
        }
        for (index, route) in routes.iter().enumerate() {
            if !route.provider.carries(channel) {
                let rule = format_args!("must carry {channel}");
                return Err(Invalid::new(format!("[{index}].provider"), rule));
            }
            if routes[..index].iter().any(|former| former.provider == route.provider) {
                return Err(Invalid::new(format!("[{index}].provider"), "must not be given twice"));
            }
            if route.weight > Self::full_weight() {
                return Err(Invalid::new(format!("[{index}].weight"), "must be 0 to 100"));
            }
        }
        if routes.iter().all(|route| route.weight == 0) {
            return Err(Invalid::new("[0].weight", "must be more than 0 for one of the routes"));
        }
        Ok(())
    }
}

words!(
    /// What to do with a delivery that was sent, or may have been, without an answer.
    Ambiguity, "ambiguity", {
        /// Send it again under the same id, so that the device shows it once.
        Resend = "resend",
        /// End it as `unknown` and let a person decide.
        Hold = "hold",
    }
);

impl Ambiguity {
    /// The default for a channel: a second push replaces the first on the device, a second text message costs money and
    /// annoys.
    pub const fn usual(channel: Channel) -> Self {
        match channel {
            Channel::Sms => Self::Hold,
            Channel::Push | Channel::Email | Channel::Webhook => Self::Resend,
        }
    }
}

impl App {
    /// Most test recipients of an app.
    const TEST_RECIPIENTS_MAX: usize = 100;

    /// An app with the default settings and without credentials.
    pub const fn new(id: AppId, default_region: Region) -> Self {
        Self {
            id,
            default_region,
            residency: None,
            ambiguity: BTreeMap::new(),
            alerts: None,
            services: false,
            outbox: false,
            account: None,
            quota: Quota::NONE,
            routes: BTreeMap::new(),
            senders: Senders::none(),
            sms_countries: BTreeSet::new(),
            test_recipients: BTreeSet::new(),
            spend_caps: Vec::new(),
            allowed_hosts: Vec::new(),
            categories: BTreeMap::new(),
            page: Page::none(),
            quiet_hours: Vec::new(),
            limits: Vec::new(),
            unknown_zone: UnknownZone::App,
            timezone: None,
            suspended: false,
            credentials: BTreeMap::new(),
        }
    }

    /// Whether the app opens the country of `target`, if it is a phone number. Fraud goes to countries where calls and messages
    /// are dear, so each is closed until the app opens it. A number whose country is not known is closed.
    pub fn opens(&self, target: &Target) -> bool {
        match target {
            Target::Phone(phone) => {
                Country::of_number(phone.reveal()).is_some_and(|country| self.sms_countries.contains(&country))
            }
            _ => true,
        }
    }

    /// Whether `job` may reach its addressee: what a test key sent reaches listed recipients only, and no address that a request
    /// names.
    pub fn lets_reach(&self, job: &Job) -> bool {
        let is_listed = |recipient| self.test_recipients.contains(recipient);
        !job.trial.test_key || job.recipient().is_some_and(is_listed)
    }

    /// Checks how many test recipients there are.
    ///
    /// # Errors
    /// When there are too many.
    pub fn check_test_recipients(&self) -> Result<(), Invalid> {
        if self.test_recipients.len() > Self::TEST_RECIPIENTS_MAX {
            let rule = format_args!("must be at most {}", Self::TEST_RECIPIENTS_MAX);
            return Err(Invalid::new("test_recipients", rule));
        }
        Ok(())
    }

    /// Whether any limit may concern a notification of `category`.
    pub fn has_limits(&self, category: Option<&Category>) -> bool {
        let policy = category.and_then(|category| self.categories.get(category));
        !self.limits.is_empty() || policy.is_some_and(|policy| !policy.limits.is_empty())
    }

    /// What the notifications of `category` are.
    pub fn kind(&self, category: Option<&Category>) -> CategoryKind {
        let policy = category.and_then(|category| self.categories.get(category));
        policy.map_or(CategoryKind::Default, |policy| policy.kind)
    }

    /// The name of the app's NATS account: the second token of the subjects that its services publish to.
    pub fn account_name(&self) -> &str {
        self.account.as_ref().map_or(self.id.as_str(), AccountKey::as_str)
    }

    /// Whether the app has a credential for a provider that carries `channel`.
    pub fn has_provider_for(&self, channel: Channel) -> bool {
        self.credentials.keys().any(|provider| provider.carries(channel))
    }

    /// What to do on `channel` when it is unknown whether a notification was sent.
    pub fn ambiguity(&self, channel: Channel) -> Ambiguity {
        self.ambiguity
            .get(&channel)
            .copied()
            .unwrap_or(Ambiguity::usual(channel))
    }
}

/// A credential as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SealedCredential {
    /// All members, as JSON, sealed together.
    Whole(Sealed),
    /// As 0.1 stored it: one member sealed, the others beside it in the clear.
    Members(Map<String, Value>),
}

/// Why a stored credential cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadCredential {
    /// It was sealed for another app or provider, or with another mesh key.
    #[error("{0}: {1}")]
    Closed(Provider, SealError),
    /// A member breaks a rule.
    #[error("{0}.{1}")]
    Invalid(Provider, Invalid),
}

impl SealedCredential {
    fn open(&self, mesh_key: &MeshKey, app: &AppId, provider: Provider) -> Result<Credential, BadCredential> {
        let name = seal_name(app, provider);
        let closed = |error| BadCredential::Closed(provider, error);
        let damaged = || closed(SealError::Closed);
        let json = match self {
            Self::Whole(sealed) => mesh_key.open(&name, sealed).map_err(closed)?,
            Self::Members(members) => {
                let mut members = members.clone();
                let sealed = match provider {
                    Provider::Apns => "private_key",
                    Provider::Fcm => "service_account",
                    // 0.1 knew no others.
                    _ => "",
                };
                if let Some(member) = members.get_mut(sealed) {
                    let text = serde_json::from_value(member.take()).map_err(|_| damaged())?;
                    *member = mesh_key.open(&name, &text).map_err(closed)?.into();
                }
                Value::Object(members).to_string()
            }
        };
        Credential::read_stored(provider, json.as_bytes()).map_err(|invalid| BadCredential::Invalid(provider, invalid))
    }
}

impl App {
    /// Stores `credential` in place of the one for the same provider.
    pub fn seal(&mut self, mesh_key: &MeshKey, credential: &Credential) {
        let provider = credential.provider();
        let sealed = mesh_key.seal(&seal_name(&self.id, provider), &credential.reveal());
        self.credentials.insert(provider, SealedCredential::Whole(sealed));
    }

    /// Makes `secret` the key that signs the app's alerts, which are posted to `url`.
    pub fn alert(&mut self, mesh_key: &MeshKey, url: String, secret: &Secret) {
        let secret = mesh_key.seal(&alerts_seal_name(&self.id), secret.reveal());
        self.alerts = Some(Alerts { url, secret });
    }

    /// The key that signs the app's alerts; `None` if it has none, or `mesh_key` does not open it.
    pub fn alerts_secret(&self, mesh_key: &MeshKey) -> Option<Secret> {
        let alerts = self.alerts.as_ref()?;
        let secret = mesh_key.open(&alerts_seal_name(&self.id), &alerts.secret);
        secret.ok().map(Secret::from)
    }

    /// Whether `mesh_key` opens any credential of the app; `None` if it has none.
    pub fn is_sealed_with(&self, mesh_key: &MeshKey) -> Option<bool> {
        let opens = |(provider, sealed): (&Provider, &SealedCredential)| {
            !matches!(
                sealed.open(mesh_key, &self.id, *provider),
                Err(BadCredential::Closed(..))
            )
        };
        (!self.credentials.is_empty()).then(|| self.credentials.iter().any(opens))
    }

    /// All credentials of the app, in the clear.
    ///
    /// # Errors
    /// The first credential that cannot be used.
    pub fn credentials(&self, mesh_key: &MeshKey) -> Result<Vec<Credential>, BadCredential> {
        let all = self.credentials.keys();
        all.filter_map(|provider| self.credential(mesh_key, *provider).transpose())
            .collect()
    }

    /// The credential of the app for `provider`, in the clear; `None` if it has none.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn credential(&self, mesh_key: &MeshKey, provider: Provider) -> Result<Option<Credential>, BadCredential> {
        let sealed = self.credentials.get(&provider);
        sealed
            .map(|sealed| sealed.open(mesh_key, &self.id, provider))
            .transpose()
    }
}

/// An app's JSON, with the members in which 0.1 stored credentials.
#[derive(Deserialize)]
struct Stored {
    id: AppId,
    default_region: Region,
    #[serde(default)]
    residency: Option<Region>,
    #[serde(default)]
    ambiguity: BTreeMap<Channel, Ambiguity>,
    #[serde(default)]
    alerts: Option<Alerts>,
    #[serde(default)]
    services: bool,
    #[serde(default)]
    outbox: bool,
    #[serde(default)]
    account: Option<AccountKey>,
    #[serde(default)]
    quota: Quota,
    /// Routes to providers that this version does not know are ignored.
    #[serde(default)]
    routes: BTreeMap<Channel, Vec<StoredRoute>>,
    #[serde(default)]
    senders: Senders,
    #[serde(default)]
    sms_countries: BTreeSet<Country>,
    #[serde(default)]
    test_recipients: BTreeSet<RecipientId>,
    #[serde(default)]
    spend_caps: Vec<SpendCap>,
    #[serde(default)]
    allowed_hosts: Vec<PrivateHost>,
    #[serde(default)]
    categories: BTreeMap<String, Value>,
    #[serde(default)]
    page: Page,
    #[serde(default)]
    quiet_hours: Vec<Value>,
    #[serde(default)]
    limits: Vec<Value>,
    /// A word of a newer version is as if it were absent.
    #[serde(default)]
    unknown_zone: Option<String>,
    #[serde(default)]
    timezone: Option<String>,
    #[serde(default)]
    suspended: bool,
    /// By the name of the provider; credentials for providers that this version does not know are ignored.
    #[serde(default)]
    credentials: BTreeMap<String, SealedCredential>,
    #[serde(default)]
    apns: Option<SealedCredential>,
    #[serde(default)]
    fcm: Option<SealedCredential>,
}

/// A route as it is stored, perhaps by a newer version.
#[derive(Deserialize)]
struct StoredRoute {
    provider: String,
    #[serde(default = "Route::full_weight")]
    weight: u8,
}

impl StoredRoute {
    fn known(self) -> Option<Route> {
        Some(Route {
            provider: self.provider.parse().ok()?,
            weight: self.weight,
        })
    }
}

impl From<Stored> for App {
    fn from(stored: Stored) -> Self {
        let former = [(Provider::Apns, stored.apns), (Provider::Fcm, stored.fcm)];
        let former = former
            .into_iter()
            .filter_map(|(provider, sealed)| Some((provider, sealed?)));
        let known = stored.credentials.into_iter();
        let known = known.filter_map(|(provider, sealed)| Some((provider.parse().ok()?, sealed)));
        let routes = stored.routes.into_iter();
        let routes =
            routes.map(|(channel, routes)| (channel, routes.into_iter().filter_map(StoredRoute::known).collect()));
        Self {
            id: stored.id,
            default_region: stored.default_region,
            residency: stored.residency,
            ambiguity: stored.ambiguity,
            alerts: stored.alerts,
            services: stored.services,
            outbox: stored.outbox,
            account: stored.account,
            quota: stored.quota,
            routes: routes.collect(),
            senders: stored.senders,
            sms_countries: stored.sms_countries,
            test_recipients: stored.test_recipients,
            spend_caps: stored.spend_caps,
            allowed_hosts: stored.allowed_hosts,
            categories: category::stored(stored.categories),
            page: stored.page,
            quiet_hours: tolerant::each_known(stored.quiet_hours),
            limits: tolerant::each_known(stored.limits),
            unknown_zone: stored
                .unknown_zone
                .and_then(|word| word.parse().ok())
                .unwrap_or_default(),
            timezone: stored.timezone,
            suspended: stored.suspended,
            credentials: former.chain(known).collect(),
        }
    }
}

/// The name under which the secret of the alerts of `app` is sealed.
pub(crate) fn alerts_seal_name(app: &AppId) -> String {
    format!("{app}/alerts")
}

/// The name under which the credential of `app` for `provider` is sealed; it opens nowhere else.
fn seal_name(app: &AppId, provider: Provider) -> String {
    seal_name_of(app, provider.as_str())
}

/// The same for a provider that this version may not know.
pub(crate) fn seal_name_of(app: &AppId, provider: &str) -> String {
    format!("{app}/{provider}")
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::{content::push::Push, job::Addressee, testing};

    fn key() -> MeshKey {
        MeshKey::from_base64(&STANDARD.encode([7; 32])).unwrap()
    }

    fn members() -> Map<String, Value> {
        let members =
            json!({ "team_id": "TEAM", "key_id": "KEY", "topic": "com.example", "private_key": "top-secret" });
        members.as_object().unwrap().clone()
    }

    #[test]
    fn a_credential_is_sealed_whole() {
        let mut app = App::new("shop".parse().unwrap(), "eu".parse().unwrap());
        let credential = Credential::read(Provider::Apns, members()).unwrap();
        app.seal(&key(), &credential);
        let stored = serde_json::to_string(&app).unwrap();
        assert!(!stored.contains("TEAM") && !format!("{credential:?}").contains("top-secret"));
        let read: App = serde_json::from_str(&stored).unwrap();
        assert_eq!(read, app);
        assert_eq!(read.credentials(&key()).unwrap(), std::slice::from_ref(&credential));
        let other = App {
            id: "bank".parse().unwrap(),
            ..read
        };
        assert!(other.credentials(&key()).is_err(), "it opens for no other app");
    }

    #[test]
    fn apps_that_0_1_stored_are_read() {
        let mut apns = members();
        let sealed = key().seal("shop/apns", "top-secret");
        apns.insert("private_key".into(), serde_json::to_value(sealed).unwrap());
        let stored = json!({ "id": "shop", "default_region": "eu", "apns": apns });
        let app: App = serde_json::from_value(stored).unwrap();
        let expected = Credential::read(Provider::Apns, members()).unwrap();
        assert_eq!(app.credentials(&key()).unwrap(), [expected]);
        let again: App = serde_json::from_value(serde_json::to_value(&app).unwrap()).unwrap();
        assert_eq!(again, app);
    }

    #[test]
    fn categories_are_stored_with_their_app() {
        let mut app = App::new("shop".parse().unwrap(), "eu".parse().unwrap());
        app.categories = serde_json::from_value(json!({ "codes": { "kind": "critical" } })).unwrap();
        let stored = serde_json::to_string(&app).unwrap();
        assert_eq!(serde_json::from_str::<App>(&stored).unwrap(), app);
        assert_eq!(app.kind(Some(&"codes".parse().unwrap())), CategoryKind::Critical);
        for other in [None, Some(&"offers".parse().unwrap())] {
            assert_eq!(app.kind(other), CategoryKind::Default);
        }
    }

    #[test]
    fn a_route_that_breaks_a_rule_is_named() {
        let check = |routes: Value| {
            let routes: Vec<Route> = serde_json::from_value(routes).unwrap();
            let checked = Route::check(Channel::Push, &routes);
            checked.map_or_else(|invalid| invalid.field, |()| String::new())
        };
        for (field, routes) in [
            ("", json!([{ "provider": "apns" }, { "provider": "log", "weight": 0 }])),
            ("[1].provider", json!([{ "provider": "apns" }, { "provider": "apns" }])),
            ("[0].weight", json!([{ "provider": "apns", "weight": 101 }])),
            ("[0].weight", json!([{ "provider": "apns", "weight": 0 }])),
        ] {
            assert_eq!(check(routes.clone()), field, "{routes}");
        }
        assert!(Route::check(Channel::Push, &[]).is_err());
        let apns = Route {
            provider: Provider::Apns,
            weight: 1,
        };
        assert_eq!(Route::check(Channel::Sms, &[apns]).unwrap_err().field, "[0].provider");
    }

    #[test]
    fn a_country_is_closed_until_the_app_opens_it() {
        let mut app = App::new("shop".parse().unwrap(), "eu".parse().unwrap());
        let opens = |app: &App, number: &str| app.opens(&Target::Phone(number.parse().unwrap()));
        assert!(!opens(&app, "+41791234567"));
        app.sms_countries = ["CH", "US"].map(|country| country.parse().unwrap()).into();
        for (number, open) in [
            ("+41791234567", true),
            ("+12025550123", true),
            ("+18765550123", false),
            ("+4915112345678", false),
            ("+881612345678", false),
        ] {
            assert_eq!(opens(&app, number), open, "{number}");
        }
        let mailbox = Target::Email("a@example.com".parse().unwrap());
        assert!(app.opens(&mailbox));
        let stored = serde_json::to_string(&app).unwrap();
        assert_eq!(serde_json::from_str::<App>(&stored).unwrap(), app);
    }

    #[test]
    fn a_test_key_reaches_listed_recipients_alone() {
        let mut app = App::new("shop".parse().unwrap(), "eu".parse().unwrap());
        let live = testing::job(&app.id, "e1", Push::default(), Timestamp::UNIX_EPOCH);
        let mut tested = live.clone();
        tested.trial.test_key = true;
        assert!(app.lets_reach(&live) && !app.lets_reach(&tested));
        app.test_recipients = ["ann".parse().unwrap()].into();
        assert!(app.lets_reach(&tested));
        let mailbox = testing::address(&app.id, Provider::Log, "ann@example.com");
        tested.to = Addressee::Address(mailbox.into());
        assert!(!app.lets_reach(&tested), "no address is listed");
        let stored = serde_json::to_string(&app).unwrap();
        assert_eq!(serde_json::from_str::<App>(&stored).unwrap(), app);
        app.test_recipients = (0..=100).map(|number| number.to_string().parse().unwrap()).collect();
        assert_eq!(app.check_test_recipients().unwrap_err().field, "test_recipients");
    }

    #[test]
    fn a_quota_outside_its_limits_names_the_member() {
        let invalid = |quota: Quota| quota.check().unwrap_err().field;
        let zero = Quota {
            in_flight: Some(0),
            ..Quota::default()
        };
        let small = Quota {
            stored_bytes: Some(1),
            ..Quota::default()
        };
        assert_eq!(
            (invalid(zero), invalid(small)),
            ("in_flight".into(), "stored_bytes".into())
        );
        Quota {
            jobs_per_s: Some(10_000_000),
            ..Quota::default()
        }
        .check()
        .unwrap();
    }

    #[test]
    fn an_app_of_a_newer_version_is_read() {
        let stored = json!({
            "id": "shop", "default_region": "eu", "newer": 1,
            "credentials": { "pigeon": key().seal("shop/pigeon", "x") },
            "routes": { "sms": [{ "provider": "pigeon" }, { "provider": "log" }] },
        });
        let app: App = serde_json::from_value(stored).unwrap();
        assert!(app.credentials.is_empty());
        assert_eq!(app.routes[&Channel::Sms].len(), 1);
    }

    #[test]
    fn a_bad_credential_names_the_member_and_not_the_value() {
        let mut members = members();
        members.insert("topic".into(), json!("top secret"));
        let invalid = Credential::read(Provider::Apns, members.clone()).unwrap_err();
        assert_eq!(invalid.field, "topic");
        members.insert("topic".into(), json!("com.example"));
        members.insert("team".into(), json!("top secret"));
        assert_eq!(Credential::read(Provider::Apns, members).unwrap_err().field, "team");
    }
}
