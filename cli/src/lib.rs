//! The commands of `peal`. Results go to standard output, errors to standard error.
//!
//! Exit codes: 0, done, or the answer is yes; 1, the answer is no (the equation does not hold, something was not delivered,
//! or a line was refused); 2, the command failed (75 for `bounce`).

mod api;
mod apply;
mod apps;
mod bounce;
mod controls;
mod dead;
mod export;
mod import;
mod keys;
mod mesh;
mod operator;
mod reseal;
mod send;
mod suppressions;
mod table;
mod tail;
mod top;
mod verify;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use jiff::{Span, SpanRelativeTo, Timestamp};
use shared::{clock::Clock, nats::connect::ConnectError, settings::BadSettings};

/// The arguments of `peal`: one command.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the ledger equation against the streams of every region, and list what breaks it.
    Verify(verify::VerifyArgs),
    /// Send a notification.
    Send(Box<send::SendArgs>),
    /// Register many recipients from a file.
    Import(import::ImportArgs),
    /// Write all recipients of an app to a file, with their tokens, as `import` takes them.
    Export(export::ExportArgs),
    /// Report a mail that came to the bounce address: for the pipe of a mail server.
    Bounce(bounce::BounceArgs),
    /// List, show, replay or delete dead letters.
    Dead(dead::DeadArgs),
    /// List, add or remove suppressed mailboxes and numbers.
    Suppressions(suppressions::SuppressionsArgs),
    /// Hold or end work while everything runs.
    Controls(controls::ControlsArgs),
    /// List, show and write apps, and their keys.
    Apps(apps::AppsArgs),
    /// Make regions and apps as a file has them, or print what would change.
    Apply(apply::ApplyArgs),
    /// Follow the receipts of a region.
    Tail(tail::TailArgs),
    /// Show lanes, retries, outboxes and dead letters, and refresh them.
    Top(top::TopArgs),
    /// Seal the secrets of the hub's configuration under the first of several mesh keys, and print the entries that changed. The
    /// others can be removed everywhere then.
    Reseal(reseal::ResealArgs),
    /// Print `roles.conf` for a nats-server: its users and their permissions.
    Roles(keys::RolesArgs),
    /// Give running servers with an operator the accounts of the mesh: add, change and remove them.
    Accounts(operator::AccountsArgs),
    /// Create an `NKey` for a role.
    Nkey(keys::NkeyArgs),
}

/// The result of a command that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Arguments(String),
    #[error("settings: {0}")]
    Settings(#[from] BadSettings),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("cannot read the streams: {0}")]
    Streams(String),
    #[error("cannot reach the gateway: {0}")]
    Http(String),
    #[error("cannot reach a gateway over NATS: {0}")]
    Door(String),
    #[error("{0}")]
    Refused(Box<api::Refusal>),
    #[error("{1}\n  stopped at line {0}; continue with --from-line {0}")]
    Stopped(u64, Box<Failure>),
    #[error("{1}\n  the export is not complete; get the rest into another file with --cursor {0}")]
    Cut(String, Box<Failure>),
    #[error("{0}: {1}")]
    Entry(String, Box<Failure>),
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// Whether repeating a request may help.
    fn may_pass(&self) -> bool {
        match self {
            Self::Http(_) => true,
            Self::Refused(refused) => matches!(refused.status, 408 | 429 | 500..),
            _ => false,
        }
    }
}

/// Runs a command, and returns its exit code.
pub async fn run(arguments: Arguments) -> ExitCode {
    let clock = Clock::system();
    let mut out = io::stdout();
    // A mail server tries again after EX_TEMPFAIL of sysexits.h, and takes others for good.
    let failed = if matches!(arguments.command, Command::Bounce(_)) {
        75
    } else {
        2
    };
    let done = match arguments.command {
        Command::Verify(args) => verify::run(args, &mut out).await,
        Command::Send(args) => send::run(*args, &mut out).await,
        Command::Import(args) => import::run(args, &mut out).await,
        Command::Export(args) => export::run(args, &mut out).await,
        Command::Bounce(args) => bounce::run(args, &mut out).await,
        Command::Dead(args) => dead::run(args, &mut out).await,
        Command::Suppressions(args) => suppressions::run(args, &mut out).await,
        Command::Controls(args) => controls::run(args, &mut out).await,
        Command::Apps(args) => apps::run(args, &mut out).await,
        Command::Apply(args) => apply::run(args, &mut out).await,
        Command::Tail(args) => tail::run(args, &mut out).await,
        Command::Top(args) => top::run(args, &clock, &mut out).await,
        Command::Reseal(args) => reseal::run(args, &mut out).await,
        Command::Roles(args) => keys::roles(&args, &mut out),
        Command::Accounts(args) => operator::push(args, &mut out).await,
        Command::Nkey(args) => keys::nkey(&args, &mut out),
    };
    match done.and_then(|answer| Ok(out.flush().map(|()| answer)?)) {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        // The reader of a pipe, such as `head`, has closed it because it needs no more.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failed)
        }
    }
}

/// Parses a time: RFC 3339, or how long ago, such as `90m` or `3d`.
fn time(text: &str) -> Result<Timestamp, String> {
    let rule = "must be a time such as 2026-01-31T12:00:00Z, or how long ago, such as 90m or 3d";
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let ago: Span = text.parse().map_err(|_| rule.to_owned())?;
    let ago = ago.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| rule)?;
    let at = Clock::system().now().checked_sub(ago.abs());
    at.map_err(|_| rule.to_owned())
}
