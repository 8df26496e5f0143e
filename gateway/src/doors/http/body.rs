//! The JSON body of a request.

use std::{error::Error, sync::Arc, time::Duration};

use axum::{
    body::{Bytes, to_bytes},
    extract::{FromRequest, Request},
};
use http::{HeaderMap, HeaderValue, header};
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;
use shared::invalid::Invalid;
use tokio::time::timeout;

use super::{
    api::{Api, Limits},
    problem::{BODY_TIMEOUT, MALFORMED, MEDIA_TYPE, Problem, TOO_LARGE},
};

/// A caller who takes longer for a body holds a place that others could have.
const BODY_ARRIVES_WITHIN: Duration = Duration::from_secs(5);

/// The body as `T`.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Problem> {
        parse(&read(request, &api.limits).await?).map(Self)
    }
}

/// The body as `T`, and as it came.
#[derive(Debug)]
pub(crate) struct Verbatim<T>(pub(crate) T, pub(crate) Bytes);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Verbatim<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Problem> {
        let bytes = read(request, &api.limits).await?;
        Ok(Self(parse(&bytes)?, bytes))
    }
}

async fn read(request: Request, limits: &Limits) -> Result<Bytes, Problem> {
    if !is_json(request.headers()) {
        return Err(Problem::new(
            MEDIA_TYPE,
            "Send the header Content-Type: application/json.",
        ));
    }
    let limit = limits.body_bytes;
    timeout(BODY_ARRIVES_WITHIN, to_bytes(request.into_body(), limit))
        .await
        .map_err(|_| Problem::new(BODY_TIMEOUT, "The body must arrive within 5 seconds."))?
        .map_err(|error| match error.source() {
            Some(error) if error.is::<LengthLimitError>() => {
                Problem::new(TOO_LARGE, format!("The body may have at most {limit} bytes."))
            }
            _ => Problem::new(MALFORMED, "The body could not be read to its end."),
        })
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(kind)) = headers.get(header::CONTENT_TYPE).map(HeaderValue::to_str) else {
        return false;
    };
    kind.split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .eq_ignore_ascii_case("application/json")
}

/// Reads a document. Keeping track of the path costs time, so a document is read without it first, and once more with
/// it only if something is wrong.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // serde would read a list as the members of an object in the order in which the code declares them.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Invalid::new("body", "must be an object").into());
    }
    let error = match serde_json::from_slice(bytes) {
        Ok(document) => return Ok(document),
        Err(error) => error,
    };
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Err(error) if error.inner().is_data() => Err(Invalid::of_json(&error).into()),
        _ => {
            let detail = format!(
                "The document is broken at line {} column {}.",
                error.line(),
                error.column()
            );
            Err(Problem::new(MALFORMED, detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doors::http::problem::INVALID;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Point {
        x: u8,
    }

    #[test]
    fn broken_json_and_broken_rules_are_told_apart() {
        assert_eq!(parse::<Point>(br#"{"x":1}"#).unwrap().x, 1);
        for (body, kind) in [
            (r#"{"x":1"#, MALFORMED),
            (r#"{"x":1}}"#, MALFORMED),
            ("", MALFORMED),
            (r#"{"x":"one"}"#, INVALID),
            (r#"{"x":1,"y":2}"#, INVALID),
            ("{}", INVALID),
            ("[1]", INVALID),
        ] {
            assert_eq!(parse::<Point>(body.as_bytes()).unwrap_err().kind(), kind, "{body}");
        }
    }
}
