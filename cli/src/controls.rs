//! `peal controls`: what is held or ended while everything runs, through the gateway's HTTP API.

use std::io::Write;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use reqwest::Method;
use serde::Serialize;
use serde_json::Value;
use shared::{
    channel::{Channel, Class},
    control::Action,
    id::{AppId, Category, ControlId, Region},
};

use super::{
    Answer, Failure,
    api::{ApiArgs, text},
    table::Table,
};

const CONTROLS_PATH: &str = "/v1/controls";

#[derive(Debug, Args)]
pub(super) struct ControlsArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(subcommand)]
    command: ControlsCommand,
}

#[derive(Debug, Subcommand)]
enum ControlsCommand {
    /// List the controls that the key may see.
    List,
    /// Hold or end what matches everything that is given.
    Add(NewControl),
    /// Remove a control.
    Remove {
        /// Its id.
        id: ControlId,
    },
}

/// The body of the request.
#[derive(Debug, Args, Serialize)]
struct NewControl {
    /// `pause` holds, `kill` ends as suppressed.
    #[arg(long)]
    action: Action,
    /// Only what this app sends.
    #[arg(long)]
    app: Option<AppId>,
    /// Only this category of notifications.
    #[arg(long)]
    category: Option<Category>,
    /// Only this channel.
    #[arg(long)]
    channel: Option<Channel>,
    /// Only this class.
    #[arg(long)]
    class: Option<Class>,
    /// Only what this region works on.
    #[arg(long)]
    region: Option<Region>,
    /// When it ends by itself (RFC 3339). Default: when it is removed.
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// The reason, for the record.
    #[arg(long)]
    why: String,
}

pub(super) async fn run(args: ControlsArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let api = args.api.open()?;
    match args.command {
        ControlsCommand::List => {
            let answer = api.request(Method::GET, CONTROLS_PATH, &[], None).await?;
            let members = [
                "id", "action", "app", "category", "channel", "class", "region", "until", "who", "why",
            ];
            let mut table = Table::new(members);
            for control in answer.get("controls").and_then(Value::as_array).into_iter().flatten() {
                table.row(members.map(|member| text(control, member)));
            }
            if table.is_empty() {
                writeln!(out, "Nothing is held or ended.")?;
            } else {
                table.write(out)?;
            }
        }
        ControlsCommand::Add(new) => {
            let body = serde_json::to_value(new).expect("a control always serializes");
            let made = api.request(Method::POST, CONTROLS_PATH, &[], Some(&body)).await?;
            writeln!(out, "{}", text(&made, "id"))?;
        }
        ControlsCommand::Remove { id } => {
            let path = format!("{CONTROLS_PATH}/{id}");
            api.request(Method::DELETE, &path, &[], None).await?;
            writeln!(out, "removed {id}")?;
        }
    }
    Ok(Answer::Yes)
}
