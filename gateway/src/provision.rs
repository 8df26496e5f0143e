//! Writes regions and apps to the hub's configuration: seals credentials, and issues API keys.
//!
//! An operator runs this command at the hub. It is not a part of the serving gateway, so it uses none of its rooms.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use async_nats::{Client, jetstream};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use shared::{
    api_key::{ApiKey, NewKey, Scope},
    app::App,
    clock::Clock,
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
    seal::MeshKey,
    settings::{self, BadSettings},
    site::Site,
};

use crate::admin::{
    desk::{Authority, Desk, Mode, Refusal},
    document::AppDocument,
};

/// Why regions or apps could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The file of regions and apps cannot be used.
    #[error(transparent)]
    File(#[from] BadSettings),
    /// A region has the hub's name.
    #[error("region: must not be {HUB:?}, which is reserved for the hub")]
    Hub,
    /// An entry was refused.
    #[error("{0}: {1}")]
    Refused(String, Refusal),
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

/// Writes `app` to the hub's configuration whatever is there, and issues `keys`. Keys that were issued before stay valid.
///
/// # Errors
/// When the hub did not confirm that it stored the app and the keys.
pub async fn write_app(
    hub: &jetstream::Context,
    mesh_key: &MeshKey,
    app: &App,
    keys: &[NewKey],
) -> Result<Vec<String>, ProvisionError> {
    let not_written = |error| ProvisionError::Write(format!("app {}", app.id), error);
    config::put_app(hub, app).await.map_err(not_written)?;
    let mut issued = Vec::with_capacity(keys.len());
    for new in keys {
        let (key, text) = ApiKey::issue(mesh_key, app.id.clone(), new.clone(), Clock::system().now());
        let not_written = |error| ProvisionError::Write(format!("an API key of {}", app.id), error);
        config::put_key(hub, &key).await.map_err(not_written)?;
        issued.push(text);
    }
    Ok(issued)
}

/// Issues the key of an operator, who may write all apps and regions by the API.
///
/// # Errors
/// When the key breaks a rule, or the hub did not confirm that it stored it.
pub async fn issue_operator_key(
    hub: &jetstream::Context,
    mesh_key: &MeshKey,
    new: NewKey,
) -> Result<String, ProvisionError> {
    let now = Clock::system().now();
    let refused = |invalid: Invalid| ProvisionError::Refused("key of an operator".to_owned(), invalid.into());
    new.check(now).map_err(refused)?;
    if new.test {
        return Err(refused(Invalid::new("test", "must be false for a key of an operator")));
    }
    let nobody = AppId::unknown();
    let (key, text) = ApiKey::issue(mesh_key, nobody, new, now);
    let not_written = |error| ProvisionError::Write("a key of an operator".to_owned(), error);
    config::put_operator(hub, &key).await.map_err(not_written)?;
    Ok(text)
}

/// A file of regions and apps. A member `<name>_file` of an app, at any depth, is the path of a file with the text of the
/// member `<name>`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    region: BTreeMap<Region, Site>,
    #[serde(default)]
    app: Vec<Map<String, Value>>,
    /// Keys of operators.
    #[serde(default)]
    operator: Vec<NewKey>,
}

/// Regions and apps, as a file has them.
#[derive(Debug)]
pub struct MeshFile {
    /// The regions.
    pub regions: BTreeMap<Region, Site>,
    /// The apps, each as the JSON that the API takes, with secrets in the clear.
    pub apps: Vec<(AppId, Value)>,
    documents: Vec<AppDocument>,
    operators: Vec<NewKey>,
}

/// Reads `file`, and the files that it names by paths that are relative to its folder.
///
/// # Errors
/// When a file cannot be read, or a member is unknown or of a wrong type.
pub fn read(file: &Path) -> Result<MeshFile, ProvisionError> {
    let read: File = settings::read(file)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let (mut apps, mut documents) = (Vec::new(), Vec::new());
    for entry in read.app {
        let id = entry.get("id").and_then(Value::as_str).and_then(|id| id.parse().ok());
        let id: AppId = id.unwrap_or_else(AppId::unknown);
        let json = Value::Object(read_files(folder, entry)?);
        let document = serde_path_to_error::deserialize(&json);
        documents.push(document.map_err(|error| ProvisionError::Invalid(id.clone(), Invalid::of_json(&error)))?);
        apps.push((id, json));
    }
    Ok(MeshFile {
        regions: read.region,
        apps,
        documents,
        operators: read.operator,
    })
}

