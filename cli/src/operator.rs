//! Servers with an operator: `peal roles --jwt` and `peal accounts`.
//!
//! A folder holds the seeds of all keys, as `<name>.nk`, and the `.creds` files of users. Who can read it can make any
//! user, so it belongs on the machine of the operator alone; only `.creds` files leave it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use async_nats::Client;
use clap::Args;
use futures::StreamExt;
use gateway::config::Settings;
use nkeys::KeyPair;
use serde::Deserialize;
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    id::AppId,
    nats::{
        accounts::{
            self, Accounts,
            claims::{self, Claims, Holder, Keyring, Revoked},
        },
        connect,
        roles::Role,
    },
    secret::Secret,
};
use tokio::time::timeout;

use super::{
    Answer, Failure,
    keys::{PartiesArgs, Servers, write_secret},
};

/// The file with the users that are revoked: account, user and time, one a line.
const REVOKED: &str = "revoked";

#[derive(Debug, Args)]
pub(super) struct AccountsArgs {
    #[command(flatten)]
    parties: PartiesArgs,
    /// The folder of keys, from `peal roles --jwt`.
    #[arg(long, value_name = "FOLDER")]
    jwt: PathBuf,
    /// The gateway's settings file, for the servers' URL and certificates; environment variables `PEAL_…` override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The region's NATS servers, instead of those in the settings.
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// A user to give a new key, such as `app-shop`: its former `.creds` file no longer counts.
    #[arg(long, value_name = "USER")]
    renew: Option<String>,
}

/// Seeds in a folder, one a file.
struct Folder<'a>(&'a Path);

impl Keyring for Folder<'_> {
    type Error = Failure;

    fn pair(&self, holder: Holder, name: &str) -> Result<KeyPair, Failure> {
        let file = self.0.join(format!("{name}.nk"));
        let seed: Secret = match fs::read_to_string(&file) {
            Ok(seed) => seed.into(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let seed = claims::generate(holder);
                write_secret(&file, seed.reveal())?;
                seed
            }
            Err(error) => return Err(Failure::Arguments(format!("{}: {error}", file.display()))),
        };
        KeyPair::from_seed(seed.reveal().trim())
            .map_err(|_| Failure::Arguments(format!("{}: must hold a seed", file.display())))
    }
}

/// The accounts of a region, signed. Writes the `.creds` files of their users.
fn signed(folder: &Path, servers: &Servers) -> Result<(Accounts, Claims), Failure> {
    let cannot = |error: io::Error| Failure::Arguments(format!("{}: {error}", folder.display()));
    fs::create_dir_all(folder).map_err(cannot)?;
    let (region, helpers) = servers.region.as_ref().ok_or_else(|| {
        Failure::Arguments("--region: must be given with --jwt; the hub's servers have no apps".into())
    })?;
    let keys = Folder(folder);
    let names = claims::names(&keys, &servers.parties.apps)?;
    for (app, key) in &names.apps {
        match servers.accounts.get(app) {
            Some(said) if said.as_str() == key => {}
            Some(_) => {
                let rule = format!(
                    "app {app}: account must be {key:?}, the public key in {}",
                    folder.display()
                );
                return Err(Failure::Arguments(rule));
            }
            None => eprintln!("app {app}: add `account = {key:?}` to its entry, and provision"),
        }
    }
    let accounts = accounts::of_region(region, helpers, &servers.parties, &names);
    let claims = claims::sign(&keys, &accounts, &revoked(folder)?, Clock::system().now())?;
    for (name, text) in &claims.users {
        let file = folder.join(format!("{name}.creds"));
        // Written anew, since the key may be a new one.
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
            _ => write_secret(&file, text.reveal())?,
        }
    }
    Ok((accounts, claims))
}

/// `roles.conf` for a region's servers with an operator.
pub(super) fn conf(folder: &Path, servers: &Servers) -> Result<String, Failure> {
    let (accounts, claims) = signed(folder, servers)?;
    Ok(claims::conf(&claims, &accounts))
}

