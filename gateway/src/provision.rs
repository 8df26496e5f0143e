//! Writes regions and apps to the hub's configuration: seals credentials, and issues API keys.
//!
//! An operator runs this command at the hub. It is not a part of the serving gateway, so it uses none of its rooms.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use async_nats::{Client, jetstream};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use shared::{
    api_key::{ApiKey, NewKey, Scope},
    app::{Alerts, Ambiguity, App, Quota, Route, alerts_seal_name},
    channel::Channel,
    clock::Clock,
    country::Country,
    id::{AccountKey, AppId, Region},
    id_key::IdKey,
    invalid::Invalid,
    nats::{
        config::{self, Tenants},
        leader,
        publish::NotStored,
        refusal::unless_refused,
        topology::{self, ApplyError, HUB},
    },
    provider::{Credential, Provider},
    seal::MeshKey,
    secret::Secret,
    senders::Senders,
    settings::{self, BadSettings},
    signature::SigningKey,
    site::Site,
};

/// An app with its credentials in clear text.
#[derive(Debug, Clone)]
pub struct NewApp {
    /// The name of the app.
    pub id: AppId,
    /// The home of recipients without a registered home.
    pub default_region: Region,
    /// Whether its services publish notifications over NATS.
    pub services: bool,
    /// Whether it has NATS servers of its own, with a stream `OUTBOX` that its intakes source.
    pub outbox: bool,
    /// The public key of its NATS account, where the servers have an operator.
    pub account: Option<AccountKey>,
    /// The region that the app's data must not leave, if there is one.
    pub residency: Option<Region>,
    /// How to treat a delivery that may or may not have been sent, by channel.
    pub ambiguity: BTreeMap<Channel, Ambiguity>,
    /// The webhook that reports dead letters to its developers.
    pub alerts: Option<NewAlerts>,
    /// What its callers may do, where it differs from the gateways' settings.
    pub quota: Quota,
    /// By channel, its providers in the order in which they are asked.
    pub routes: BTreeMap<Channel, Vec<Route>>,
    /// What may stand in `from`.
    pub senders: Senders,
    /// The countries to whose numbers text messages may be sent.
    pub sms_countries: BTreeSet<Country>,
    /// Its credentials, at most one for each provider.
    pub credentials: Vec<Credential>,
}

/// A webhook for alerts.
#[derive(Debug, Clone)]
pub struct NewAlerts {
    /// The https URL to which alerts are posted.
    pub url: String,
    /// `whsec_` and 24 to 64 bytes in base64 (Standard Webhooks).
    pub secret: Secret,
}

