//! `peal dead`: dead letters, through the gateway's HTTP API.

use std::io::Write;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Map, Value, json};
use shared::channel::Channel;

use super::{
    Answer, Failure,
    api::{Api, ApiArgs, text},
    table::Table,
};

const DEAD_LETTERS_PATH: &str = "/v1/dead-letters";

#[derive(Debug, Args)]
pub(super) struct DeadArgs {
    #[command(subcommand)]
    command: DeadCommand,
}

#[derive(Debug, Subcommand)]
enum DeadCommand {
    /// List dead letters, without their content.
    List {
        #[command(flatten)]
        api: ApiArgs,
        #[command(flatten)]
        filter: Filter,
        /// List at most this many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// The cursor that an earlier list printed, to continue it.
        #[arg(long)]
        cursor: Option<String>,
        /// Print one JSON document per line instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter.
    Show {
        #[command(flatten)]
        api: ApiArgs,
        /// The id of the letter.
        id: String,
        /// Show the original message too.
        #[arg(long)]
        payload: bool,
    },
    /// Replay dead letters: one, or all that match.
    Replay {
        #[command(flatten)]
        api: ApiArgs,
        /// The id of the letter.
        #[arg(required_unless_present = "all", conflicts_with_all = ["all", "channel", "reason", "since", "until", "limit"])]
        id: Option<String>,
        /// Replay all that match, instead of one.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        filter: Filter,
        /// Replay at most this many. Default: all.
        #[arg(long)]
        limit: Option<usize>,
    },
    /// Delete one dead letter permanently.
    Delete {
        #[command(flatten)]
        api: ApiArgs,
        /// The id of the letter.
        id: String,
    },
}

/// Selects dead letters.
#[derive(Debug, Args)]
struct Filter {
    /// Only letters of this channel.
    #[arg(long)]
    channel: Option<Channel>,
    /// Only letters with this reason.
    #[arg(long)]
    reason: Option<String>,
    /// Only letters given up at or after this time: RFC 3339, or how long ago, such as `3h`.
    #[arg(long, value_name = "TIME", value_parser = super::time)]
    since: Option<Timestamp>,
    /// Only letters given up before this time: RFC 3339, or how long ago, such as `3h`.
    #[arg(long, value_name = "TIME", value_parser = super::time)]
    until: Option<Timestamp>,
}

impl Filter {
    fn members(&self) -> Vec<(&'static str, String)> {
        let members = [
            ("channel", self.channel.map(|channel| channel.to_string())),
            ("reason", self.reason.clone()),
            ("since", self.since.map(|at| at.to_string())),
            ("until", self.until.map(|at| at.to_string())),
        ];
        members
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

pub(super) async fn run(args: DeadArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    match args.command {
        DeadCommand::List {
            api,
            filter,
            limit,
            cursor,
            json,
        } => list(&api.open()?, &filter, limit, cursor, json, out).await?,
        DeadCommand::Show { api, id, payload } => {
            let letter = api.open()?.request(Method::GET, &path(&id)?, &[], None).await?;
            show(&letter, payload, out)?;
        }
        DeadCommand::Replay { api, id: Some(id), .. } => {
            let path = format!("{}/replay", path(&id)?);
            let answer = api.open()?.request(Method::POST, &path, &[], None).await?;
            writeln!(out, "replayed {}", text(&answer, "replayed"))?;
        }
        DeadCommand::Replay { api, filter, limit, .. } => replay(&api.open()?, &filter, limit, out).await?,
        DeadCommand::Delete { api, id } => {
            api.open()?.request(Method::DELETE, &path(&id)?, &[], None).await?;
            writeln!(out, "deleted {id}")?;
        }
    }
    Ok(Answer::Yes)
}

async fn list(
    api: &Api,
    filter: &Filter,
    limit: usize,
    mut cursor: Option<String>,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let mut table = Table::new([
        "id",
        "died at",
        "channel",
        "reason",
        "recipient",
        " attempt",
        "notification",
    ]);
    let mut left = limit;
    while left > 0 {
        let mut query = filter.members();
        query.push(("limit", left.to_string()));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page = api.request(Method::GET, DEAD_LETTERS_PATH, &query, None).await?;
        let letters = page.get("dead_letters").and_then(Value::as_array);
        let letters = letters.map(Vec::as_slice).unwrap_or_default();
        for letter in letters.iter().take(left) {
            if json {
                writeln!(out, "{letter}")?;
            }
            let members = [
                "id",
                "died_at",
                "channel",
                "reason",
                "recipient",
                "attempt",
                "notification_id",
            ];
            table.row(members.map(|member| text(letter, member)));
        }
        left = left.saturating_sub(letters.len());
        cursor = page.get("next").and_then(Value::as_str).map(str::to_owned);
        // Guards against an endless loop, should an empty page have a next one.
        if cursor.is_none() || letters.is_empty() {
            break;
        }
    }
    if json {
        return Ok(());
    }
    if table.is_empty() {
        writeln!(out, "No dead letters.")?;
    } else {
        table.write(out)?;
    }
    if let Some(cursor) = cursor {
        writeln!(out, "more: --cursor {cursor}")?;
    }
    Ok(())
}

fn show(letter: &Value, payload: bool, out: &mut impl Write) -> Result<(), Failure> {
    for (name, value) in letter.as_object().into_iter().flatten() {
        if name != "payload" && !value.is_null() {
            writeln!(out, "{name:<16}{}", text(letter, name))?;
        }
    }
    match letter.get("payload") {
        Some(content) if payload => writeln!(out, "payload\n{content:#}")?,
        Some(_) => writeln!(out, "{:<16}hidden; --payload shows it", "payload")?,
        None => {}
    }
    Ok(())
}

async fn replay(api: &Api, filter: &Filter, limit: Option<usize>, out: &mut impl Write) -> Result<(), Failure> {
    let mut total = 0;
    loop {
        let mut request: Map<String, Value> = filter
            .members()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        if let Some(limit) = limit {
            request.insert("limit".to_owned(), json!(limit - total));
        }
        let answer = api
            .request(
                Method::POST,
                &format!("{DEAD_LETTERS_PATH}/replay"),
                &[],
                Some(&request.into()),
            )
            .await?;
        let replayed = answer.get("replayed").and_then(Value::as_u64).unwrap_or_default();
        total += usize::try_from(replayed).unwrap_or(usize::MAX);
        let more = answer.get("more").and_then(Value::as_bool).unwrap_or_default();
        if !more || replayed == 0 || limit.is_some_and(|limit| total >= limit) {
            writeln!(out, "replayed {total}{}", if more { ", more are left" } else { "" })?;
            return Ok(());
        }
    }
}

fn path(id: &str) -> Result<String, Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:.~".contains(&byte);
    if id.is_empty() || !id.bytes().all(plain) {
        return Err(Failure::Arguments(
            "the id must be one that `peal dead list` shows".to_owned(),
        ));
    }
    Ok(format!("{DEAD_LETTERS_PATH}/{id}"))
}