pub(super) async fn push(args: AccountsArgs, out: &mut impl io::Write) -> Result<Answer, Failure> {
    let servers = args.parties.read()?;
    let (accounts, _) = signed(&args.jwt, &servers)?;
    if let Some(user) = &args.renew {
        revoke(&args.jwt, &accounts, user)?;
    }
    let (_, claims) = signed(&args.jwt, &servers)?;
    let mut settings = Settings::load(args.config.as_deref())?;
    if let Some(url) = args.nats {
        settings.nats.url = url;
    }
    settings.nats.nkey_file = None;
    settings.nats.creds_file = Some(args.jwt.join("sys.creds"));
    let role = Role::Operator(settings.mesh.region.clone());
    let client = connect::connect(&settings.nats, &role, "peal").await?;
    let known: Vec<String> = serde_json::from_value(ask(&client, "$SYS.REQ.CLAIMS.LIST", String::new()).await?)
        .map_err(|error| Failure::Streams(error.to_string()))?;
    // New accounts first: a server that learns of an import from an account that it does not know asks the others for it,
    // two seconds for each import.
    let (old_ones, new_ones): (Vec<_>, Vec<_>) = claims.accounts.iter().partition(|(key, _)| known.contains(key));
    for (key, jwt) in new_ones.into_iter().chain(old_ones) {
        let account = accounts.all.iter().find(|account| account.name == *key);
        let title = account.map_or("", |account| account.title.as_str());
        ask(&client, "$SYS.REQ.CLAIMS.UPDATE", jwt.clone()).await?;
        writeln!(out, "{title}\t{key}")?;
    }
    if let Some(linked) = &accounts.linked {
        relink(&client, linked).await?;
    }
    for (title, key) in made(&args.jwt)? {
        let is_kept = claims.accounts.iter().any(|(kept, _)| *kept == key);
        if !is_kept && known.contains(&key) && close(&client, &args.jwt, &title, &key).await? {
            writeln!(out, "removed\t{key}")?;
        }
    }
    Ok(Answer::Yes)
}

/// The accounts whose keys are in the folder: titles and public keys. The servers may have accounts of other systems.
fn made(folder: &Path) -> Result<Vec<(String, String)>, Failure> {
    let cannot = |error: io::Error| Failure::Arguments(format!("{}: {error}", folder.display()));
    let mut made = Vec::new();
    for file in fs::read_dir(folder).map_err(cannot)? {
        let name = file.map_err(cannot)?.file_name();
        let title = name
            .to_str()
            .and_then(|name| name.strip_prefix("account-")?.strip_suffix(".nk"));
        if let Some(title) = title {
            let key = Folder(folder).pair(Holder::Account, &format!("account-{title}"))?;
            made.push((title.to_owned(), key.public_key()));
        }
    }
    made.sort();
    Ok(made)
}

/// Closes the account of an app that is gone, unless it is closed already. If the app returns, it has a new key.
async fn close(client: &Client, folder: &Path, title: &str, key: &str) -> Result<bool, Failure> {
    let subject = format!("$SYS.REQ.ACCOUNT.{key}.CLAIMS.LOOKUP");
    let found = client.request(subject.clone(), "".into()).await;
    let found = found.map_err(|error| Failure::Streams(format!("{subject}: {error}")))?;
    if std::str::from_utf8(&found.payload).is_ok_and(claims::is_closed) {
        return Ok(false);
    }
    let app: AppId = title
        .parse()
        .map_err(|_| Failure::Arguments(format!("account-{title}.nk: must be named by an app")))?;
    let user = Role::Service(app).title();
    let file = folder.join(format!("{user}.nk"));
    if file.exists() {
        revoke_key(folder, title, &user)?;
        let creds = folder.join(format!("{user}.creds"));
        match fs::remove_file(&creds) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::Arguments(format!("{}: {error}", creds.display())));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let jwt = claims::closed(&Folder(folder), key, Clock::system().now())?;
    ask(client, "$SYS.REQ.CLAIMS.UPDATE", jwt).await?;
    Ok(true)
}

