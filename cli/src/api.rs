//! The client of the gateway's HTTP API.

use std::{fmt, time::Duration};

use clap::Args;
use reqwest::{
    Method, RequestBuilder,
    header::{CONTENT_TYPE, ETAG, IF_MATCH},
};
use serde::Deserialize;
use serde_json::Value;

use super::Failure;

/// Longer than the time after which a gateway gives up a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The gateway and an API key.
#[derive(Args)]
pub(super) struct ApiArgs {
    /// The base URL of the gateway, such as `https://peal.example`.
    #[arg(long, value_name = "URL", env = "PEAL_URL")]
    url: String,
    /// An API key. Prefer the environment variable: other users of the machine can see a command line.
    #[arg(long, env = "PEAL_KEY", hide_env_values = true)]
    key: String,
}

/// The gateway and an API key, for a command that also works without.
#[derive(Args)]
pub(super) struct OptionalApiArgs {
    /// The base URL of the gateway, such as `https://peal.example`.
    #[arg(long, value_name = "URL", env = "PEAL_URL")]
    url: Option<String>,
    /// An API key. Prefer the environment variable: other users of the machine can see a command line.
    #[arg(long, env = "PEAL_KEY", hide_env_values = true)]
    key: Option<String>,
}

impl OptionalApiArgs {
    /// Both, if both are given.
    pub(super) fn given(self) -> Option<ApiArgs> {
        Some(ApiArgs {
            url: self.url?,
            key: self.key?,
        })
    }
}

impl fmt::Debug for OptionalApiArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OptionalApiArgs")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ApiArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiArgs")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// A client of one gateway.
pub(super) struct Api {
    http: reqwest::Client,
    args: ApiArgs,
}

impl ApiArgs {
    pub(super) fn open(self) -> Result<Api, Failure> {
        let http = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .build()
            .map_err(http)?;
        Ok(Api { http, args: self })
    }
}

impl Api {
    /// Sends a request. Returns the body of the answer, or null if it has none.
    pub(super) async fn request(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let (_, body) = self.versioned(method, path, query, body, None).await?;
        Ok(body)
    }

    /// Sends a request about something that has versions; with `version`, only if it has that one. Returns its version (the header
    /// `ETag`) too.
    pub(super) async fn versioned(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
        version: Option<&str>,
    ) -> Result<(Option<String>, Value), Failure> {
        let mut request = self.begin(method, path, query)?;
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(version) = version {
            request = request.header(IF_MATCH, version);
        }
        let answer = request.send().await.map_err(http)?;
        let status = answer.status().as_u16();
        let version = answer.headers().get(ETAG).and_then(|version| version.to_str().ok());
        let version = version.map(str::to_owned);
        let body = answer.bytes().await.map_err(http)?;
        Ok((version, read(status, &body)?))
    }

    /// Sends lines of NDJSON, and returns the answer as it comes.
    pub(super) async fn import(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: Vec<u8>,
        within: Duration,
    ) -> Result<Pieces, Failure> {
        let request = self.begin(Method::POST, path, query)?.timeout(within);
        pieces(request.header(CONTENT_TYPE, "application/x-ndjson").body(body)).await
    }

    /// Asks for lines of NDJSON, and returns the answer as it comes.
    pub(super) async fn export(
        &self,
        path: &str,
        query: &[(&str, String)],
        within: Duration,
    ) -> Result<Pieces, Failure> {
        pieces(self.begin(Method::GET, path, query)?.timeout(within)).await
    }

    fn begin(&self, method: Method, path: &str, query: &[(&str, String)]) -> Result<RequestBuilder, Failure> {
        let url = format!("{}{path}", self.args.url.trim_end_matches('/'));
        let mut url = reqwest::Url::parse(&url).map_err(|error| Failure::Arguments(format!("--url: {error}")))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(self.http.request(method, url).bearer_auth(&self.args.key))
    }
}

/// The answer to a request, as it comes.
async fn pieces(request: RequestBuilder) -> Result<Pieces, Failure> {
    let answer = request.send().await.map_err(http)?;
    let status = answer.status().as_u16();
    if status == 200 {
        return Ok(Pieces(answer));
    }
    let body = answer.bytes().await.map_err(http)?;
    read(status, &body)?;
    Err(Failure::Http(format!("the gateway answers with the status {status}")))
}

/// The body of an answer, piece by piece.
pub(super) struct Pieces(reqwest::Response);

impl Pieces {
    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<impl AsRef<[u8]> + use<>>, Failure> {
        self.0.chunk().await.map_err(http)
    }
}

/// The body of an answer, or null if it has none.
///
/// # Errors
/// When the answer is a problem, or no JSON.
pub(super) fn read(status: u16, body: &[u8]) -> Result<Value, Failure> {
    if (200..300).contains(&status) {
        if body.is_empty() {
            return Ok(Value::Null);
        }
        return serde_json::from_slice(body).map_err(|_| Failure::Http("the answer is not JSON".to_owned()));
    }
    let problem = serde_json::from_slice(body).unwrap_or_default();
    Err(Failure::Refused(Refusal { status, problem }.into()))
}

/// The problem document with which the gateway refused a request (RFC 9457).
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    problem: Problem,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
    code: Option<String>,
    errors: Vec<Broken>,
    event_id: Option<String>,
    request_id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Broken {
    field: String,
    rule: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problem = &self.problem;
        let title = problem.title.as_deref().unwrap_or("the gateway refused the request");
        write!(f, "{title} ({}", self.status)?;
        if let Some(code) = &problem.code {
            write!(f, " {code}")?;
        }
        write!(f, ")")?;
        if let Some(detail) = &problem.detail {
            write!(f, "\n  {detail}")?;
        }
        for Broken { field, rule } in &problem.errors {
            let line = format!("{field}: {rule}");
            if problem.detail.as_ref() != Some(&line) {
                write!(f, "\n  {line}")?;
            }
        }
        for (name, value) in [("event id", &problem.event_id), ("request id", &problem.request_id)] {
            if let Some(value) = value {
                write!(f, "\n  {name} {value}")?;
            }
        }
        Ok(())
    }
}

/// The innermost cause of an error. The outer ones contain the URL, whose query is private.
#[expect(clippy::needless_pass_by_value, reason = "used where an error is mapped")]
fn http(error: reqwest::Error) -> Failure {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    Failure::Http(text)
}

/// A member of an answer as text; a dash if it is absent or null.
pub(super) fn text(value: &Value, member: &str) -> String {
    match value.get(member) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_the_whole_problem_and_debug_hides_the_key() {
        let problem = serde_json::from_str(
            r#"{"title":"A field breaks a rule","status":422,"detail":"push.title must be given","code":"validation_failed",
                "errors":[{"field":"push.title","rule":"must be given"}],"request_id":"r1","new":1}"#,
        )
        .unwrap();
        let text = Refusal { status: 422, problem }.to_string();
        for part in [
            "A field breaks a rule (422 validation_failed)",
            "push.title: must be given",
            "request id r1",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let args = ApiArgs {
            url: "http://g".into(),
            key: "secret".into(),
        };
        assert!(!format!("{args:?}").contains("secret"));
    }
}
