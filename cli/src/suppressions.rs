//! `peal suppressions`: the mailboxes and numbers that an app must not send to, through the gateway's HTTP API.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use shared::{
    channel::Channel,
    id::Category,
    suppression::{SuppressionId, SuppressionReason},
};

use super::{
    Answer, Failure,
    api::{Api, ApiArgs, text},
    table::Table,
};

const SUPPRESSIONS_PATH: &str = "/v1/suppressions";

/// Lines of a file that are sent at the same time.
const LINES_AT_ONCE: usize = 16;

#[derive(Debug, Args)]
pub(super) struct SuppressionsArgs {
    #[command(subcommand)]
    command: SuppressionsCommand,
}

#[derive(Debug, Subcommand)]
enum SuppressionsCommand {
    /// List what is suppressed, by ids: Peal does not keep the addresses.
    List {
        #[command(flatten)]
        api: ApiArgs,
        /// Only suppressions on this channel.
        #[arg(long)]
        channel: Option<Channel>,
        /// Only suppressions for this reason.
        #[arg(long)]
        reason: Option<SuppressionReason>,
        /// Print one JSON document per line instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Suppress a mailbox or a number, or all in a file.
    Add {
        #[command(flatten)]
        api: ApiArgs,
        /// A mailbox, or a number as in E.164.
        #[arg(required_unless_present = "file")]
        address: Option<String>,
        /// A file with the body of `POST /v1/suppressions` on each line (NDJSON), instead.
        #[arg(long, conflicts_with_all = ["address", "reason", "category", "expires_at"])]
        file: Option<PathBuf>,
        /// `unsubscribe` or `manual`.
        #[arg(long)]
        reason: Option<SuppressionReason>,
        /// Only for this category of notifications.
        #[arg(long)]
        category: Option<Category>,
        /// When it ends (RFC 3339). Default: never.
        #[arg(long, value_name = "TIME")]
        expires_at: Option<Timestamp>,
    },
    /// Lift a suppression.
    Remove {
        #[command(flatten)]
        api: ApiArgs,
        /// Its id.
        id: SuppressionId,
    },
}

pub(super) async fn run(args: SuppressionsArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    match args.command {
        SuppressionsCommand::List {
            api,
            channel,
            reason,
            json,
        } => {
            let filter = [
                ("channel", channel.map(|channel| channel.to_string())),
                ("reason", reason.map(|reason| reason.to_string())),
            ];
            list(&api.open()?, &filter, json, out).await?;
        }
        SuppressionsCommand::Add {
            api, file: Some(file), ..
        } => return add_all(&api.open()?, &file, out).await,
        SuppressionsCommand::Add {
            api,
            address,
            reason,
            category,
            expires_at,
            ..
        } => {
            let address = address.unwrap_or_default();
            let body = json!({
                "channel": if address.contains('@') { Channel::Email } else { Channel::Sms },
                "address": address,
                "reason": reason,
                "category": category,
                "expires_at": expires_at,
            });
            let api = api.open()?;
            let answer = api.request(Method::POST, SUPPRESSIONS_PATH, &[], Some(&body)).await?;
            writeln!(
                out,
                "{} is suppressed: {}",
                text(&answer, "id"),
                text(&answer, "reason")
            )?;
        }
        SuppressionsCommand::Remove { api, id } => {
            let path = format!("{SUPPRESSIONS_PATH}/{id}");
            api.open()?.request(Method::DELETE, &path, &[], None).await?;
            writeln!(out, "lifted {id}")?;
        }
    }
    Ok(Answer::Yes)
}

async fn list(
    api: &Api,
    filter: &[(&'static str, Option<String>)],
    json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let members = [
        "id",
        "channel",
        "reason",
        "category",
        "source",
        "created_at",
        "expires_at",
    ];
    let mut table = Table::new(["id", "channel", "reason", "category", "source", "since", "until"]);
    let mut cursor = None;
    loop {
        let given = filter.iter().cloned();
        let query: Vec<_> = given
            .chain([("cursor", cursor)])
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        let page = api.request(Method::GET, SUPPRESSIONS_PATH, &query, None).await?;
        let listed = page.get("suppressions").and_then(Value::as_array);
        for suppression in listed.into_iter().flatten() {
            if json {
                writeln!(out, "{suppression}")?;
            } else {
                table.row(members.map(|member| text(suppression, member)));
            }
        }
        cursor = page.get("next").and_then(Value::as_str).map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    if json {
        return Ok(());
    }
    if table.is_empty() {
        writeln!(out, "Nothing is suppressed.")?;
    } else {
        table.write(out)?;
    }
    Ok(())
}

/// Sends every line of the file, and reports those that are refused. Repeating is safe.
async fn add_all(api: &Api, file: &Path, out: &mut impl Write) -> Result<Answer, Failure> {
    let unreadable = |error| Failure::Arguments(format!("cannot read {}: {error}", file.display()));
    let lines = BufReader::new(File::open(file).map_err(unreadable)?).lines();
    let sent = (1_u64..).zip(lines).map(async |(number, line)| {
        let line = line.map_err(unreadable)?;
        let Ok(body) = serde_json::from_str::<Value>(&line) else {
            return Ok((number, Some("it is not one JSON document".to_owned())));
        };
        match api.request(Method::POST, SUPPRESSIONS_PATH, &[], Some(&body)).await {
            Ok(_) => Ok((number, None)),
            Err(Failure::Refused(refusal)) if refusal.status == 422 => Ok((number, Some(refusal.to_string()))),
            // Nothing that is wrong with the line, such as a scope that is missing: the next lines would fail too.
            Err(failure) => Err(failure),
        }
    });
    let mut sent = stream::iter(sent).buffered(LINES_AT_ONCE);
    let (mut added, mut refused) = (0_u64, 0_u64);
    while let Some(line) = sent.next().await {
        match line? {
            (_, None) => added += 1,
            (number, Some(why)) => {
                refused += 1;
                writeln!(out, "line {number}: {why}")?;
            }
        }
    }
    writeln!(out, "{added} suppressed, {refused} refused")?;
    Ok(if refused == 0 { Answer::Yes } else { Answer::No })
}
