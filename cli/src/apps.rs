//! `peal apps`: tenants and their keys, through the gateway's HTTP API.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use shared::{api_key::Scope, id::AppId};

use super::{
    Answer, Failure,
    api::{Api, ApiArgs, text},
    table::Table,
};

#[derive(Debug, Args)]
pub(super) struct AppsArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(subcommand)]
    command: AppsCommand,
}

#[derive(Debug, Subcommand)]
enum AppsCommand {
    /// List the apps that the key may see.
    List,
    /// Print an app as JSON, without its secrets.
    Show {
        /// The name of the app.
        app: AppId,
    },
    /// Create or replace an app. A credential that stands in the JSON as it is shown stays as it is.
    Put {
        /// The file with the app's JSON; `-` for standard input.
        file: PathBuf,
    },
    /// Refuse the app's requests, and let its work wait.
    Suspend {
        /// The name of the app.
        app: AppId,
    },
    /// Serve a suspended app again.
    Resume {
        /// The name of the app.
        app: AppId,
    },
    /// Delete a suspended app and its keys. What waits for it is not sent.
    Delete {
        /// The name of the app.
        app: AppId,
    },
    /// List, make and revoke the keys of an app.
    Keys {
        /// The name of the app.
        app: AppId,
        #[command(subcommand)]
        command: KeysCommand,
    },
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// List the keys, without their secrets.
    List,
    /// Make a key and print it; it cannot be read again.
    Make {
        /// What the key may do.
        #[arg(required = true, value_name = "SCOPE")]
        scopes: Vec<Scope>,
        /// A name, for people.
        #[arg(long)]
        name: Option<String>,
        /// When it ends, as in RFC 3339.
        #[arg(long, value_name = "TIME")]
        expires_at: Option<Timestamp>,
        /// It reaches the app's test recipients only.
        #[arg(long)]
        test: bool,
        /// It may sign requests and client tokens.
        #[arg(long)]
        signing: bool,
    },
    /// Revoke a key.
    Revoke {
        /// The id of the key.
        key: String,
    },
}

pub(super) async fn run(args: AppsArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let api = args.api.open()?;
    match args.command {
        AppsCommand::List => list(&api, out).await?,
        AppsCommand::Show { app } => {
            let app = api.request(Method::GET, &path(&app), &[], None).await?;
            writeln!(out, "{app:#}")?;
        }
        AppsCommand::Put { file } => {
            let app = read(&file)?;
            let id = app.get("id").and_then(Value::as_str).and_then(|id| id.parse().ok());
            let id = id.ok_or_else(|| Failure::Arguments("id: must be the name of an app".to_owned()))?;
            let written = api.request(Method::PUT, &path(&id), &[], Some(&app)).await?;
            writeln!(out, "wrote {id}")?;
            print_new_keys(&written, out)?;
        }
        AppsCommand::Suspend { app } => set_suspended(&api, &app, true, out).await?,
        AppsCommand::Resume { app } => set_suspended(&api, &app, false, out).await?,
        AppsCommand::Delete { app } => {
            api.request(Method::DELETE, &path(&app), &[], None).await?;
            writeln!(out, "deleted {app}")?;
        }
        AppsCommand::Keys { app, command } => keys(&api, &app, command, out).await?,
    }
    Ok(Answer::Yes)
}

async fn list(api: &Api, out: &mut impl Write) -> Result<(), Failure> {
    let answer = api.request(Method::GET, "/v1/apps", &[], None).await?;
    let apps = answer.get("apps").and_then(Value::as_array);
    let mut table = Table::new(["app", "default region", "residency", "services", "suspended", " keys"]);
    for app in apps.map(Vec::as_slice).unwrap_or_default() {
        let keys = app.get("keys").and_then(Value::as_array).map_or(0, Vec::len);
        let mut cells = ["id", "default_region", "residency", "services", "suspended"]
            .map(|name| text(app, name))
            .to_vec();
        cells.push(keys.to_string());
        table.row(cells);
    }
    Ok(table.write(out)?)
}

async fn set_suspended(api: &Api, app: &AppId, suspended: bool, out: &mut impl Write) -> Result<(), Failure> {
    let path = path(app);
    let (version, mut document) = api.versioned(Method::GET, &path, &[], None, None).await?;
    document["suspended"] = json!(suspended);
    api.versioned(Method::PUT, &path, &[], Some(&document), version.as_deref())
        .await?;
    writeln!(out, "{} {app}", if suspended { "suspended" } else { "resumed" })?;
    Ok(())
}

async fn keys(api: &Api, app: &AppId, command: KeysCommand, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        KeysCommand::List => {
            let app = api.request(Method::GET, &path(app), &[], None).await?;
            let mut table = Table::new(["id", "name", "created at", "expires at", "used at", "test", "scopes"]);
            for key in app.get("keys").and_then(Value::as_array).into_iter().flatten() {
                let mut cells = ["id", "name", "created_at", "expires_at", "used_at", "test"]
                    .map(|name| text(key, name))
                    .to_vec();
                cells.push(scopes(key));
                table.row(cells);
            }
            table.write(out)?;
        }
        KeysCommand::Make {
            scopes,
            name,
            expires_at,
            test,
            signing,
        } => {
            let key =
                json!({ "scopes": scopes, "name": name, "expires_at": expires_at, "test": test, "signing": signing });
            let path = format!("{}/keys", path(app));
            let made = api.request(Method::POST, &path, &[], Some(&key)).await?;
            writeln!(out, "{}", text(&made, "key"))?;
        }
        KeysCommand::Revoke { key } => {
            let is_id = key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !is_id {
                return Err(Failure::Arguments(
                    "KEY: must be the id of a key, 16 hexadecimal digits".to_owned(),
                ));
            }
            let path = format!("{}/keys/{key}", path(app));
            api.request(Method::DELETE, &path, &[], None).await?;
            writeln!(out, "revoked {key}")?;
        }
    }
    Ok(())
}

/// The path of an app; its name needs no escapes.
pub(super) fn path(app: &AppId) -> String {
    format!("/v1/apps/{app}")
}

/// Prints the keys that were just made: app, scopes and key, separated by tabs, as `provision` does.
pub(super) fn print_new_keys(app: &Value, out: &mut impl Write) -> io::Result<()> {
    for key in app.get("keys").and_then(Value::as_array).into_iter().flatten() {
        if let Some(made) = key.get("key").and_then(Value::as_str) {
            writeln!(out, "{}\t{}\t{made}", text(app, "id"), scopes(key))?;
        }
    }
    Ok(())
}

fn scopes(key: &Value) -> String {
    let scopes = key.get("scopes").and_then(Value::as_array).into_iter().flatten();
    scopes.filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

fn read(file: &Path) -> Result<Value, Failure> {
    let cannot = |error: io::Error| Failure::Arguments(format!("{}: {error}", file.display()));
    let mut json = String::new();
    if file == Path::new("-") {
        io::stdin().read_to_string(&mut json).map_err(cannot)?;
    } else {
        json = fs::read_to_string(file).map_err(cannot)?;
    }
    // Not the parser's own words, which may quote a secret.
    serde_json::from_str(&json).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Failure::Arguments(format!(
            "{}: must be JSON; broken at line {line} column {column}",
            file.display()
        ))
    })
}
