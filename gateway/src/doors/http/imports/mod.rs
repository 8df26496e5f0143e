//! `POST /v1/imports`: many recipients in one request, one on each line (NDJSON), each answered by a line.
//!
//! Lines are stored concurrently, but those about the same recipient or address in their order. The body is read as it can be
//! stored, and the answer is kept until it is read, so that neither waits for the other. An import takes no place of other
//! requests once it has begun; it has one of few of its own, and loses it when its caller is too slow.

mod lines;

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    extract::{Query, Request, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesOrdered};
use http::header;
use serde::{Deserialize, Serialize};
use shared::{app::App, invalid::Invalid};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use utoipa::{IntoParams, ToSchema};

use self::lines::{BODY_MAX_BYTES, End, LINE_MAX_BYTES, Line, Lines};
use super::{
    answer::{Answer, NotRead},
    api::Api,
    auth::{Caller, ToWrite},
    body,
    connections::Connection,
    openapi,
    problem::{Document, Problem, TIMEOUT, TOO_LARGE},
};
use crate::{
    json::{self, Unread},
    recipients::import::{CheckedLine, Claim, ImportLine, Turn, Turns},
};

/// What both bodies are sent as.
pub(super) const NDJSON: &str = "application/x-ndjson";

/// Lines of an import that are stored at the same time. Each waits for about seven answers of the server in turn.
const LINES_AT_ONCE: usize = 256;

/// Lines that are read before one of those in progress is stored.
const LINES_READ_AHEAD: usize = 16;

/// How long an import may keep its place. The caller sends the rest in another request, behind other callers.
const IMPORT_LASTS_AT_MOST: Duration = Duration::from_mins(10);

/// The largest number of a line: JSON's readers take whole numbers up to 2^53.
const LINE_NUMBER_MAX: u64 = 1 << 53;

/// What became of one line.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ImportResult<'a> {
    /// Its number.
    line: u64,
    /// What a request with it would be answered.
    status: u16,
    /// The problem, if it is not stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Document>)]
    problem: Option<Document<'a>>,
}

/// Where an import begins.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ImportQuery {
    /// The number of the first line, if this sends the rest of an import.
    #[serde(default = "first_line")]
    #[param(minimum = 1, maximum = 9_007_199_254_740_992_i64, default = 1)]
    from_line: u64,
}

fn first_line() -> u64 {
    1
}

/// Import recipients
///
/// Each line of the body (NDJSON) is a recipient with what is to be stored of it: its profile, addresses to add, its
/// preferences, topics to join. Each is answered by a line, in order, with the status that a request with it would be
/// answered. Nothing of a line that breaks a rule is stored. Lines that are answered with 503, or not at all, may be
/// repeated; after a break send the rest, with the number of its first line as `from_line`. The body has at most 64 MiB, a
/// line at most 65,536 bytes. An app has one import at a time on each gateway.
#[utoipa::path(
    post,
    path = "/v1/imports",
    operation_id = "importRecipients",
    tag = "recipients",
    params(ImportQuery),
    request_body(content = ImportLine, content_type = "application/x-ndjson", description = "One on each line"),
    responses(
        (status = 200, description = "What became of each line, one on each line", body = ImportResult,
            content_type = "application/x-ndjson"),
        openapi::AnyRefusal,
        (status = 503, description = "Other imports are in progress; repeat", body = Document,
            content_type = "application/problem+json"),
    ),
    security(("api_key" = ["recipients:write"])),
)]
pub(crate) async fn import(
    State(api): State<Arc<Api>>,
    caller: Caller<ToWrite>,
    query: Result<Query<ImportQuery>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let rule = "must have from_line, a whole number from 1 to 2^53, and nothing else";
    let query = query.ok().map(|Query(query)| query.from_line);
    let next = query.filter(|line| (1..=LINE_NUMBER_MAX).contains(line));
    let next = next.ok_or_else(|| Invalid::new("query", rule))?;
    body::check_type(request.headers(), NDJSON)?;
    if request.body().size_hint().lower() > BODY_MAX_BYTES as u64 {
        return Err(beyond_limit());
    }
    let app = caller.leave();
    let place = api.imports.enter(&app.id).inspect_err(|problem| {
        if problem.quota_frees_after().is_some() {
            api.context.telemetry.metrics.limited("imports", &app.id);
        }
    })?;
    // A connection is not idle while its import lasts.
    let in_progress = request.extensions().get::<Arc<Connection>>().map(Connection::continues);
    let lines = Lines::begin(request.into_body()).await?;
    let answer = Answer::default();
    let reading = Body::new(answer.reading());
    let import = Import {
        api,
        app,
        next,
        turns: Turns::default(),
    };
    tokio::spawn(async move {
        let read = import.run(lines, &answer).await;
        // The caller may begin another import as soon as it sees the end of this one.
        drop(place);
        if read.is_ok() {
            answer.complete();
        }
        drop(in_progress);
    });
    Ok(([(header::CONTENT_TYPE, NDJSON)], reading).into_response())
}