/// An API key that was issued.
#[derive(Debug)]
pub struct Issued {
    /// The app that the key identifies; `None` if it is an operator's.
    pub app: Option<AppId>,
    /// The operations that the key allows.
    pub scopes: Vec<Scope>,
    /// The key as a caller sends it: `peal_<key id>_<secret>`. It is not stored anywhere.
    pub text: String,
}

/// The apps that have services, with the public keys of their accounts where servers have an operator.
pub type ServiceApps = BTreeMap<AppId, Option<AccountKey>>;

/// The regions in `file`, and the apps that have services. The files that it names are not read.
///
/// # Errors
/// When the file cannot be read or parsed.
pub fn parties(file: &Path) -> Result<(BTreeMap<Region, Site>, ServiceApps), BadSettings> {
    #[derive(Deserialize)]
    struct Parties {
        #[serde(default)]
        region: BTreeMap<Region, Site>,
        #[serde(default)]
        app: Vec<Party>,
    }
    #[derive(Deserialize)]
    struct Party {
        id: AppId,
        #[serde(default)]
        services: bool,
        account: Option<AccountKey>,
    }
    let Parties { region, app } = settings::read(file)?;
    let apps = app.into_iter().filter(|app| app.services);
    Ok((region, apps.map(|app| (app.id, app.account)).collect()))
}

/// Writes every region and every app in `file` to the hub's configuration. A key is issued for each operator and for each entry in
/// an app's `keys`, unless there is such a key already: repeating changes nothing.
///
/// # Errors
/// When a file cannot be used, or the hub does not answer or refuses.
pub async fn run(
    client: Client,
    mesh_key: &MeshKey,
    replicas: usize,
    file: &Path,
) -> Result<Vec<Issued>, ProvisionError> {
    let file = read(file)?;
    let hub = hub(client);
    prepare_hub(&hub, mesh_key, replicas).await?;
    let known = config::read(&hub).await?;
    check_residency(&file, &known)?;
    let desk = Desk::new(hub.clone(), mesh_key.clone(), Clock::system());
    for (region, site) in &file.regions {
        let refused = |refusal| ProvisionError::Refused(format!("region {region}"), refusal);
        let writing = desk.put_region(&Authority::Operator, region, site, None, Mode::Write);
        writing.await.map_err(refused)?;
    }
    if known.proofs_since.is_none() {
        require_proofs(&hub, Clock::system().now()).await?;
    }
    let mut issued = Vec::new();
    // All apps are tried before any is written: the texts of keys that were issued are shown once, at the end.
    for mode in [Mode::Plan, Mode::Write] {
        for document in &file.documents {
            let refused = |refusal| match refusal {
                Refusal::Invalid { field, rule } => {
                    ProvisionError::Invalid(document.id.clone(), Invalid::new(field, rule))
                }
                other => ProvisionError::Refused(format!("app {}", document.id), other),
            };
            let writing = desk.put_app(&Authority::Operator, document, None, mode);
            let written = Box::pin(writing).await.map_err(refused)?;
            issued.extend(written.app.keys.into_iter().filter_map(|key| {
                Some(Issued {
                    app: Some(document.id.clone()),
                    scopes: key.scopes,
                    text: key.key?,
                })
            }));
        }
    }
    for new in file.operators {
        if known.operators.values().any(|key| key.is_like(&new)) {
            continue;
        }
        issued.push(Issued {
            app: None,
            scopes: new.scopes.clone(),
            text: issue_operator_key(&hub, mesh_key, new).await?,
        });
    }
    Ok(issued)
}

