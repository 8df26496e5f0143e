//! An app as operators and callers write it, in the clear: a table of `mesh.toml`, or the JSON of the API.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use shared::{
    api_key::{ApiKey, NewKey, Scope},
    app::{Ambiguity, App, Quota, Route},
    channel::Channel,
    country::Country,
    id::{AccountKey, AppId, RecipientId, Region},
    invalid::Invalid,
    nats::config::Tenants,
    objects,
    page::Page,
    policy::{
        category::{Categories, CategoryPolicy},
        limit::Limit,
        quiet::QuietHours,
        zone::{self, UnknownZone},
    },
    private_host::PrivateHost,
    provider::{Credential, Provider},
    seal::MeshKey,
    secret::Secret,
    senders::Senders,
    signature::SigningKey,
    spend::SpendCap,
    tolerant::{is_usual, or_default},
};
use utoipa::ToSchema;

/// An app. Secrets are written and never shown: a credential, or the secret of the alerts, that is given as it is shown stays
/// as it is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schema(as = App)]
pub(crate) struct AppDocument {
    pub(crate) id: AppId,
    pub(crate) default_region: Region,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) residency: Option<Region>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) keys: Vec<KeyDocument>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    ambiguity: BTreeMap<Channel, Ambiguity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    alerts: Option<AlertsDocument>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub(crate) services: bool,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    outbox: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) account: Option<AccountKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    apns: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    fcm: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    suspended: bool,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    credentials: BTreeMap<Provider, Map<String, Value>>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    routes: BTreeMap<Channel, Vec<Route>>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Senders::is_empty")]
    #[schema(value_type = Object)]
    senders: Senders,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    sms_countries: BTreeSet<Country>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(max_items = 100)]
    test_recipients: BTreeSet<RecipientId>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    spend_caps: Vec<SpendCap>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    allowed_hosts: Vec<PrivateHost>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    categories: Categories,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Page::is_none")]
    #[schema(value_type = Object)]
    page: Page,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    quiet_hours: Vec<QuietHours>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    limits: Vec<Limit>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_usual")]
    #[schema(value_type = String)]
    unknown_zone: UnknownZone,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timezone: Option<String>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_usual")]
    #[schema(value_type = Object)]
    quota: Quota,
}

objects!(AppDocument, AlertsDocument, KeyDocument);

/// Where dead letters are reported.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct AlertsDocument {
    url: String,
    #[serde(default, skip_serializing)]
    secret: Option<Secret>,
}

/// A key: what a request states, and what an answer adds.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schema(as = Key)]
pub(crate) struct KeyDocument {
    pub(crate) scopes: Vec<Scope>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// The key itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    test: bool,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    signing: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    created_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    used_at: Option<Timestamp>,
}

impl KeyDocument {
    /// What is to be made; `None` if it is a key that exists.
    pub(crate) fn wanted(&self) -> Option<NewKey> {
        self.id.is_none().then(|| NewKey {
            scopes: self.scopes.clone(),
            name: self.name.clone(),
            expires_at: self.expires_at,
            test: self.test,
            signing: self.signing,
        })
    }

    /// Checks that only what is to be made is stated.
    ///
    /// # Errors
    /// The member that answers alone have.
    pub(crate) fn check_new(&self) -> Result<(), Invalid> {
        let answered = [
            ("id", self.id.is_some()),
            ("key", self.key.is_some()),
            ("created_at", self.created_at.is_some()),
            ("used_at", self.used_at.is_some()),
        ];
        match answered.into_iter().find(|(_, is_given)| *is_given) {
            Some((member, _)) => Err(Invalid::new(member, "must not be given")),
            None => Ok(()),
        }
    }

    /// The same key, which was last used in this hour.
    pub(crate) fn used(self, used_at: Option<Timestamp>) -> Self {
        Self { used_at, ..self }
    }

    /// A key as it is shown; with its text if it was just made.
    pub(crate) fn of(key: &ApiKey, text: Option<String>) -> Self {
        Self {
            scopes: key.scopes.clone(),
            id: Some(key.key_id.clone()),
            key: text,
            expires_at: key.expires_at,
            test: key.test,
            signing: key.signing(),
            name: key.name.clone(),
            created_at: key.created_at,
            used_at: None,
        }
    }
}

