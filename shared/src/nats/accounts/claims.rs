//! The accounts as JWTs (NATS ADR-14) for servers in operator mode, where apps are added and revoked while everything runs.
//!
//! A server trusts one operator. The operator's key signs each account's JWT, which holds the account's exports, imports,
//! limits and signing keys. Each role has a signing key of its account whose scope is the role's permissions, so a user's
//! JWT names no permissions and outlives their changes. Keys of accounts and signing keys may be the same in all regions;
//! the permissions of a role differ, since each region's servers hold their own JWT of the account.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use jiff::Timestamp;
use nkeys::{KeyPair, KeyPairType};
use serde_json::{Value, json};

use super::{
    super::{
        roles::{ANSWER_WITHIN, Permissions},
        subject::TRACE_HOPS,
    },
    Account, Accounts, Export, Import, Importers, Kind, Names, User,
};
use crate::{id::AppId, secret::Secret};

/// The kinds of keys: each has a first letter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The operator, `O…`.
    Operator,
    /// An account, or a signing key of one, `A…`.
    Account,
    /// A user, `U…`.
    User,
}

/// Where keys are kept. A key is made when it is first asked for.
pub trait Keyring {
    /// Why a key could not be read or written.
    type Error;

    /// The key pair called `name`.
    ///
    /// # Errors
    /// When it cannot be read or written.
    fn pair(&self, holder: Holder, name: &str) -> Result<KeyPair, Self::Error>;
}

/// A new key pair, as the text of its seed.
pub fn generate(holder: Holder) -> Secret {
    let pair = KeyPair::new(match holder {
        Holder::Operator => KeyPairType::Operator,
        Holder::Account => KeyPairType::Account,
        Holder::User => KeyPairType::User,
    });
    pair.seed().expect("a generated pair has its seed").into()
}

/// A user whose JWT no longer counts if it was issued before a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// The title of its account.
    pub account: String,
    /// The public key of the user.
    pub user: String,
    /// Seconds since 1970.
    pub at: i64,
}

/// JWTs of one server or cluster.
#[derive(Debug)]
pub struct Claims {
    /// The operator's.
    pub operator: String,
    /// The public key and the JWT of each account, Peal's first, that of the servers last.
    pub accounts: Vec<(String, String)>,
    /// The name of each user, with the text of its `.creds` file.
    pub users: Vec<(String, Secret)>,
}

const OPERATOR: &str = "operator-root";

/// The names of accounts under an operator: their public keys.
///
/// # Errors
/// When a key cannot be read or written.
pub fn names<K: Keyring>(keys: &K, apps: &[AppId]) -> Result<Names, K::Error> {
    let of = |title: &str| Ok(account_key(keys, title)?.public_key());
    Ok(Names {
        peal: of(super::PEAL)?,
        system: of(super::SYSTEM_TITLE)?,
        apps: apps
            .iter()
            .map(|app| Ok((app.clone(), of(app.as_str())?)))
            .collect::<Result<_, _>>()?,
    })
}