fn beyond_limit() -> Problem {
    let detail = format!("The body may have at most {BODY_MAX_BYTES} bytes. Send the rest in another request.");
    Problem::new(TOO_LARGE, detail)
}

/// An import in progress.
#[derive(Debug)]
struct Import {
    api: Arc<Api>,
    app: Arc<App>,
    /// The number of the next line.
    next: u64,
    turns: Turns<Claim>,
}

/// Why no more lines are taken.
#[derive(Debug, Clone, Copy)]
enum Stop {
    Body(End),
    /// The caller does not read the answer.
    Unread,
    /// It has lasted for as long as it may.
    Late,
    /// The gateway is shutting down.
    Finishing,
}

/// Whether the recipient of a line was unknown, or why the line is not stored.
type Outcome = Result<bool, Problem>;

/// A line in progress.
#[derive(Debug)]
struct Running {
    number: u64,
    claims: Vec<Claim>,
    outcome: Result<JoinHandle<Outcome>, Problem>,
}

/// A line that has ended.
#[derive(Debug)]
struct Done {
    number: u64,
    claims: Vec<Claim>,
    outcome: Outcome,
}

impl Import {
    /// Stores the lines and writes their results, until the caller has read them.
    async fn run(mut self, lines: Lines, answer: &Answer) -> Result<(), NotRead> {
        let (sender, mut lines_read) = mpsc::channel(LINES_READ_AHEAD);
        let mut reader = AbortOnDropHandle::new(tokio::spawn(lines.read(sender)));
        let mut running = FuturesOrdered::new();
        let ends_at = Instant::now() + IMPORT_LASTS_AT_MOST;
        let lifecycle = self.api.imports.lifecycle.clone();
        let stop = loop {
            let has_room = answer.has_room();
            tokio::select! {
                Some(done) = running.next() => self.finish(&done, answer),
                line = lines_read.recv(), if has_room && running.len() < LINES_AT_ONCE => match line {
                    Some(line) => running.push_back(self.start(line).end()),
                    None => break Stop::Body((&mut reader).await.unwrap_or(End::Broken)),
                },
                read = answer.taken(), if !has_room => if read.is_err() {
                    break Stop::Unread;
                },
                () = sleep_until(ends_at) => break Stop::Late,
                () = lifecycle.finishing() => break Stop::Finishing,
            }
        };
        drop(reader);
        while let Some(done) = running.next().await {
            self.finish(&done, answer);
        }
        if let Some(problem) = stop.problem() {
            answer.push(&result(self.next, &Err(problem)));
        }
        let read = answer.read().await;
        tracing::debug!(app = %self.app.id, ?stop, ?read, "an import has ended");
        read
    }

    /// Checks a line, and begins to store it.
    fn start(&mut self, line: Line) -> Running {
        let number = self.next;
        self.next += 1;
        match self.check(line) {
            Ok(line) => {
                let claims = line.claims();
                let turn = self.turns.line_up(number, &claims);
                let storing = store(Arc::clone(&self.api), Arc::clone(&self.app), line, turn);
                Running {
                    number,
                    claims,
                    outcome: Ok(tokio::spawn(storing)),
                }
            }
            Err(problem) => Running {
                number,
                claims: Vec::new(),
                outcome: Err(problem),
            },
        }
    }

    fn check(&self, line: Line) -> Result<CheckedLine, Problem> {
        let Line::Text(text) = line else {
            let rule = format_args!("must be at most {LINE_MAX_BYTES} bytes");
            return Err(Invalid::new("body", rule).into());
        };
        let line = parse(&text)?;
        Ok(line.check(&self.api.homes, &self.app)?)
    }

    fn finish(&mut self, done: &Done, answer: &Answer) {
        self.turns.forget(done.number, &done.claims);
        answer.push(&result(done.number, &done.outcome));
    }
}