/// Why regions or apps could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The file of regions and apps cannot be used.
    #[error(transparent)]
    File(#[from] BadSettings),
    /// A region has the hub's name.
    #[error("region: must not be {HUB:?}, which is reserved for the hub")]
    Hub,
    /// An app's data would leave the region of its residency.
    #[error("residency of {0}: {1}")]
    Residency(AppId, &'static str),
    /// A member of an app's entry breaks a rule.
    #[error("app {0}: {1}")]
    Invalid(AppId, Invalid),
    /// A file that the file of regions and apps names cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, io::Error),
    /// The hub's streams cannot be created or changed.
    #[error("cannot change the hub's streams; connect to the hub as an operator: {0}")]
    Topology(#[from] ApplyError),
    /// The hub's configuration cannot be read.
    #[error(transparent)]
    Config(#[from] config::NotLoaded),
    /// The hub did not confirm that it stored an entry.
    #[error("the hub did not store {0}: {1}")]
    Write(String, NotStored),
}

/// `JetStream` at the hub. Only an operator who is connected to the hub may write to it.
pub fn hub(client: Client) -> jetstream::Context {
    jetstream::with_domain(client, HUB)
}

/// Creates or updates the hub's streams, and makes the mesh's key of ids if the configuration is empty; safe to repeat.
/// A mesh that version 0.1 provisioned stays without: with a key, jobs that are stored would have other ids.
/// Waits for a leader.
///
/// # Errors
/// When the hub does not answer or refuses.
pub async fn prepare_hub(hub: &jetstream::Context, mesh_key: &MeshKey, replicas: usize) -> Result<(), ProvisionError> {
    let wanted = topology::hub_streams(replicas);
    let client = hub.client();
    let applying = async || unless_refused(&client, |_| true, topology::apply(hub, &wanted)).await?;
    let may_pass = |error: &ApplyError| !matches!(error, ApplyError::Forbidden(_));
    for change in leader::patiently("the hub's streams", may_pass, applying).await? {
        tracing::info!(%change, "changed the hub's streams");
    }
    if config::read(hub).await?.is_empty() {
        let not_written = |error| ProvisionError::Write("the mesh's key of ids".into(), error);
        let sealed = IdKey::generate(mesh_key);
        config::create_id_key(hub, sealed).await.map_err(not_written)?;
    }
    Ok(())
}

/// Writes a region to the hub's configuration. The gateways of the other regions then create the sources for it.
///
/// # Errors
/// When the hub did not confirm that it stored the region, or the name is the hub's.
pub async fn write_region(hub: &jetstream::Context, region: &Region, site: &Site) -> Result<(), ProvisionError> {
    if region.as_str() == HUB {
        return Err(ProvisionError::Hub);
    }
    let not_written = |error| ProvisionError::Write(format!("region {region}"), error);
    config::put_region(hub, region, site).await.map_err(not_written)
}

/// Writes since when messages that come from another region need a proof that a gateway of this mesh accepted them.
/// Programs of 0.1 write none.
///
/// # Errors
/// When the hub did not confirm that it stored the time.
pub async fn require_proofs(hub: &jetstream::Context, since: Timestamp) -> Result<(), ProvisionError> {
    let not_written = |error| ProvisionError::Write("the time since which proofs are needed".to_owned(), error);
    config::put_proofs(hub, since).await.map_err(not_written)
}

/// Seals the credentials of `app`, writes it to the hub's configuration, and issues `keys`. Keys that were issued before
/// stay valid.
///
/// # Errors
/// When the hub did not confirm that it stored the app and the keys.
pub async fn write_app(
    hub: &jetstream::Context,
    mesh_key: &MeshKey,
    app: &NewApp,
    keys: &[NewKey],
) -> Result<Vec<String>, ProvisionError> {
    let not_written = |error| ProvisionError::Write(format!("app {}", app.id), error);
    config::put_app(hub, &app.seal(mesh_key)).await.map_err(not_written)?;
    let mut issued = Vec::with_capacity(keys.len());
    for new in keys {
        let (key, text) = ApiKey::issue(mesh_key, app.id.clone(), new.clone(), Clock::system().now());
        let not_written = |error| ProvisionError::Write(format!("an API key of {}", app.id), error);
        config::put_key(hub, &key).await.map_err(not_written)?;
        issued.push(text);
    }
    Ok(issued)
}

impl NewApp {
    /// An app with the default settings and without credentials.
    pub const fn new(id: AppId, default_region: Region) -> Self {
        Self {
            id,
            default_region,
            services: false,
            outbox: false,
            account: None,
            residency: None,
            ambiguity: BTreeMap::new(),
            alerts: None,
            quota: Quota::NONE,
            routes: BTreeMap::new(),
            senders: Senders::none(),
            sms_countries: BTreeSet::new(),
            credentials: Vec::new(),
        }
    }

    fn seal(&self, mesh_key: &MeshKey) -> App {
        let mut app = App {
            services: self.services,
            outbox: self.outbox,
            account: self.account.clone(),
            residency: self.residency.clone(),
            ambiguity: self.ambiguity.clone(),
            alerts: self.alerts.as_ref().map(|alerts| Alerts {
                url: alerts.url.clone(),
                secret: mesh_key.seal(&alerts_seal_name(&self.id), alerts.secret.reveal()),
            }),
            quota: self.quota,
            routes: self.routes.clone(),
            senders: self.senders.clone(),
            sms_countries: self.sms_countries.clone(),
            ..App::new(self.id.clone(), self.default_region.clone())
        };
        for credential in &self.credentials {
            app.seal(mesh_key, credential);
        }
        app
    }
}

/// A file of regions and apps.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    region: BTreeMap<Region, Site>,
    #[serde(default)]
    app: Vec<AppEntry>,
}

#[derive(Debug, Deserialize)]
struct AppEntry {
    id: AppId,
    default_region: Region,
    #[serde(default)]
    services: bool,
    #[serde(default)]
    outbox: bool,
    account: Option<AccountKey>,
    residency: Option<Region>,
    #[serde(default)]
    ambiguity: BTreeMap<Channel, Ambiguity>,
    alerts: Option<AlertsEntry>,
    #[serde(default)]
    quota: Quota,
    #[serde(default)]
    routes: BTreeMap<Channel, Vec<Route>>,
    #[serde(default)]
    senders: Senders,
    #[serde(default)]
    sms_countries: BTreeSet<Country>,
    #[serde(default)]
    keys: Vec<NewKey>,
    /// The members of each credential, by the name of its provider, and the table `credentials` with more of them. A member
    /// `<name>_file` is the path of a file with the text of the member `<name>`.
    #[serde(flatten)]
    members: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AlertsEntry {
    url: String,
    secret_file: PathBuf,
}

/// An API key that was issued.
#[derive(Debug)]
pub struct Issued {
    /// The app that the key identifies.
    pub app: AppId,
    /// The operations that the key allows.
    pub scopes: Vec<Scope>,
    /// The key as a caller sends it: `peal_<key id>_<secret>`. It is not stored anywhere.
    pub text: String,
}

/// The apps that have services, with the public keys of their accounts where servers have an operator.
pub type ServiceApps = BTreeMap<AppId, Option<AccountKey>>;

/// The regions in `file`, and the apps that have services.
///
/// # Errors
/// When the file cannot be read or parsed.
pub fn parties(file: &Path) -> Result<(BTreeMap<Region, Site>, ServiceApps), BadSettings> {
    let File { region, app } = settings::read(file)?;
    let apps = app
        .into_iter()
        .filter(|app| app.services)
        .map(|app| (app.id, app.account));
    Ok((region, apps.collect()))
}

/// Writes every region and every app in `file` to the hub's configuration. Paths in it are relative to its folder. A
/// key is issued for each entry in an app's `keys`, unless the app has such a key already: repeating changes nothing.
///
/// # Errors
/// When a file cannot be used, or the hub does not answer or refuses.
pub async fn run(
    client: Client,
    mesh_key: &MeshKey,
    replicas: usize,
    file: &Path,
) -> Result<Vec<Issued>, ProvisionError> {
    let read: File = settings::read(file)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    // All of it is read before anything is written: the texts of keys that were issued are shown once, at the end.
    let apps = read.app.iter().map(|entry| entry.load(folder));
    let apps = apps.collect::<Result<Vec<_>, _>>()?;
    let hub = hub(client);
    prepare_hub(&hub, mesh_key, replicas).await?;
    let known = config::read(&hub).await?;
    check_residency(&read, &known)?;
    let missing = read
        .app
        .iter()
        .map(|entry| entry.missing_keys(&known, Clock::system().now()));
    let missing = missing.collect::<Result<Vec<_>, _>>()?;
    for (region, site) in &read.region {
        write_region(&hub, region, site).await?;
    }
    if known.proofs_since.is_none() {
        require_proofs(&hub, Clock::system().now()).await?;
    }
    let mut issued = Vec::new();
    for ((entry, app), missing) in read.app.iter().zip(&apps).zip(missing) {
        let texts = write_app(&hub, mesh_key, app, &missing).await?;
        issued.extend(missing.into_iter().zip(texts).map(|(key, text)| Issued {
            app: entry.id.clone(),
            scopes: key.scopes,
            text,
        }));
    }
    Ok(issued)
}

/// An app with a residency must live in a region without helpers: the workers of a helper hold copies of the facts and
/// jobs of the region that it helps.
fn check_residency(read: &File, known: &Tenants) -> Result<(), ProvisionError> {
    let resident = read
        .app
        .iter()
        .filter_map(|app| Some((&app.id, app.residency.as_ref()?)));
    for app in read.app.iter().filter(|app| app.residency.is_some()) {
        if app.residency.as_ref() != Some(&app.default_region) {
            return Err(ProvisionError::Residency(
                app.id.clone(),
                "must be the default_region too",
            ));
        }
    }
    let before = known
        .apps
        .values()
        .filter_map(|app| Some((&app.id, app.residency.as_ref()?)));
    for (app, region) in resident.chain(before) {
        let site = read.region.get(region).or_else(|| known.regions.get(region));
        if site.is_some_and(|site| !site.helpers.is_empty()) {
            return Err(ProvisionError::Residency(
                app.clone(),
                "must not be a region that has helpers",
            ));
        }
    }
    Ok(())
}

impl AppEntry {
    /// The keys that are to be issued: those that the app does not have.
    fn missing_keys(&self, known: &Tenants, now: Timestamp) -> Result<Vec<NewKey>, ProvisionError> {
        let has = |new: &NewKey| known.keys.values().any(|key| key.app == self.id && key.is_like(new));
        let missing = self.keys.iter().enumerate().filter(|(_, new)| !has(new));
        let checked = missing.map(|(index, new)| {
            let invalid = |invalid: Invalid| invalid.within(&format!("keys[{index}]"));
            let invalid = |broken| ProvisionError::Invalid(self.id.clone(), invalid(broken));
            new.check(now).map_err(invalid)?;
            Ok(new.clone())
        });
        checked.collect()
    }

    fn load(&self, folder: &Path) -> Result<NewApp, ProvisionError> {
        let alerts = match &self.alerts {
            Some(alerts) => {
                let secret: Secret = text(folder, &alerts.secret_file)?.trim().to_owned().into();
                SigningKey::new(&secret).map_err(|Invalid { rule, .. }| {
                    ProvisionError::Invalid(self.id.clone(), Invalid::new("alerts.secret_file", rule))
                })?;
                Some(NewAlerts {
                    url: alerts.url.clone(),
                    secret,
                })
            }
            None => None,
        };
        let within = |member: &'static str| {
            move |invalid: Invalid| ProvisionError::Invalid(self.id.clone(), invalid.within(member))
        };
        self.quota.check().map_err(within("quota"))?;
        self.senders.check().map_err(within("senders"))?;
        for (channel, routes) in &self.routes {
            let checked = Route::check(*channel, routes).map_err(|invalid| invalid.within(channel.as_str()));
            checked.map_err(within("routes"))?;
        }
        // The contract names `[app.apns]`, `[app.fcm]` and `[app.credentials.<provider>]`.
        let mut named: Vec<(&String, &Value)> = Vec::new();
        for (name, members) in &self.members {
            match (name.as_str(), members) {
                ("credentials", Value::Object(inner)) => named.extend(inner),
                _ => named.push((name, members)),
            }
        }
        let mut credentials = Vec::with_capacity(named.len());
        for (name, members) in named {
            let invalid = |invalid: Invalid| ProvisionError::Invalid(self.id.clone(), invalid.within(name));
            let unknown = |_| invalid(Invalid::new("", "is neither a member of an app nor a provider"));
            let provider: Provider = name.parse().map_err(unknown)?;
            let Value::Object(members) = members else {
                return Err(invalid(Invalid::new("", "must be a table")));
            };
            let members = read_files(folder, members.clone())?;
            credentials.push(Credential::read(provider, members).map_err(invalid)?);
        }
        Ok(NewApp {
            id: self.id.clone(),
            default_region: self.default_region.clone(),
            services: self.services,
            outbox: self.outbox,
            account: self.account.clone(),
            residency: self.residency.clone(),
            ambiguity: self.ambiguity.clone(),
            alerts,
            quota: self.quota,
            routes: self.routes.clone(),
            senders: self.senders.clone(),
            sms_countries: self.sms_countries.clone(),
            credentials,
        })
    }
}

/// Replaces each member `<name>_file` with a member `<name>`, which has the text of the file without the line feed at its end.
/// Tables in lists are read too.
fn read_files(folder: &Path, members: Map<String, Value>) -> Result<Map<String, Value>, ProvisionError> {
    let in_list = |item: Value| match item {
        Value::Object(members) => read_files(folder, members).map(Value::Object),
        other => Ok(other),
    };
    let read = |(name, value): (String, Value)| match (name.strip_suffix("_file"), value) {
        (Some(member), Value::String(path)) => {
            let text = text(folder, Path::new(&path))?;
            Ok((member.to_owned(), text.trim_end_matches(['\r', '\n']).into()))
        }
        (_, Value::Array(items)) => {
            let items: Result<Vec<_>, _> = items.into_iter().map(in_list).collect();
            Ok((name, items?.into()))
        }
        (_, value) => Ok((name, value)),
    };
    members.into_iter().map(read).collect()
}

fn text(folder: &Path, path: &Path) -> Result<String, ProvisionError> {
    let path = folder.join(path);
    fs::read_to_string(&path).map_err(|error| ProvisionError::Read(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residency_is_refused_for_a_region_with_helpers() {
        let app = "[[app]]\nid = \"shop\"\ndefault_region = \"eu\"\nresidency = \"eu\"\n";
        let file = |text: &str| settings::load::<File>(text, None).unwrap();
        let refused = |text: &str, known: &Tenants| check_residency(&file(text), known).unwrap_err().to_string();
        let mut known = Tenants::default();
        check_residency(&file(app), &known).unwrap();
        let helped = "[region.eu]\nhelpers = [\"us\"]\n";
        assert!(refused(&format!("{helped}{app}"), &known).contains("helpers"));
        assert!(
            refused(
                &app.replace("default_region = \"eu\"", "default_region = \"us\""),
                &known
            )
            .contains("default")
        );
        let resident = App {
            residency: Some("eu".parse().unwrap()),
            ..App::new("shop".parse().unwrap(), "eu".parse().unwrap())
        };
        known.apps.insert(resident.id.clone(), resident.into());
        assert!(refused(helped, &known).contains("shop"));
    }

    #[test]
    fn credentials_are_read_from_the_files_that_the_entry_names() {
        let dir = std::env::temp_dir().join(format!("peal-provision-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("key.p8"), "PEM").unwrap();
        fs::write(dir.join("smtp.password"), "hunter2\n").unwrap();
        fs::write(
            dir.join("apps.toml"),
            r#"
            [[app]]
            id = "shop"
            default_region = "eu"
            keys = [{ scopes = ["notifications:write", "recipients:write"] }]
            [app.apns]
            team_id = "TEAM"
            key_id = "KEY"
            topic = "com.example.shop"
            private_key_file = "key.p8"
            [app.credentials.smtp]
            host = "mail.example.com"
            user = "shop"
            password_file = "smtp.password"
            dkim = [{ domain = "example.com", selector = "a", private_key_file = "key.p8" }]
            [app.ambiguity]
            push = "hold"

            [[app]]
            id = "bank"
            default_region = "eu"
            [app.apns]
            team_id = "TEAM"
            key = "KEY"

            [[app]]
            id = "typo"
            default_region = "eu"
            [app.apms]
            "#,
        )
        .unwrap();
        let mut file: File = settings::read(&dir.join("apps.toml")).unwrap();
        let entry = file.app.remove(0);
        assert_eq!(entry.keys[0].scopes, [Scope::Send, Scope::RecipientsWrite]);
        let app = entry.load(&dir).unwrap();
        let Some(Credential::Apns(apns)) = app.credentials.first() else {
            panic!("no credential: {app:?}")
        };
        assert_eq!(apns.private_key.reveal(), "PEM");
        let Some(Credential::Smtp(smtp)) = app.credentials.get(1) else {
            panic!("no second credential: {app:?}")
        };
        assert_eq!(
            smtp.password.as_ref().unwrap().reveal(),
            "hunter2",
            "without the line feed of the file"
        );
        assert_eq!(smtp.dkim[0].private_key.reveal(), "PEM");
        assert_eq!(app.ambiguity[&Channel::Push], Ambiguity::Hold);
        assert!(!format!("{app:?}").contains("PEM"));
        let mut refused = || file.app.remove(0).load(&dir).unwrap_err().to_string();
        let bank = refused();
        assert!(bank.starts_with("app bank: apns.key: is not known"), "{bank}");
        assert!(refused().starts_with("app typo: apms: "));
        fs::remove_dir_all(dir).unwrap();
    }
}
