//! `/v1/callbacks/{provider}/{app}`: what providers report about messages after they took them.
//!
//! Any gateway of any region takes a report. Each file beside this one checks the signatures of one reporter, by its rules, and
//! reads what it says; who may say it is decided by the reference that the message carried.

mod form;
mod mailchimp;
mod sendgrid;
mod smtp;
mod sns;
mod twilio;
mod vonage;

use std::{io, sync::Arc};

use axum::{
    body::to_bytes,
    extract::{Path, Request, State, rejection::PathRejection},
};
use http::{HeaderMap, StatusCode, Uri};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use shared::{
    app::App,
    feedback::Report,
    id::AppId,
    invalid::Invalid,
    provider::{Credential, Provider},
};
use tokio::{sync::Semaphore, time::timeout};

use self::sns::Certificates;
pub use self::sns::Settings;
use super::{
    api::Api,
    body::BODY_ARRIVES_WITHIN,
    openapi,
    problem::{
        BODY_TIMEOUT, Document, INVALID, NOT_FOUND, OVERLOADED, Problem, RESIDES_ELSEWHERE, TIMEOUT, TOO_LARGE,
        UNAUTHENTICATED,
    },
};
use crate::records::feedback::NotKept;

/// Most bytes of a callback. `SendGrid` sends up to 768 kB of events at once.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Callbacks in progress at one time, at most. Nobody needs a key to have one read.
const AT_ONCE_MAX: usize = 64;

/// How old a signature may be. SNS repeats a message for up to an hour, under the time at which it was published.
const SIGNED_WITHIN: SignedDuration = SignedDuration::from_hours(1);

/// How far ahead a reporter's clock may be.
const AHEAD_MAX: SignedDuration = SignedDuration::from_mins(5);

/// A callback as it came.
#[derive(Debug, Clone, Copy)]
struct Callback<'a> {
    /// The URL under which the reporter knows this resource.
    url: &'a str,
    query: &'a str,
    headers: &'a HeaderMap,
    body: &'a [u8],
    now: Timestamp,
}

impl Callback<'_> {
    /// The text of a header; empty if there is none.
    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    }

    /// Refuses what was signed too long ago, or in the future.
    fn check_time(&self, signed_at: Timestamp) -> Result<(), Refused> {
        let age = self.now.duration_since(signed_at);
        if age > SIGNED_WITHIN || age < -AHEAD_MAX {
            Err(Refused::Stale)
        } else {
            Ok(())
        }
    }

    /// `at`, but not in the future.
    fn past(&self, at: Timestamp) -> Timestamp {
        at.min(self.now)
    }
}

/// Why a callback is not taken.
#[derive(Debug)]
enum Refused {
    /// The app has no key for this reporter.
    NoKey,
    /// The signature is missing or another.
    Unsigned,
    /// It was signed too long ago.
    Stale,
    /// It is of another form.
    Malformed(Invalid),
    /// What verifies it could not be fetched.
    Unreachable,
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoKey => unknown(),
            Refused::Unsigned => Self::new(UNAUTHENTICATED, "The provider's signature is missing or does not fit."),
            Refused::Stale => Self::new(
                UNAUTHENTICATED,
                "The provider's signature is too old or lies in the future.",
            ),
            Refused::Malformed(invalid) => Self::from(invalid),
            Refused::Unreachable => Self::new(TIMEOUT, "The provider does not answer. Nothing was stored."),
        }
    }
}

fn malformed(field: &str, rule: &str) -> Refused {
    Refused::Malformed(Invalid::new(field, rule))
}

/// One answer, so that nobody learns which apps there are and what they use.
fn unknown() -> Problem {
    Problem::new(
        NOT_FOUND,
        "There is no such app, or it has no key that verifies this provider's callbacks.",
    )
}

/// Who reports.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reporter {
    Sendgrid,
    Mailchimp,
    Twilio,
    Vonage,
    /// Amazon SES, behind an app's mail server.
    Sns,
    /// `peal bounce`, which reads the mails that mail servers send back.
    Smtp,
}

impl Reporter {
    /// The provider whose credential verifies the report, and that carried the message.
    const fn provider(self) -> Provider {
        match self {
            Self::Sendgrid => Provider::SendGrid,
            Self::Mailchimp => Provider::Mailchimp,
            Self::Twilio => Provider::Twilio,
            Self::Vonage => Provider::Vonage,
            Self::Sns | Self::Smtp => Provider::Smtp,
        }
    }
}