impl AppDocument {
    /// The app as it is shown.
    pub(crate) fn of(app: &App, mesh_key: &MeshKey, keys: Vec<KeyDocument>) -> Self {
        // A credential that cannot be opened is shown without members.
        let shown = |provider: Provider| {
            let credential = app.credential(mesh_key, provider).ok().flatten();
            let shown = credential.map(|credential| credential.shown());
            app.credentials
                .contains_key(&provider)
                .then(|| shown.unwrap_or_default())
        };
        let others = app.credentials.keys().filter(|provider| !Self::has_member(**provider));
        Self {
            id: app.id.clone(),
            default_region: app.default_region.clone(),
            residency: app.residency.clone(),
            keys,
            ambiguity: app.ambiguity.clone(),
            alerts: app.alerts.as_ref().map(|alerts| AlertsDocument {
                url: alerts.url.clone(),
                secret: None,
            }),
            services: app.services,
            outbox: app.outbox,
            account: app.account.clone(),
            apns: shown(Provider::Apns),
            fcm: shown(Provider::Fcm),
            suspended: app.suspended,
            credentials: others
                .filter_map(|provider| Some((*provider, shown(*provider)?)))
                .collect(),
            routes: app.routes.clone(),
            senders: app.senders.clone(),
            sms_countries: app.sms_countries.clone(),
            test_recipients: app.test_recipients.clone(),
            spend_caps: app.spend_caps.clone(),
            allowed_hosts: app.allowed_hosts.clone(),
            categories: app.categories.clone(),
            page: app.page.clone(),
            quiet_hours: app.quiet_hours.clone(),
            limits: app.limits.clone(),
            unknown_zone: app.unknown_zone,
            timezone: app.timezone.clone(),
            quota: app.quota,
        }
    }

    /// Whether the credential for `provider` is a member of its own, and not among `credentials`.
    const fn has_member(provider: Provider) -> bool {
        matches!(provider, Provider::Apns | Provider::Fcm)
    }

    /// Checks the whole, tries the keys of new credentials, and seals them. What is given as it is shown, and what has not
    /// changed, stays as it is sealed in `former`, so that an app that has not changed is equal to it.
    ///
    /// # Errors
    /// The first member that breaks a rule.
    pub(crate) fn seal(&self, former: Option<&App>, mesh_key: &MeshKey) -> Result<App, Invalid> {
        self.quota.check().map_err(|invalid| invalid.within("quota"))?;
        self.senders.check().map_err(|invalid| invalid.within("senders"))?;
        PrivateHost::check(&self.allowed_hosts).map_err(|invalid| invalid.within("allowed_hosts"))?;
        SpendCap::check(&self.spend_caps).map_err(|invalid| invalid.within("spend_caps"))?;
        CategoryPolicy::check(&self.categories).map_err(|invalid| invalid.within("categories"))?;
        self.page.check().map_err(|invalid| invalid.within("page"))?;
        QuietHours::check(&self.quiet_hours).map_err(|invalid| invalid.within("quiet_hours"))?;
        Limit::check_of_app(&self.limits).map_err(|invalid| invalid.within("limits"))?;
        self.timezone.as_deref().map_or(Ok(()), zone::check)?;
        for (channel, routes) in &self.routes {
            let checked = Route::check(*channel, routes).map_err(|invalid| invalid.within(channel.as_str()));
            checked.map_err(|invalid| invalid.within("routes"))?;
        }
        if self
            .residency
            .as_ref()
            .is_some_and(|region| *region != self.default_region)
        {
            return Err(Invalid::new("residency", "must be the default_region too"));
        }
        // Every member is named here, so that a new one is not lost by a write.
        let mut app = App {
            id: self.id.clone(),
            default_region: self.default_region.clone(),
            residency: self.residency.clone(),
            ambiguity: self.ambiguity.clone(),
            alerts: None,
            services: self.services,
            outbox: self.outbox,
            account: self.account.clone(),
            quota: self.quota,
            routes: self.routes.clone(),
            senders: self.senders.clone(),
            sms_countries: self.sms_countries.clone(),
            test_recipients: self.test_recipients.clone(),
            spend_caps: self.spend_caps.clone(),
            allowed_hosts: self.allowed_hosts.clone(),
            categories: self.categories.clone(),
            page: self.page.clone(),
            quiet_hours: self.quiet_hours.clone(),
            limits: self.limits.clone(),
            unknown_zone: self.unknown_zone,
            timezone: self.timezone.clone(),
            suspended: self.suspended,
            credentials: BTreeMap::new(),
        };
        app.check_test_recipients()?;
        if let Some(alerts) = &self.alerts {
            alerts
                .seal(&mut app, former, mesh_key)
                .map_err(|invalid| invalid.within("alerts"))?;
        }
        let own = [(Provider::Apns, &self.apns), (Provider::Fcm, &self.fcm)];
        for (provider, members) in own {
            if let Some(members) = members {
                seal(&mut app, provider, members, former, mesh_key)
                    .map_err(|invalid| invalid.within(provider.as_str()))?;
            }
        }
        for (provider, members) in &self.credentials {
            let within = |invalid: Invalid| invalid.within(provider.as_str()).within("credentials");
            if Self::has_member(*provider) && app.credentials.contains_key(provider) {
                return Err(within(Invalid::new("", "must be given once")));
            }
            seal(&mut app, *provider, members, former, mesh_key).map_err(within)?;
        }
        Ok(app)
    }
}

