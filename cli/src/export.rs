//! `peal export`: writes all recipients of an app to a file of NDJSON, as `peal import` takes them, and continues where a
//! connection broke.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use super::{
    Answer, Failure,
    api::{Api, ApiArgs},
};

/// Longer than a gateway lets an export last.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(11);

/// How long a gateway may answer nothing: longer than it waits for another region.
const SILENT_AT_MOST: Duration = Duration::from_mins(1);

/// Requests in a row that bring nothing, at most.
const TRIES_MAX: u32 = 6;

/// The pause before a request is repeated; it doubles with each that brings nothing.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The file to write, which must not exist: a recipient on each line, in JSON (NDJSON), with tokens and secrets. Only you
    /// may read it.
    file: PathBuf,
    /// Continues an export: the `cursor` of its last line, or the cursor that it ended with.
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

/// What a line says about where to go on.
#[derive(Debug, Deserialize)]
struct Line {
    /// Of a recipient.
    cursor: Option<String>,
    /// Of the end of an export that is not complete.
    next: Option<String>,
    #[serde(default)]
    unreachable: Vec<String>,
}

/// How a request ended.
#[derive(Debug)]
enum End {
    Complete,
    /// It lasted for as long as it may.
    Late,
    /// These regions did not answer.
    Missing(Vec<String>),
}

struct Export {
    api: Api,
    file: BufWriter<File>,
    cursor: Option<String>,
    recipients: u64,
}

pub(super) async fn run(args: ExportArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let name = args.file.display();
    let file = create(&args.file).map_err(|error| Failure::Arguments(format!("cannot create {name}: {error}")))?;
    let mut export = Export {
        api: args.api.open()?,
        file: BufWriter::new(file),
        cursor: args.cursor,
        recipients: 0,
    };
    let end = export.run().await;
    export.file.flush()?;
    let recipients = export.recipients;
    match (end, export.cursor) {
        (Ok(missing), _) if missing.is_empty() => {
            writeln!(out, "{recipients} recipients")?;
            Ok(Answer::Yes)
        }
        (Ok(missing), cursor) => {
            let (missing, cursor) = (missing.join(", "), cursor.unwrap_or_default());
            writeln!(
                out,
                "{recipients} recipients; did not answer: {missing}; get the rest with --cursor {cursor}"
            )?;
            Ok(Answer::No)
        }
        (Err(failure), Some(cursor)) => Err(Failure::Cut(cursor, failure.into())),
        (Err(failure), None) => Err(failure),
    }
}

/// A new file that nobody else may read.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

impl Export {
    /// Reads until there is no more. Returns the regions that did not answer.
    async fn run(&mut self) -> Result<Vec<String>, Failure> {
        let mut tries = 0;
        loop {
            let before = self.recipients;
            let failure = match self.read().await {
                Ok(End::Complete) => return Ok(Vec::new()),
                Ok(End::Missing(regions)) => return Ok(regions),
                Ok(End::Late) => continue,
                Err(failure) => failure,
            };
            tries = if self.recipients > before { 0 } else { tries + 1 };
            if tries == TRIES_MAX || !failure.may_pass() {
                return Err(failure);
            }
            sleep(RETRY_AFTER * 2_u32.pow(tries.saturating_sub(1))).await;
        }
    }

    /// Reads one answer, and writes each whole line of it.
    async fn read(&mut self) -> Result<End, Failure> {
        let query: Vec<_> = self.cursor.iter().map(|cursor| ("cursor", cursor.clone())).collect();
        let mut answer = self.api.export("/v1/exports", &query, REQUEST_TIMEOUT).await?;
        let mut rest = Vec::new();
        loop {
            let piece = timeout(SILENT_AT_MOST, answer.next()).await;
            let silent = |_| Failure::Http("the gateway does not answer".to_owned());
            let Some(piece) = piece.map_err(silent)?? else {
                return Ok(End::Complete);
            };
            rest.extend_from_slice(piece.as_ref());
            let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else {
                continue;
            };
            let whole: Vec<u8> = rest.drain(..=end).collect();
            for line in whole.split_inclusive(|byte| *byte == b'\n') {
                let read = serde_json::from_slice(line);
                let Line {
                    cursor,
                    next,
                    unreachable,
                } = read.map_err(|_| Failure::Http("the answer is not NDJSON".to_owned()))?;
                if next.is_some() {
                    self.cursor = next;
                    let is_late = unreachable.is_empty();
                    return Ok(if is_late { End::Late } else { End::Missing(unreachable) });
                }
                self.file.write_all(line)?;
                self.cursor = cursor;
                self.recipients += 1;
            }
        }
    }
}