/// Report what became of messages
///
/// For providers, with their own signatures and in their own formats; each gateway of each region takes them. 204 means that
/// everything that the callback says about messages of this app is stored. Reports of anything else, such as mails that were not
/// sent by Peal, are ignored. Repeating is safe.
#[utoipa::path(
    post,
    path = "/v1/callbacks/{provider}/{app}",
    operation_id = "postCallback",
    tag = "operations",
    params(
        ("provider" = String, Path, description = "`sendgrid`, `mailchimp`, `twilio`, `vonage`, `sns` or `smtp`"),
        ("app" = String, Path, description = "The id of the app"),
    ),
    responses(
        (status = 204, description = "It is stored"),
        openapi::AnyRefusal,
        (status = 503, description = "It is not known to be stored; repeat it", body = Document,
            content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn post(
    State(api): State<Arc<Api>>,
    path: Result<Path<(Reporter, AppId)>, PathRejection>,
    request: Request,
) -> Result<StatusCode, Problem> {
    let Ok(Path((reporter, app))) = path else {
        return Err(unknown());
    };
    let place = Arc::clone(&api.callbacks.places).try_acquire_owned();
    let _place = place.map_err(|_| Problem::new(OVERLOADED, "Repeat after the time in Retry-After."))?;
    let context = &api.context;
    let app = context.config.tenants().apps.get(&app).cloned().ok_or_else(unknown)?;
    if let Some(residency) = app.residency.as_ref().filter(|region| **region != context.here) {
        let detail = format!("The data of this app stays in {residency}. Have callbacks sent to a gateway there.");
        return Err(Problem::new(RESIDES_ELSEWHERE, detail));
    }
    let provider = reporter.provider();
    let credential = app.credential(&context.mesh_key, provider).ok().flatten();
    let credential = credential.ok_or_else(unknown)?;
    let (parts, body) = request.into_parts();
    let body = timeout(BODY_ARRIVES_WITHIN, to_bytes(body, BODY_BYTES_MAX))
        .await
        .map_err(|_| Problem::new(BODY_TIMEOUT, "The body must arrive within 5 seconds."))?
        .map_err(|_| Problem::new(TOO_LARGE, format!("The body may have at most {BODY_BYTES_MAX} bytes.")))?;
    let url = public_url(&api, &parts.uri);
    let callback = Callback {
        url: url.as_deref().unwrap_or_default(),
        query: parts.uri.query().unwrap_or_default(),
        headers: &parts.headers,
        body: &body,
        now: context.clock.now(),
    };
    let reports = match (reporter, &credential) {
        (Reporter::Sendgrid, Credential::SendGrid(credential)) => sendgrid::read(&callback, credential)?,
        (Reporter::Mailchimp, Credential::Mailchimp(credential)) => mailchimp::read(&callback, credential)?,
        (Reporter::Twilio, Credential::Twilio(credential)) => twilio::read(&callback, credential)?,
        (Reporter::Vonage, Credential::Vonage(credential)) => vonage::read(&callback, credential)?,
        (Reporter::Sns, Credential::Smtp(credential)) => {
            sns::read(&callback, credential, &api.callbacks.certificates).await?
        }
        (Reporter::Smtp, Credential::Smtp(_)) => smtp::read(&callback)?,
        _ => return Err(unknown()),
    };
    keep(&api, &app, provider, reports).await
}

async fn keep(api: &Api, app: &App, provider: Provider, reports: Vec<Report>) -> Result<StatusCode, Problem> {
    match api.feedback.keep(&app.id, Some(provider), reports).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(NotKept::Unknown) => Err(Problem::of_field(
            INVALID,
            Invalid::new("reference", "must be one that a message of this app carried"),
        )),
        Err(NotKept::NotStored(error)) => Err(error.into()),
    }
}

/// The URL that a reporter signed: that of the request, below the one under which gateways are known outside.
fn public_url(api: &Api, uri: &Uri) -> Option<String> {
    let base = api.public_url.as_ref()?;
    let path = uri.path_and_query().map(http::uri::PathAndQuery::as_str)?;
    Some(format!("{}{path}", base.as_str()))
}

/// What callbacks share.
#[derive(Debug)]
pub(crate) struct Callbacks {
    /// As many permits as callbacks may be in progress.
    places: Arc<Semaphore>,
    certificates: Certificates,
}

impl Callbacks {
    /// # Errors
    /// When a file cannot be read, or the HTTP client cannot be built.
    pub(crate) fn new(settings: &Settings) -> Result<Self, io::Error> {
        Ok(Self {
            places: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            certificates: Certificates::new(settings)?,
        })
    }
}

/// A JSON document of a reporter.
fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Refused> {
    let mut document = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut document).map_err(|error| Refused::Malformed(Invalid::of_json(&error)))
}

/// Seconds since 1970 as a time.
fn seconds(text: &str) -> Option<Timestamp> {
    Timestamp::from_second(text.parse().ok()?).ok()
}

#[cfg(test)]
mod testing {
    use super::*;

    /// Noon of a day.
    pub(super) const NOW_S: i64 = 1_764_158_400;

    /// Where the tests' gateways are known.
    pub(super) const URL: &str = "https://peal.example.com/v1/callbacks/any/shop";

    /// Reads a callback with these headers.
    pub(super) fn callback<T>(
        headers: &[(&'static str, &str)],
        body: &[u8],
        read: impl FnOnce(&Callback<'_>) -> T,
    ) -> T {
        callback_at(URL, headers, body, read)
    }

    pub(super) fn callback_at<T>(
        url: &str,
        headers: &[(&'static str, &str)],
        body: &[u8],
        read: impl FnOnce(&Callback<'_>) -> T,
    ) -> T {
        let headers = headers.iter().map(|(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, http::HeaderValue::try_from(*value).unwrap())
        });
        read(&Callback {
            url,
            query: url.split_once('?').map_or("", |(_, query)| query),
            headers: &headers.collect(),
            body,
            now: Timestamp::from_second(NOW_S).unwrap(),
        })
    }
}
