//! `peal apply`: makes the regions and apps of the mesh as a file has them, through the gateway's HTTP API.

use std::{io::Write, path::PathBuf};

use clap::Args;
use gateway::provision;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Answer, Failure,
    api::{Api, ApiArgs, text},
    apps,
};

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The file of regions and apps that `peal-gateway provision` reads. What it does not name stays as it is.
    file: PathBuf,
    /// Only print what would change; exit with 1 if anything would.
    #[arg(long)]
    plan: bool,
}

/// One entry of the file.
struct Entry {
    title: String,
    path: String,
    body: Value,
    /// The version that was read before the plan was made.
    version: Option<String>,
    changes: bool,
}

pub(super) async fn run(args: ApplyArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let file = provision::read(&args.file).map_err(|error| Failure::Arguments(error.to_string()))?;
    let api = args.api.open()?;
    let regions = file.regions.into_iter().map(|(region, site)| Entry {
        title: format!("region {region}"),
        path: format!("/v1/regions/{region}"),
        body: json!(site),
        version: None,
        changes: false,
    });
    let apps = file.apps.into_iter().map(|(app, body)| Entry {
        title: format!("app {app}"),
        path: apps::path(&app),
        body,
        version: None,
        changes: false,
    });
    let (mut regions, mut apps): (Vec<Entry>, Vec<Entry>) = (regions.collect(), apps.collect());
    for region in &mut regions {
        plan(&api, region, out).await?;
    }
    for app in &mut apps {
        app.version = version(&api, &app.path).await?;
        plan(&api, app, out).await?;
    }
    let any = regions.iter().chain(&apps).any(|entry| entry.changes);
    if args.plan {
        return Ok(if any { Answer::No } else { Answer::Yes });
    }
    for entry in regions.iter().chain(&apps).filter(|entry| entry.changes) {
        let version = entry.version.as_deref();
        let writing = api.versioned(Method::PUT, &entry.path, &[], Some(&entry.body), version);
        let (_, written) = writing.await.map_err(|failure| named(&entry.title, failure))?;
        apps::print_new_keys(&written, out)?;
    }
    Ok(Answer::Yes)
}

fn named(title: &str, failure: Failure) -> Failure {
    Failure::Entry(title.to_owned(), failure.into())
}

/// The version of an app; `None` if there is none yet.
async fn version(api: &Api, path: &str) -> Result<Option<String>, Failure> {
    match api.versioned(Method::GET, path, &[], None, None).await {
        Ok((version, _)) => Ok(version),
        Err(Failure::Refused(refusal)) if refusal.status == 404 => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Prints what writing the entry would change.
async fn plan(api: &Api, entry: &mut Entry, out: &mut impl Write) -> Result<(), Failure> {
    let query = [("plan", "true".to_owned())];
    let planning = api.versioned(
        Method::PUT,
        &entry.path,
        &query,
        Some(&entry.body),
        entry.version.as_deref(),
    );
    let (_, plan) = planning.await.map_err(|failure| named(&entry.title, failure))?;
    let changes = plan.get("changes").and_then(Value::as_array);
    let changes = changes.map(Vec::as_slice).unwrap_or_default();
    let keys = plan.get("keys").and_then(Value::as_u64).unwrap_or_default();
    entry.changes = !changes.is_empty() || keys > 0;
    if !entry.changes {
        writeln!(out, "{}: no change", entry.title)?;
        return Ok(());
    }
    writeln!(out, "{}:", entry.title)?;
    for change in changes {
        writeln!(out, "  {}", line(change))?;
    }
    if keys > 0 {
        writeln!(out, "  + keys: {keys} new")?;
    }
    Ok(())
}

/// One change as a line of a diff.
fn line(change: &Value) -> String {
    let member = text(change, "member");
    if change.get("is_secret").is_some() {
        return format!("~ {member}: another secret");
    }
    match (change.get("from"), change.get("to")) {
        (Some(from), Some(to)) => format!("~ {member}: {from} -> {to}"),
        (None, Some(to)) => format!("+ {member}: {to}"),
        (Some(from), None) => format!("- {member}: {from}"),
        (None, None) => format!("~ {member}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_a_line_without_secrets() {
        for (change, expected) in [
            (
                json!({ "member": "quota.in_flight", "from": 1, "to": 2 }),
                "~ quota.in_flight: 1 -> 2",
            ),
            (json!({ "member": "services", "to": true }), "+ services: true"),
            (
                json!({ "member": "sms_countries", "from": ["CH"] }),
                "- sms_countries: [\"CH\"]",
            ),
            (
                json!({ "member": "credentials.smtp", "is_secret": true }),
                "~ credentials.smtp: another secret",
            ),
        ] {
            assert_eq!(line(&change), expected);
        }
    }
}