impl AlertsDocument {
    fn seal(&self, app: &mut App, former: Option<&App>, mesh_key: &MeshKey) -> Result<(), Invalid> {
        if !self.url.starts_with("https://") && !self.url.starts_with("http://") {
            return Err(Invalid::new("url", "must be an absolute URL"));
        }
        let former = former.and_then(|former| Some((former, former.alerts.as_ref()?)));
        let kept = former.filter(|(former, _)| {
            let same = |secret: &Secret| former.alerts_secret(mesh_key).as_ref() == Some(secret);
            self.secret.as_ref().is_none_or(same)
        });
        if let Some((_, alerts)) = kept {
            app.alerts = Some(shared::app::Alerts {
                url: self.url.clone(),
                secret: alerts.secret.clone(),
            });
            return Ok(());
        }
        let secret = self.secret.as_ref();
        let secret = secret.ok_or_else(|| Invalid::new("secret", "must be given"))?;
        SigningKey::new(secret).map_err(|Invalid { rule, .. }| Invalid::new("secret", rule))?;
        app.alert(mesh_key, self.url.clone(), secret);
        Ok(())
    }
}

/// The keys of an app, by age.
pub(crate) fn keys_of<'a>(known: &'a Tenants, app: &AppId) -> impl Iterator<Item = &'a ApiKey> + use<'a> {
    let keys = known.keys.values().map(Arc::as_ref);
    let mut keys: Vec<&ApiKey> = keys.filter(|key| key.app == *app).collect();
    keys.sort_by(|a, b| (a.created_at, &a.key_id).cmp(&(b.created_at, &b.key_id)));
    keys.into_iter()
}