/// As [`Desk`] checks one entry, for all of a file together.
fn check_residency(file: &MeshFile, known: &Tenants) -> Result<(), ProvisionError> {
    let resident = file.documents.iter();
    let resident = resident.filter_map(|app| Some((&app.id, app.residency.as_ref()?)));
    let before = known.apps.values();
    let before = before.filter_map(|app| Some((&app.id, app.residency.as_ref()?)));
    for (app, region) in resident.chain(before) {
        let site = file.regions.get(region).or_else(|| known.regions.get(region));
        if site.is_some_and(|site| !site.helpers.is_empty()) {
            let rule = "must not be a region that has helpers";
            return Err(ProvisionError::Invalid(app.clone(), Invalid::new("residency", rule)));
        }
    }
    Ok(())
}

/// Replaces each member `<name>_file` with a member `<name>`, which has the text of the file without the line feed at its end.
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
        (_, Value::Object(members)) => Ok((name, read_files(folder, members)?.into())),
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
    use shared::{provider::Credential, testing};

    use super::*;

    const P256: &str = include_str!("../../edge-worker/src/providers/testdata/p256.pem");
    const RSA: &str = include_str!("../../edge-worker/src/providers/testdata/rsa2048.pem");

    /// The file with this text, beside files of keys.
    fn file(text: &str) -> Result<MeshFile, ProvisionError> {
        let folder = std::env::temp_dir().join(format!("peal-provision-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in [("key.p8", P256), ("dkim.pem", RSA), ("smtp.password", "hunter2\n")] {
            fs::write(folder.join(name), text).unwrap();
        }
        fs::write(folder.join("mesh.toml"), text).unwrap();
        let read = read(&folder.join("mesh.toml"));
        fs::remove_dir_all(folder).unwrap();
        read
    }

    #[test]
    fn residency_is_refused_for_a_region_with_helpers() {
        let app = "[[app]]\nid = \"shop\"\ndefault_region = \"eu\"\nresidency = \"eu\"\n";
        let refused = |text: &str, known: &Tenants| {
            let refused = check_residency(&file(text).unwrap(), known).unwrap_err();
            refused.to_string()
        };
        let mut known = Tenants::default();
        check_residency(&file(app).unwrap(), &known).unwrap();
        let helped = "[region.eu]\nhelpers = [\"us\"]\n";
        assert!(refused(&format!("{helped}{app}"), &known).contains("helpers"));
        let resident = App {
            residency: Some("eu".parse().unwrap()),
            ..App::new("shop".parse().unwrap(), "eu".parse().unwrap())
        };
        known.apps.insert(resident.id.clone(), resident.into());
        assert!(refused(helped, &known).contains("shop"));
    }

    #[test]
    fn secrets_are_read_from_the_files_that_an_app_names() {
        let read = file(
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
            dkim = [{ domain = "example.com", selector = "a", private_key_file = "dkim.pem" }]
            [app.ambiguity]
            push = "hold"
            "#,
        );
        let read = read.unwrap();
        let key = testing::mesh_key();
        assert_eq!(read.documents[0].keys[0].scopes, [Scope::Send, Scope::RecipientsWrite]);
        let app = read.documents[0].seal(None, &key).unwrap();
        let credentials = app.credentials(&key).unwrap();
        let [Credential::Apns(apns), Credential::Smtp(smtp)] = &*credentials else {
            panic!("other credentials: {credentials:?}")
        };
        assert_eq!(apns.private_key.reveal().trim(), P256.trim());
        let password = smtp.password.as_ref().unwrap().reveal();
        assert_eq!(password, "hunter2", "without the line feed of the file");
        assert_eq!(smtp.dkim[0].private_key.reveal().trim(), RSA.trim());
    }

    #[test]
    fn a_member_that_is_not_known_is_named() {
        let refused = |members: &str| {
            let app = format!("[[app]]\nid = \"bank\"\ndefault_region = \"eu\"\n{members}");
            file(&app).unwrap_err().to_string()
        };
        let typo = refused("[app.apms]\n");
        assert!(typo.starts_with("app bank: apms: is not known"), "{typo}");
        let typo = refused("[app.credentials.apms]\n");
        assert!(typo.starts_with("app bank: credentials.apms: "), "{typo}");
        let missing = refused("[app.apns]\nprivate_key_file = \"none.p8\"\n");
        assert!(missing.starts_with("cannot read "), "{missing}");
    }
}