/// How long to wait for another server of a region to answer.
const SERVERS_ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Makes the servers connect to the hub anew, which takes some 100 ms. A server whose account `linked` has changed drops
/// the hub's subscriptions that the region's permissions at the hub do not cover whole, such as `$JS.hub.API.STREAM.>`: it
/// would not reach the hub's streams until the link is lost for another reason.
async fn relink(client: &Client, linked: &str) -> Result<(), Failure> {
    let failed = |error: String| Failure::Streams(format!("asking the servers for their links: {error}"));
    let inbox = client.new_inbox();
    let subscribed = client.subscribe(inbox.clone()).await;
    let mut answers = subscribed.map_err(|error| failed(error.to_string()))?;
    let asked = client.publish_with_reply("$SYS.REQ.SERVER.PING.LEAFZ", inbox, "".into());
    asked.await.map_err(|error| failed(error.to_string()))?;
    while let Ok(Some(answer)) = timeout(SERVERS_ANSWER_WITHIN, answers.next()).await {
        let answer: Links = serde_json::from_slice(&answer.payload).map_err(|error| failed(error.to_string()))?;
        let links = answer.data.leafs.into_iter();
        for link in links.filter(|link| link.is_spoke && link.account == linked) {
            let subject = format!("$SYS.REQ.SERVER.{}.KICK", answer.data.server_id);
            ask(client, &subject, json!({ "cid": link.id }).to_string()).await?;
        }
    }
    Ok(())
}

/// A server's answer about its links.
#[derive(Debug, Deserialize)]
struct Links {
    data: LinksOf,
}

#[derive(Debug, Deserialize)]
struct LinksOf {
    server_id: String,
    #[serde(default)]
    leafs: Vec<Link>,
}

#[derive(Debug, Deserialize)]
struct Link {
    id: u64,
    account: String,
    /// Whether this server opened it.
    #[serde(default)]
    is_spoke: bool,
}

/// An answer of a server's resolver.
#[derive(Debug, Deserialize)]
struct Resolved {
    #[serde(default)]
    data: Value,
    error: Option<ResolverError>,
}

#[derive(Debug, Deserialize)]
struct ResolverError {
    description: String,
}

async fn ask(client: &Client, subject: &str, body: String) -> Result<Value, Failure> {
    let failed = |error: String| Failure::Streams(format!("{subject}: {error}"));
    let answer = client.request(subject.to_owned(), body.into()).await;
    let answer = answer.map_err(|error| failed(error.to_string()))?;
    let resolved: Resolved = serde_json::from_slice(&answer.payload).map_err(|error| failed(error.to_string()))?;
    match resolved.error {
        Some(error) => Err(failed(error.description)),
        None => Ok(resolved.data),
    }
}

/// Gives a user a new key when the accounts are signed next, and notes that the former one no longer counts.
fn revoke(folder: &Path, accounts: &Accounts, user: &str) -> Result<(), Failure> {
    let mut all = accounts.all.iter();
    let account = all.find(|account| account.users.iter().any(|one| one.title == user));
    let account = account.ok_or_else(|| Failure::Arguments(format!("--renew: there is no user {user}")))?;
    revoke_key(folder, &account.title, user)
}

/// As [`revoke`], by the title of the account.
fn revoke_key(folder: &Path, account: &str, user: &str) -> Result<(), Failure> {
    let file = folder.join(format!("{user}.nk"));
    let former = Folder(folder).pair(Holder::User, user)?.public_key();
    let lines = fs::read_to_string(folder.join(REVOKED)).unwrap_or_default();
    let at = Clock::system().now().as_second();
    let lines = format!("{lines}{account} {former} {at}\n");
    let written = fs::write(folder.join(REVOKED), lines).and_then(|()| fs::remove_file(&file));
    written.map_err(|error| Failure::Arguments(format!("{}: {error}", folder.display())))
}

fn revoked(folder: &Path) -> Result<Vec<Revoked>, Failure> {
    let file = folder.join(REVOKED);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::Arguments(format!("{}: {error}", file.display()))),
    };
    let bad = || Failure::Arguments(format!("{}: each line must be account, user and time", file.display()));
    text.lines()
        .map(|line| {
            let mut words = line.split(' ');
            let mut next = || words.next().ok_or_else(bad);
            Ok(Revoked {
                account: next()?.to_owned(),
                user: next()?.to_owned(),
                at: next()?.parse().map_err(|_| bad())?,
            })
        })
        .collect()
}