/// Gives `app` the credential with these members.
fn seal(
    app: &mut App,
    provider: Provider,
    members: &Map<String, Value>,
    former: Option<&App>,
    mesh_key: &MeshKey,
) -> Result<(), Invalid> {
    let known = former.and_then(|former| {
        let credential = former.credential(mesh_key, provider).ok()??;
        Some((former.credentials.get(&provider)?, credential))
    });
    if let Some((sealed, known)) = &known
        && known.shown() == *members
    {
        app.credentials.insert(provider, (*sealed).clone());
        return Ok(());
    }
    let credential = Credential::read(provider, members.clone())?;
    match known {
        Some((sealed, known)) if known == credential => {
            app.credentials.insert(provider, sealed.clone());
        }
        _ => {
            credential.try_keys()?;
            app.seal(mesh_key, &credential);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use shared::{contract, testing::mesh_key};

    use super::*;

    const P256: &str = include_str!("../../../edge-worker/src/providers/testdata/p256.pem");

    fn document(members: &Value) -> AppDocument {
        let mut document = json!({ "id": "shop", "default_region": "eu" });
        for (name, value) in members.as_object().unwrap() {
            document[name] = value.clone();
        }
        serde_json::from_value(document).unwrap()
    }

    fn with_secrets() -> Value {
        json!({
            "apns": { "team_id": "TEAM123456", "key_id": "KEY1234567", "topic": "com.example", "private_key": P256 },
            "credentials": {
                "smtp": { "host": "mail.example.com", "user": "shop", "password": "hunter2" },
                "webhook": {},
            },
            "alerts": { "url": "https://ops.example.com", "secret": "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" },
        })
    }

    #[test]
    fn what_is_shown_holds_no_secret_and_written_back_changes_nothing() {
        let key = mesh_key();
        let app = document(&with_secrets()).seal(None, &key).unwrap();
        let shown = AppDocument::of(&app, &key, Vec::new());
        let text = serde_json::to_string(&shown).unwrap();
        for secret in ["PRIVATE", "hunter2", "whsec", "private_key", "password"] {
            assert!(!text.contains(secret), "{text}");
        }
        assert!(
            text.contains("TEAM123456") && text.contains("mail.example.com"),
            "{text}"
        );
        let back: AppDocument = serde_json::from_str(&text).unwrap();
        assert_eq!(back.seal(Some(&app), &key).unwrap(), app);
        assert_eq!(
            document(&with_secrets()).seal(Some(&app), &key).unwrap(),
            app,
            "the same secrets are no change"
        );

        let mut other = with_secrets();
        other["credentials"]["smtp"]["password"] = json!("hunter3");
        let other = document(&other).seal(Some(&app), &key).unwrap();
        assert!(other != app && other.credentials[&Provider::Apns] == app.credentials[&Provider::Apns]);
        assert!(
            document(&json!({}))
                .seal(Some(&app), &key)
                .unwrap()
                .credentials
                .is_empty()
        );
    }

    #[test]
    fn null_is_absent_and_a_list_is_no_object() {
        let mut bare = json!({ "id": "shop", "default_region": "eu" });
        let read = |document: &Value| serde_json::from_value::<AppDocument>(document.clone());
        let absent = read(&bare).unwrap();
        let shown = serde_json::to_value(&absent).unwrap();
        assert_eq!(shown, bare);
        for member in contract::page().members_of("App") {
            if !member.default.starts_with("required") {
                bare[member.name] = Value::Null;
            }
        }
        assert!(bare.as_object().unwrap().len() > 10);
        assert_eq!(serde_json::to_value(read(&bare).unwrap()).unwrap(), shown);
        assert!(read(&json!(["shop", "eu"])).is_err());
        assert!(serde_json::from_value::<KeyDocument>(json!([["apps:read"]])).is_err());
    }

    #[test]
    fn a_secret_that_is_kept_must_exist_and_a_key_must_sign() {
        let key = mesh_key();
        let refused = |members: Value| document(&members).seal(None, &key).unwrap_err().field;
        let mut members = with_secrets();
        members["apns"]["private_key"] = json!("PEM");
        assert_eq!(refused(members), "apns.private_key");
        assert_eq!(
            refused(json!({ "alerts": { "url": "https://a.example" } })),
            "alerts.secret"
        );
        let shown = json!({ "credentials": { "smtp": { "host": "mail.example.com", "user": "shop" } } });
        assert!(refused(shown).starts_with("credentials.smtp"));
        let twice = json!({ "apns": with_secrets()["apns"], "credentials": { "apns": with_secrets()["apns"] } });
        assert_eq!(refused(twice), "credentials.apns");
        assert_eq!(refused(json!({ "residency": "us" })), "residency");
        assert_eq!(refused(json!({ "quota": { "in_flight": 0 } })), "quota.in_flight");
        let caps = json!([{ "segments": 1, "window_s": 3600 }, { "segments": 1, "window_s": 60 }]);
        assert_eq!(refused(json!({ "spend_caps": caps })), "spend_caps[1].window_s");
        assert_eq!(refused(json!({ "allowed_hosts": ["a", "A"] })), "allowed_hosts[1]");
        let untitled = json!({ "offers": { "title": "" } });
        assert_eq!(refused(json!({ "categories": untitled })), "categories.offers.title");
        assert_eq!(refused(json!({ "page": { "name": "" } })), "page.name");
    }
}
