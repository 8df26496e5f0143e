//! `peal import`: registers many recipients from a file of NDJSON, and continues where a connection broke.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Answer, Failure,
    api::{Api, ApiArgs},
};

/// Lines that are sent in one request, at most: fewer than an import takes, so that a broken connection costs little.
const BATCH_LINES: usize = 10_000;

/// Bytes after which a request takes no further line.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// The longest line that a gateway takes, in bytes.
const LINE_MAX_BYTES: usize = 65_536;

/// Longer than a gateway lets an import last.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(11);

/// How long a gateway may answer nothing: longer than it takes to give up a line.
const SILENT_AT_MOST: Duration = Duration::from_mins(1);

/// Requests in a row that bring nothing, at most.
const TRIES_MAX: u32 = 6;

/// The pause before a request is repeated; it doubles with each that brings nothing.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How often the progress is shown.
const SHOWN_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// A file with a recipient on each line, in JSON (NDJSON).
    file: PathBuf,
    /// The line of the file to begin with.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,
}

/// Lines of the file that are sent together.
#[derive(Debug, Default)]
struct Batch {
    /// The number of the first line.
    first: u64,
    /// Each with its line feed.
    lines: Vec<Vec<u8>>,
    /// Which of the lines have a final result.
    is_done: Vec<bool>,
    /// Where in the file the batch ends.
    end: u64,
}

/// What became of the lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    new: u64,
    known: u64,
    refused: u64,
}

/// What became of one line.
#[derive(Debug, Deserialize)]
struct LineResult {
    line: u64,
    status: u16,
    problem: Option<Problem>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    code: String,
    detail: String,
}

/// An import in progress.
struct Import<'a, W> {
    api: Api,
    out: &'a mut W,
    counts: Counts,
    progress: Progress,
}

pub(super) async fn run(args: ImportArgs, out: &mut impl Write) -> Result<Answer, Failure> {
    let name = args.file.display();
    let unreadable = |error: io::Error| Failure::Arguments(format!("cannot read {name}: {error}"));
    let file = File::open(&args.file).map_err(unreadable)?;
    let progress = Progress::new(file.metadata().map_err(unreadable)?.len());
    let mut file = BufReader::new(file);
    let mut at = 0;
    for _ in 1..args.from_line {
        at += file.skip_until(b'\n').map_err(unreadable)? as u64;
    }
    let mut import = Import {
        api: args.api.open()?,
        out,
        counts: Counts::default(),
        progress,
    };
    let mut next = args.from_line;
    loop {
        let mut batch = Batch::read(&mut file, next, at).map_err(unreadable)?;
        if batch.lines.is_empty() {
            break;
        }
        (next, at) = (next + batch.lines.len() as u64, batch.end);
        let stored = import.store(&mut batch).await;
        if let (Err(failure), Some(line)) = (stored, batch.next()) {
            import.progress.clear();
            return Err(Failure::Stopped(line, failure.into()));
        }
    }
    import.progress.clear();
    let Counts { new, known, refused } = import.counts;
    let lines = new + known + refused;
    writeln!(
        import.out,
        "{lines} lines: {new} new recipients, {known} known, {refused} refused"
    )?;
    Ok(if refused == 0 { Answer::Yes } else { Answer::No })
}

impl Batch {
    /// Reads the next lines of a file, of which the first is numbered `first` and begins at byte `at`.
    fn read(file: &mut impl BufRead, first: u64, at: u64) -> io::Result<Self> {
        let mut batch = Self {
            first,
            end: at,
            ..Self::default()
        };
        let mut bytes = 0;
        while batch.lines.len() < BATCH_LINES && bytes < BATCH_BYTES {
            let mut line = Vec::new();
            // One byte more than a line may have shows the gateway that it is too long; the rest need not be sent.
            let most = LINE_MAX_BYTES as u64 + 1;
            let mut read = file.by_ref().take(most).read_until(b'\n', &mut line)? as u64;
            if read == 0 {
                break;
            }
            if line.last() != Some(&b'\n') {
                if read == most {
                    read += file.skip_until(b'\n')? as u64;
                }
                line.push(b'\n');
            }
            batch.end += read;
            bytes += line.len();
            batch.lines.push(line);
        }
        batch.is_done = vec![false; batch.lines.len()];
        Ok(batch)
    }

    /// The number of the first line without a final result.
    fn next(&self) -> Option<u64> {
        let index = self.is_done.iter().position(|is_done| !is_done)?;
        Some(self.first + index as u64)
    }

    fn done(&self) -> usize {
        self.is_done.iter().filter(|is_done| **is_done).count()
    }

    /// The body that begins with the line of this number.
    fn body(&self, from: u64) -> Vec<u8> {
        self.lines[self.index(from).unwrap_or_default()..].concat()
    }

    fn index(&self, line: u64) -> Option<usize> {
        let index = usize::try_from(line.checked_sub(self.first)?).ok()?;
        (index < self.lines.len()).then_some(index)
    }
}