/// Signs `accounts`, which have the [`names`] of these keys.
///
/// # Errors
/// When a key cannot be read or written.
pub fn sign<K: Keyring>(
    keys: &K,
    accounts: &Accounts,
    revoked: &[Revoked],
    now: Timestamp,
) -> Result<Claims, K::Error> {
    let operator = keys.pair(Holder::Operator, OPERATOR)?;
    let system = accounts.all.last().map(|account| account.name.clone());
    let own = json!({ "system_account": system });
    let mut all = Claims {
        operator: token(&operator, &operator.public_key(), "peal", ("operator", own), now),
        accounts: Vec::new(),
        users: Vec::new(),
    };
    for account in &accounts.all {
        let mut scopes = Vec::new();
        for user in &account.users {
            let pair = keys.pair(Holder::User, &user.title)?;
            let signer = keys.pair(Holder::Account, &signer_of(account, user))?;
            scopes.push(json!({
                "kind": "user_scope",
                "key": signer.public_key(),
                "role": user.title,
                "template": template(user.permissions.as_ref()),
            }));
            let body = json!({ "pub": {}, "sub": {}, "issuer_account": account.name });
            let jwt = token(&signer, &pair.public_key(), &user.title, ("user", body), now);
            all.users.push((user.title.clone(), creds(&jwt, &pair)));
        }
        let imports = account
            .imports
            .iter()
            .map(|import| imported(keys, accounts, account, import, now));
        let revocations = revoked.iter().filter(|one| one.account == account.title);
        let body = json!({
            "exports": account.exports.iter().map(exported).collect::<Vec<_>>(),
            "imports": imports.collect::<Result<Vec<_>, _>>()?,
            "limits": limits(account),
            "signing_keys": scopes,
            "revocations": revocations.map(|one| (one.user.clone(), one.at.into())).collect::<serde_json::Map<_, _>>(),
            "default_permissions": { "pub": {}, "sub": {} },
            "trace": account.traced.then(|| json!({ "dest": TRACE_HOPS, "sampling": 100 })),
        });
        let jwt = token(&operator, &account.name, &account.title, ("account", body), now);
        all.accounts.push((account.name.clone(), jwt));
    }
    Ok(all)
}

/// What the JWT of a closed account is called.
const CLOSED: &str = "closed";

/// The JWT of an account that nobody may use any more, by its public key. An account is closed and not deleted: a server that
/// was down meanwhile has the former JWT, takes a newer one from the others, and would give them back what they deleted.
///
/// # Errors
/// When the operator's key cannot be read.
pub fn closed<K: Keyring>(keys: &K, account: &str, now: Timestamp) -> Result<String, K::Error> {
    let operator = keys.pair(Holder::Operator, OPERATOR)?;
    let body = json!({
        "limits": {
            "conn": 0, "leaf": 0, "subs": 0, "payload": 0, "data": 0, "imports": 0, "exports": 0, "wildcards": false,
            "mem_storage": 0, "disk_storage": 0, "streams": 0, "consumer": 0,
        },
        "revocations": { "*": now.as_second() },
        "default_permissions": { "pub": {}, "sub": {} },
    });
    Ok(token(&operator, account, CLOSED, ("account", body), now))
}

/// Whether `jwt` is that of a closed account.
pub fn is_closed(jwt: &str) -> bool {
    let claims = jwt.split('.').nth(1).and_then(|body| BASE64.decode(body).ok());
    let claims = claims.and_then(|json| serde_json::from_slice::<Value>(&json).ok());
    claims.is_some_and(|claims| claims["name"] == CLOSED && claims["nats"]["revocations"]["*"].is_i64())
}

/// The part of a nats-server's configuration that is named `roles.conf`, in operator mode.
pub fn conf(claims: &Claims, accounts: &Accounts) -> String {
    let mut text = format!(
        "# Who may do what: the accounts of a server in operator mode. Made by `peal roles --jwt`, to be made again when\n\
         # regions or apps change. Accounts that are pushed to a running server replace those below.\n\
         #\n\
         #   PEAL_JWT_DIR  where the server keeps the accounts that are pushed to it\n\n\
         operator: {}\n\
         resolver {{ type: full, dir: $PEAL_JWT_DIR, allow_delete: false, interval: \"5s\" }}\n\
         resolver_preload {{\n",
        claims.operator
    );
    let preloaded = claims.accounts.iter().map(|(key, jwt)| format!("  {key}: {jwt}\n"));
    let system = claims
        .accounts
        .last()
        .map(|(key, _)| format!("system_account: {key}\n"));
    let link = "\n# The account that the link to the hub connects.\n";
    let linked = accounts
        .linked
        .as_ref()
        .map(|key| format!("{link}PEAL_ACCOUNT: {key}\n"));
    text.extend(preloaded.chain(["}\n".to_owned()]).chain(system).chain(linked));
    text
}

fn account_key<K: Keyring>(keys: &K, title: &str) -> Result<KeyPair, K::Error> {
    keys.pair(Holder::Account, &format!("account-{title}"))
}

/// The name of the signing key for users of one role.
fn signer_of(account: &Account, user: &User) -> String {
    format!("signer-{}-{}", account.title, user.title)
}

