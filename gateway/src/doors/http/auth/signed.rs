//! Requests that are signed with the secret of an API key, which then never travels:
//!
//! `Authorization: Peal-HMAC-SHA256 key=…, time=…, nonce=…, signature=…`
//!
//! The signature covers the body, so a layer reads and checks it before any handler runs. What follows from it is as with a key
//! that is sent: see [`super`].

use std::{fmt::Write, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderValue, Method, header};
use jiff::{SignedDuration, Timestamp};
use shared::api_key::ApiKey;

use super::unknown;
use crate::doors::{
    http::{api::Api, body},
    problem::{OVERLOADED, Problem, UNAUTHENTICATED},
};

/// The name of the scheme in the header.
const SCHEME: &str = "Peal-HMAC-SHA256";

/// How far the time of a signature may lie from this gateway's, either way.
const TIME_MAY_DIFFER: SignedDuration = SignedDuration::from_secs(300);

/// A request whose signature is right. Its nonce is not taken yet.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    /// The key that signed it.
    pub(super) key: Arc<ApiKey>,
    /// What makes it differ from all others of the key.
    pub(super) nonce: String,
}

/// The parameters of the header.
#[derive(Debug, PartialEq, Eq)]
struct Parameters {
    key_id: String,
    time: i64,
    nonce: String,
    signature: Vec<u8>,
}

impl Parameters {
    /// Reads the value of the header `Authorization`; `None` if it has another scheme.
    fn of(value: &HeaderValue) -> Option<Result<Self, Problem>> {
        let (scheme, parameters) = value.to_str().ok()?.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case(SCHEME)
            .then(|| Self::parse(parameters).ok_or_else(malformed))
    }

    /// Reads the four parameters, each once and in any order.
    fn parse(text: &str) -> Option<Self> {
        let (mut key_id, mut time, mut nonce, mut signature) = (None, None, None, None);
        for parameter in text.split(',') {
            let (name, value) = parameter.trim().split_once('=')?;
            let former = match name {
                "key" => key_id.replace(value.to_owned()).is_some(),
                "time" => time.replace(value.parse().ok()?).is_some(),
                "nonce" => nonce.replace(value.to_owned()).is_some(),
                "signature" => signature
                    .replace(URL_SAFE_NO_PAD.decode(value.trim_end_matches('=')).ok()?)
                    .is_some(),
                _ => true,
            };
            if former {
                return None;
            }
        }
        let is_of_nonces = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        Some(Self {
            key_id: key_id?,
            time: time?,
            nonce: nonce.filter(|text| (16..=64).contains(&text.len()) && text.bytes().all(is_of_nonces))?,
            signature: signature?,
        })
    }

    /// What is signed.
    fn message(&self, method: &Method, path_and_query: &str, body: &[u8]) -> String {
        let mut message = format!("peal1\n{method}\n{path_and_query}\n{}\n{}\n", self.time, self.nonce);
        for byte in digest(&SHA256, body).as_ref() {
            write!(message, "{byte:02x}").expect("writing to a string succeeds");
        }
        message
    }

    /// Whether the time of the signature is near `now`.
    fn is_timely(&self, now: Timestamp) -> bool {
        Timestamp::from_second(self.time).is_ok_and(|time| now.duration_since(time).abs() <= TIME_MAY_DIFFER)
    }
}

/// Checks the signature of a request, if it is signed.
pub(in crate::doors::http) async fn check(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let parameters = request.headers().get(header::AUTHORIZATION).and_then(Parameters::of);
    let checked = match parameters {
        None => Ok(request),
        Some(Ok(parameters)) => checked(&api, parameters, request).await,
        Some(Err(problem)) => Err(problem),
    };
    match checked {
        Ok(request) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn checked(api: &Api, parameters: Parameters, request: Request) -> Result<Request, Problem> {
    let context = &api.context;
    let key = context.config.tenants().keys.get(&parameters.key_id).cloned();
    let key = key
        .filter(|key| key.signing() && key.is_live(context.clock.now()))
        .ok_or_else(unknown)?;
    // Whoever knows the id of a key can have a body read; they take no place of a caller who has proved more.
    let _place = api
        .unproven
        .try_acquire()
        .map_err(|_| Problem::new(OVERLOADED, "Repeat after the time in Retry-After."))?;
    let (mut parts, body) = request.into_parts();
    let body = body::collect(body, api.limits.body_bytes).await?;
    let path_and_query = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let message = parameters.message(&parts.method, path_and_query, &body);
    if !key.has_signed(&context.mesh_key, message.as_bytes(), &parameters.signature) {
        return Err(unknown());
    }
    if !parameters.is_timely(context.clock.now()) {
        let detail = "The signature is right, but its time is more than 300 s from this gateway's.";
        return Err(Problem::new(UNAUTHENTICATED, detail));
    }
    let nonce = parameters.nonce;
    parts.extensions.insert(Signed { key, nonce });
    Ok(Request::from_parts(parts, Body::from(body)))
}

fn malformed() -> Problem {
    let detail =
        "The header Authorization needs key, time, nonce (16 to 64 of A-Z a-z 0-9 - _) and signature, each once.";
    Problem::new(UNAUTHENTICATED, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "AAAAAAAAAAAAAAAA";

    #[test]
    fn a_header_has_each_parameter_once() {
        let parse = Parameters::parse;
        let read = parse(&format!("key=k, time=7,nonce={NONCE},  signature=AQI=")).unwrap();
        assert_eq!(
            read,
            parse(&format!("signature=AQI,time=7,nonce={NONCE},key=k")).unwrap()
        );
        assert_eq!((read.time, read.signature.as_slice()), (7, &[1, 2][..]));
        let long = "A".repeat(65);
        for bad in [
            String::new(),
            format!("key=k, time=7, nonce={NONCE}"),
            format!("key=k, time=7, nonce={NONCE}, signature=AQI, key=k"),
            format!("key=k, time=7, nonce={NONCE}, signature=AQI, realm=x"),
            format!("key=k, time=7.5, nonce={NONCE}, signature=AQI"),
            format!("key=k, time=7, nonce={NONCE}, signature=*"),
            format!("key=k, time=7, nonce={}, signature=AQI", &NONCE[1..]),
            format!("key=k, time=7, nonce={long}, signature=AQI"),
            format!("key=k, time=7, nonce={NONCE}.., signature=AQI"),
        ] {
            assert_eq!(parse(&bad), None, "{bad}");
        }
        let of = |text: &'static str| Parameters::of(&HeaderValue::from_static(text));
        assert!(of("Bearer peal_x").is_none() && of("peal-hmac-sha256 x").unwrap().is_err());
    }

    #[test]
    fn a_signature_is_timely_for_five_minutes_either_way() {
        let parameters = Parameters::parse(&format!("key=k, time=1000, nonce={NONCE}, signature=AQI")).unwrap();
        let at = |second| parameters.is_timely(Timestamp::from_second(second).unwrap());
        assert!(at(700) && at(1300) && !at(699) && !at(1301));
        let far = Parameters {
            time: i64::MAX,
            ..parameters
        };
        assert!(!far.is_timely(Timestamp::UNIX_EPOCH));
    }
}
