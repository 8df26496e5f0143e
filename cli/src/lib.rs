//! The program for people: what `peal <command>` does. Answers go to standard output, errors to standard error.
//!
//! Exit codes: 0 yes, or done; 1 the answer is no (the equation is broken, something was not delivered); 2 it could not be
//! done.

mod api;
mod dead;
mod keys;
mod mesh;
mod send;
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

/// What is to be done.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the ledger equation against the streams of every region, and name what breaks it.
    Verify(verify::VerifyArgs),
    /// Send a notification.
    Send(send::SendArgs),
    /// List, show, replay or delete dead letters.
    Dead(dead::DeadArgs),
    /// Follow what happens in a region.
    Tail(tail::TailArgs),
    /// Show lanes, retries, outboxes and dead letters, refreshing.
    Top(top::TopArgs),
    /// Print `roles.conf` of a nats-server: its users and what each may do.
    Roles(keys::RolesArgs),
    /// Make an `NKey` for a role.
    Nkey(keys::NkeyArgs),
}

/// What a command came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
}

/// Why a command could not be done.
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
    #[error("{0}")]
    Refused(Box<api::Refusal>),
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Does it, and says by the exit code what it came to.
pub async fn run(arguments: Arguments) -> ExitCode {
    let clock = Clock::system();
    let mut out = io::stdout();
    let done = match arguments.command {
        Command::Verify(args) => verify::run(args, &mut out).await,
        Command::Send(args) => send::run(args, &mut out).await,
        Command::Dead(args) => dead::run(args, &mut out).await,
        Command::Tail(args) => tail::run(args, &mut out).await,
        Command::Top(args) => top::run(args, &clock, &mut out).await,
        Command::Roles(args) => keys::roles(&args, &mut out),
        Command::Nkey(args) => keys::nkey(&args, &mut out),
    };
    match done.and_then(|answer| Ok(out.flush().map(|()| answer)?)) {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        // Whoever reads has read enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(2)
        }
    }
}

/// A moment: RFC 3339, or how long ago, as `90m` or `3d`.
fn moment(text: &str) -> Result<Timestamp, String> {
    let rule = "must be a time as 2026-01-31T12:00:00Z, or how long ago, as 90m or 3d";
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let ago: Span = text.parse().map_err(|_| rule.to_owned())?;
    let ago = ago.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| rule)?;
    let at = Clock::system().now().checked_sub(ago.abs());
    at.map_err(|_| rule.to_owned())
}