/// Reads a line. One that is no JSON breaks a rule like any other: the request as a whole is well formed.
fn parse(text: &Bytes) -> Result<ImportLine, Problem> {
    json::parse(text).map_err(|unread| match unread {
        Unread::Malformed(_) => Invalid::new("body", "must be one JSON document on a line").into(),
        unread => unread.into(),
    })
}

/// Stores a line when its turn has come.
async fn store(api: Arc<Api>, app: Arc<App>, line: CheckedLine, mut turn: Turn) -> Outcome {
    let within = api.limits.request_timeout();
    let storing = async {
        turn.come().await;
        line.store(&api.homes, &app, within).await
    };
    match timeout(within, Box::pin(storing)).await {
        Ok(stored) => stored.map_err(Problem::from),
        Err(_) => Err(Problem::new(
            TIMEOUT,
            "Something may have been stored. Repeating the same line is safe.",
        )),
    }
}

fn result(line: u64, outcome: &Outcome) -> Vec<u8> {
    let (status, problem) = match outcome {
        Ok(true) => (201, None),
        Ok(false) => (200, None),
        Err(problem) => (problem.kind().status.as_u16(), Some(problem.document(None, None))),
    };
    let result = ImportResult { line, status, problem };
    serde_json::to_vec(&result).expect("a result always serializes")
}

impl Running {
    async fn end(self) -> Done {
        let outcome = match self.outcome {
            Ok(storing) => storing.await.unwrap_or_else(|_| {
                let detail = "The line was given up. Repeating it is safe.";
                Err(Problem::new(TIMEOUT, detail))
            }),
            Err(problem) => Err(problem),
        };
        Done {
            number: self.number,
            claims: self.claims,
            outcome,
        }
    }
}

impl Stop {
    /// The result of the line that is not taken any more, for a caller who still reads.
    fn problem(self) -> Option<Problem> {
        let why = match self {
            Self::Body(End::Complete | End::Broken) | Self::Unread => return None,
            Self::Body(End::TooLarge) => return Some(beyond_limit()),
            Self::Body(End::Slow) => "The body arrives too slowly.",
            Self::Late => "The import has lasted for ten minutes.",
            Self::Finishing => "The gateway is shutting down.",
        };
        let detail = format!("{why} Send the rest, from this line on, in another request.");
        Some(Problem::new(TIMEOUT, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_strictly_as_a_request_and_quotes_nothing() {
        for (line, code, field) in [
            ("", "validation_failed", "body"),
            ("5551234", "validation_failed", "body"),
            ("{\"recipient_id\":\"5551234\"", "validation_failed", "body"),
            ("{\"recipient_id\":\"a\"} {}", "validation_failed", "body"),
            ("\u{0}5551234", "validation_failed", "body"),
            ("{}", "validation_failed", "recipient_id"),
            (r#"{"recipient_id":"a b"}"#, "validation_failed", "recipient_id"),
            (
                r#"{"recipient_id":"a","recipient_id":"5551234"}"#,
                "validation_failed",
                "recipient_id",
            ),
            (r#"{"recipient_id":"a","adresses":[]}"#, "validation_failed", "adresses"),
            (
                r#"{"recipient_id":"a","addresses":[{"token":5551234}]}"#,
                "validation_failed",
                "addresses[0].token",
            ),
            (
                r#"{"recipient_id":"a","recipient":{"attributes":{}}}"#,
                "not_built",
                "recipient.attributes",
            ),
            (
                r#"{"recipient_id":"a","addresses":[{"type":"fcm","token":"5551234","locale":"de"}]}"#,
                "not_built",
                "addresses[0].locale",
            ),
            (
                r#"{"recipient_id":"a","topics":["A"]}"#,
                "validation_failed",
                "topics[0]",
            ),
        ] {
            let problem = parse(&Bytes::from(line)).unwrap_err();
            assert_eq!((problem.kind().code, problem.fields()), (code, vec![field]), "{line}");
            let text = String::from_utf8(result(7, &Err(problem))).unwrap();
            assert!(text.starts_with(r#"{"line":7,"status":422,"problem":{"#), "{text}");
            assert!(!text.contains("5551234"), "{text}");
        }
        assert!(parse(&Bytes::from_static(b"\xff\xfe")).is_err());
        assert_eq!(result(1, &Ok(true)), br#"{"line":1,"status":201}"#);
    }
}