fn template(permissions: Option<&Permissions>) -> Value {
    let mut template = json!({ "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {} });
    if let Some(permissions) = permissions {
        template["pub"] = json!({ "allow": sorted(&permissions.publish) });
        template["sub"] = json!({ "allow": sorted(&permissions.subscribe) });
        if permissions.answers {
            let within = u64::try_from(ANSWER_WITHIN.as_nanos()).unwrap_or(u64::MAX);
            template["resp"] = json!({ "max": 1, "ttl": within });
        }
    }
    template
}

fn sorted(subjects: &[String]) -> Vec<&String> {
    let mut subjects: Vec<_> = subjects.iter().collect();
    subjects.sort();
    subjects.dedup();
    subjects
}

fn limits(account: &Account) -> Value {
    let limits = account.limits;
    let streams = if account.jetstream { -1 } else { 0 };
    json!({
        "conn": limits.connections, "leaf": limits.leaf_nodes, "subs": limits.subscriptions, "payload": limits.payload,
        "data": -1, "imports": -1, "exports": -1, "wildcards": true,
        "mem_storage": streams, "disk_storage": streams, "streams": streams, "consumer": streams,
    })
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Stream => "stream",
        Kind::Service { .. } | Kind::ServiceOfMany => "service",
    }
}

fn exported(export: &Export) -> Value {
    let mut claim = json!({ "name": export.subject, "subject": export.subject, "type": word(export.kind) });
    match export.kind {
        Kind::Stream => {}
        Kind::ServiceOfMany => claim["response_type"] = "Stream".into(),
        Kind::Service {
            traced,
            answered_within,
        } => {
            claim["response_type"] = "Singleton".into();
            claim["allow_trace"] = traced.into();
            if let Some(within) = answered_within {
                claim["response_threshold"] = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX).into();
            }
        }
    }
    match export.to {
        Importers::Named(position) => claim["account_token_position"] = position.into(),
        // The importer's JWT must hold a token that the exporting account signed, in case the operator has other accounts.
        Importers::One(_) => claim["token_req"] = true.into(),
        Importers::All => {}
    }
    claim
}

fn imported<K: Keyring>(
    keys: &K,
    accounts: &Accounts,
    importer: &Account,
    import: &Import,
    now: Timestamp,
) -> Result<Value, K::Error> {
    let mut claim = json!({
        "name": import.local, "subject": import.subject, "account": import.from, "local_subject": import.local,
        "type": word(import.kind),
    });
    let exporter = accounts.all.iter().find(|account| account.name == import.from);
    let needs_token = exporter.is_some_and(|exporter| {
        let mut exports = exporter.exports.iter();
        exports.any(|export| export.subject == import.subject && matches!(export.to, Importers::One(_)))
    });
    if let Some(exporter) = exporter.filter(|_| needs_token) {
        let signer = account_key(keys, &exporter.title)?;
        let body = json!({ "subject": import.subject, "kind": word(import.kind) });
        claim["token"] = token(&signer, &importer.name, &import.subject, ("activation", body), now).into();
    }
    Ok(claim)
}

/// A JWT: `kind` and the members of its `nats` object, about `subject`, signed by `issuer`.
fn token(issuer: &KeyPair, subject: &str, name: &str, (kind, mut body): (&str, Value), now: Timestamp) -> String {
    body["type"] = kind.into();
    body["version"] = 2.into();
    let claims = json!({
        "jti": uuid::Uuid::now_v7().simple().to_string(),
        "iat": now.as_second(),
        "iss": issuer.public_key(),
        "name": name,
        "sub": subject,
        "nats": body,
    });
    let signed = format!(
        "{}.{}",
        BASE64.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#),
        BASE64.encode(claims.to_string())
    );
    let signature = issuer.sign(signed.as_bytes()).expect("a pair with a seed signs");
    format!("{signed}.{}", BASE64.encode(signature))
}

/// The text of a `.creds` file.
fn creds(jwt: &str, user: &KeyPair) -> Secret {
    let seed = user.seed().expect("a pair from a keyring has its seed");
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    .into()
}