impl<W: Write> Import<'_, W> {
    /// Sends a batch until each line has a final result.
    async fn store(&mut self, batch: &mut Batch) -> Result<(), Failure> {
        let mut tries = 0;
        while let Some(next) = batch.next() {
            let before = batch.done();
            let sent = self.send(batch, next).await;
            if batch.next().is_none() {
                break;
            }
            tries = if batch.done() > before { 0 } else { tries + 1 };
            match sent {
                Err(failure) if tries == TRIES_MAX || !failure.may_pass() => return Err(failure),
                Ok(None) if tries == TRIES_MAX => {
                    return Err(Failure::Http("the gateway answers no further line".to_owned()));
                }
                Ok(Some(why)) if tries == TRIES_MAX => return Err(Failure::Http(why)),
                _ => sleep(RETRY_AFTER * 2_u32.pow(tries.saturating_sub(1))).await,
            }
        }
        self.progress.at = batch.end;
        Ok(())
    }

    /// Sends the lines from `next` on. Returns why the last of them that may be repeated is not stored.
    async fn send(&mut self, batch: &mut Batch, next: u64) -> Result<Option<String>, Failure> {
        let query = [("from_line", next.to_string())];
        let mut answer = self
            .api
            .import("/v1/imports", &query, batch.body(next), REQUEST_TIMEOUT)
            .await?;
        let (mut rest, mut why) = (Vec::new(), None);
        loop {
            let piece = timeout(SILENT_AT_MOST, answer.next()).await;
            let silent = |_| Failure::Http("the gateway does not answer".to_owned());
            let Some(piece) = piece.map_err(silent)?? else {
                return Ok(why);
            };
            rest.extend_from_slice(piece.as_ref());
            let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else {
                continue;
            };
            let whole: Vec<u8> = rest.drain(..=end).collect();
            for line in whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let result = serde_json::from_slice(line);
                let result = result.map_err(|_| Failure::Http("the answer is not NDJSON".to_owned()))?;
                why = self.note(batch, result)?.or(why);
            }
            self.progress.show(&self.counts);
        }
    }

    /// Counts a result. Returns why the line is to be sent again, if it is.
    fn note(&mut self, batch: &mut Batch, result: LineResult) -> Result<Option<String>, Failure> {
        let Some(is_done) = batch.index(result.line).and_then(|index| batch.is_done.get_mut(index)) else {
            return Err(Failure::Http("the answer is about a line that was not sent".to_owned()));
        };
        let problem = result.problem.unwrap_or_default();
        // The lines behind one that is repeated are sent again, and have a result already.
        if *is_done {
            return Ok(None);
        }
        match result.status {
            201 => self.counts.new += 1,
            200 => self.counts.known += 1,
            422 => {
                self.counts.refused += 1;
                self.progress.clear();
                writeln!(self.out, "line {}: {} ({})", result.line, problem.detail, problem.code)?;
            }
            _ => {
                return Ok(Some(format!(
                    "line {}: {} ({})",
                    result.line, problem.detail, problem.code
                )));
            }
        }
        *is_done = true;
        Ok(None)
    }
}

/// Shows how far an import is, if somebody looks.
struct Progress {
    /// The size of the file in bytes, and how many of them are done.
    size: u64,
    at: u64,
    shown: Option<Instant>,
    is_watched: bool,
}

impl Progress {
    fn new(size: u64) -> Self {
        Self {
            size,
            at: 0,
            shown: None,
            is_watched: io::stderr().is_terminal(),
        }
    }

    fn show(&mut self, counts: &Counts) {
        if !self.is_watched || self.shown.is_some_and(|shown| shown.elapsed() < SHOWN_EVERY) {
            return;
        }
        self.shown = Some(Instant::now());
        let Counts { new, known, refused } = counts;
        let percent = self.at * 100 / self.size.max(1);
        eprint!(
            "\r{} lines, {refused} refused, {percent} % of the file",
            new + known + refused
        );
    }

    /// Clears the line on which the progress is shown.
    fn clear(&mut self) {
        if self.shown.take().is_some() {
            eprint!("\r\u{1b}[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_cut_into_batches_at_lines() {
        let long = "x".repeat(3 * LINE_MAX_BYTES);
        let text = format!("one\n\n{long}\nlast");
        let batch = Batch::read(&mut text.as_bytes(), 7, 100).unwrap();
        let sizes: Vec<_> = batch.lines.iter().map(Vec::len).collect();
        assert_eq!(sizes, [4, 1, LINE_MAX_BYTES + 2, 5]);
        assert_eq!(batch.end, 100 + text.len() as u64);
        assert_eq!(
            (batch.next(), batch.index(10), batch.index(11), batch.index(6)),
            (Some(7), Some(3), None, None)
        );
        assert_eq!(batch.body(10), b"last\n");

        let text = "{}\n".repeat(BATCH_LINES + 1);
        let mut file = text.as_bytes();
        assert_eq!(Batch::read(&mut file, 1, 0).unwrap().lines.len(), BATCH_LINES);
        assert_eq!(Batch::read(&mut file, 1, 0).unwrap().lines.len(), 1);
        assert!(Batch::read(&mut file, 1, 0).unwrap().lines.is_empty());
    }
}
