//! Errors as RFC 9457 problem documents. A problem names fields and rules and never repeats a value.

use std::{borrow::Cow, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use shared::{
    id::EventId,
    invalid::Invalid,
    nats::{facts::NotRead, publish::NotStored},
};
use utoipa::ToSchema;

use super::seconds_up;
use crate::{
    intake::{accept::NotAccepted, budget::TooMany, request::Refused},
    json::Unread,
    recipients::{homes::NotChanged, register::NotRegistered},
};

/// What a problem document is sent as (RFC 9457 §6.1).
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// A kind of problem: its stable code, its status, and a title for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) code: &'static str,
    pub(crate) status: StatusCode,
    pub(crate) title: &'static str,
    /// Seconds after which repeating makes sense, for what passes by itself.
    retry_after: Option<u32>,
}

const fn kind(code: &'static str, status: StatusCode, title: &'static str, retry_after: Option<u32>) -> Kind {
    Kind {
        code,
        status,
        title,
        retry_after,
    }
}

pub(crate) const MALFORMED: Kind = kind(
    "malformed_json",
    StatusCode::BAD_REQUEST,
    "The body is not one JSON document",
    None,
);
pub(crate) const INVALID: Kind = kind(
    "validation_failed",
    StatusCode::UNPROCESSABLE_ENTITY,
    "A field breaks a rule",
    None,
);
pub(crate) const NOT_BUILT: Kind = kind(
    "not_built",
    StatusCode::UNPROCESSABLE_ENTITY,
    "This part of the contract is not built yet",
    None,
);
pub(crate) const CHANNEL_UNAVAILABLE: Kind = kind(
    "channel_unavailable",
    StatusCode::UNPROCESSABLE_ENTITY,
    "No provider carries this channel yet",
    None,
);
pub(crate) const UNAUTHENTICATED: Kind = kind(
    "unauthenticated",
    StatusCode::UNAUTHORIZED,
    "A valid API key is needed",
    None,
);
pub(crate) const REPLAYED: Kind = kind(
    "request_replayed",
    StatusCode::UNAUTHORIZED,
    "A signed request came twice",
    None,
);
pub(crate) const FORBIDDEN: Kind = kind("forbidden", StatusCode::FORBIDDEN, "The API key may not do this", None);
pub(crate) const APP_SUSPENDED: Kind = kind(
    "app_suspended",
    StatusCode::FORBIDDEN,
    "The operator suspended this app",
    None,
);
pub(crate) const VERSION_CONFLICT: Kind = kind(
    "version_conflict",
    StatusCode::PRECONDITION_FAILED,
    "Somebody else changed this meanwhile",
    None,
);
pub(crate) const ADMIN_UNREACHABLE: Kind = kind(
    "admin_unreachable",
    StatusCode::SERVICE_UNAVAILABLE,
    "The admin gateway does not answer",
    Some(5),
);
pub(crate) const NOT_FOUND: Kind = kind("not_found", StatusCode::NOT_FOUND, "There is no such thing", None);
pub(crate) const METHOD: Kind = kind(
    "method_not_allowed",
    StatusCode::METHOD_NOT_ALLOWED,
    "This resource has no such method",
    None,
);
pub(crate) const BODY_TIMEOUT: Kind = kind(
    "body_timeout",
    StatusCode::REQUEST_TIMEOUT,
    "The body did not arrive in time",
    None,
);
pub(crate) const KEY_IN_USE: Kind = kind(
    "idempotency_key_in_use",
    StatusCode::CONFLICT,
    "The first request with this key is still in progress",
    Some(1),
);
pub(crate) const KEY_REUSED: Kind = kind(
    "idempotency_key_reused",
    StatusCode::UNPROCESSABLE_ENTITY,
    "This key was used for another request",
    None,
);
pub(crate) const ALREADY_FIRED: Kind = kind(
    "already_fired",
    StatusCode::CONFLICT,
    "What was scheduled is in progress",
    None,
);
pub(crate) const LETTER_UNREADABLE: Kind = kind(
    "letter_unreadable",
    StatusCode::CONFLICT,
    "This dead letter cannot be replayed",
    None,
);
pub(crate) const LINKS_UNAVAILABLE: Kind = kind(
    "links_unavailable",
    StatusCode::CONFLICT,
    "Links to pages cannot be made",
    None,
);
pub(crate) const REGION_UNREACHABLE: Kind = kind(
    "region_unreachable",
    StatusCode::SERVICE_UNAVAILABLE,
    "The region of this does not answer",
    Some(5),
);
pub(crate) const TOO_LARGE: Kind = kind(
    "too_large",
    StatusCode::PAYLOAD_TOO_LARGE,
    "The body is too large",
    None,
);
pub(crate) const MEDIA_TYPE: Kind = kind(
    "unsupported_media_type",
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    "The body is of another media type",
    None,
);
pub(crate) const RESIDES_ELSEWHERE: Kind = kind(
    "resides_elsewhere",
    StatusCode::MISDIRECTED_REQUEST,
    "This app's data does not leave its region",
    None,
);
pub(crate) const OVERLOADED: Kind = kind(
    "overloaded",
    StatusCode::SERVICE_UNAVAILABLE,
    "Too many requests are in progress",
    Some(1),
);
pub(crate) const RATE_LIMITED: Kind = kind(
    "rate_limited",
    StatusCode::TOO_MANY_REQUESTS,
    "A quota is used up",
    Some(1),
);
pub(crate) const STARTING: Kind = kind(
    "starting",
    StatusCode::SERVICE_UNAVAILABLE,
    "The gateway has not read its configuration yet",
    Some(1),
);
pub(crate) const TIMEOUT: Kind = kind(
    "timeout",
    StatusCode::SERVICE_UNAVAILABLE,
    "The request was given up",
    Some(2),
);
pub(crate) const STREAM_FULL: Kind = kind(
    "stream_full",
    StatusCode::SERVICE_UNAVAILABLE,
    "The stream is full and refuses",
    Some(5),
);
pub(crate) const STREAM_UNAVAILABLE: Kind = kind(
    "stream_unavailable",
    StatusCode::SERVICE_UNAVAILABLE,
    "The stream did not say that it stored this",
    Some(2),
);
pub(crate) const NOT_PERMITTED: Kind = kind(
    "gateway_not_permitted",
    StatusCode::INTERNAL_SERVER_ERROR,
    "The gateway lacks a permission",
    None,
);
pub(crate) const REGION_UNAVAILABLE: Kind = kind(
    "region_unavailable",
    StatusCode::SERVICE_UNAVAILABLE,
    "A recipient's home is not part of this mesh",
    Some(30),
);
pub(crate) const HOME_UNREACHABLE: Kind = kind(
    "home_unreachable",
    StatusCode::SERVICE_UNAVAILABLE,
    "The recipient's home region does not answer",
    Some(5),
);
pub(crate) const STATUS_UNAVAILABLE: Kind = kind(
    "status_unavailable",
    StatusCode::SERVICE_UNAVAILABLE,
    "The receipts cannot be read",
    Some(2),
);

/// Every kind, for the documentation.
#[cfg(test)]
pub(crate) const KINDS: [Kind; 32] = [
    MALFORMED,
    INVALID,
    NOT_BUILT,
    CHANNEL_UNAVAILABLE,
    UNAUTHENTICATED,
    REPLAYED,
    FORBIDDEN,
    APP_SUSPENDED,
    VERSION_CONFLICT,
    ADMIN_UNREACHABLE,
    NOT_FOUND,
    METHOD,
    BODY_TIMEOUT,
    RESIDES_ELSEWHERE,
    KEY_IN_USE,
    KEY_REUSED,
    ALREADY_FIRED,
    LETTER_UNREADABLE,
    LINKS_UNAVAILABLE,
    REGION_UNREACHABLE,
    TOO_LARGE,
    MEDIA_TYPE,
    OVERLOADED,
    RATE_LIMITED,
    STARTING,
    TIMEOUT,
    STREAM_FULL,
    STREAM_UNAVAILABLE,
    NOT_PERMITTED,
    REGION_UNAVAILABLE,
    HOME_UNREACHABLE,
    STATUS_UNAVAILABLE,
];

/// The problem with a request. Its response has no body yet: the outermost layer adds the request id and writes it.
#[derive(Debug, Clone)]
pub(crate) struct Problem(Box<Parts>);

#[derive(Debug, Clone)]
struct Parts {
    kind: Kind,
    detail: Cow<'static, str>,
    errors: Vec<Invalid>,
    event_id: Option<EventId>,
    header: Option<(HeaderName, HeaderValue)>,
    quota_frees_after: Option<Duration>,
}

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Parts {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            event_id: None,
            header: None,
            quota_frees_after: None,
        }))
    }

    /// One field is at fault.
    pub(super) fn of_field(kind: Kind, invalid: Invalid) -> Self {
        let mut problem = Self::new(kind, invalid.to_string());
        problem.0.errors.push(invalid);
        problem
    }

    /// The caller's app is suspended.
    pub(super) fn suspended() -> Self {
        let detail = "Nothing was stored. What was accepted before waits until the operator resumes the app.";
        Self::new(APP_SUSPENDED, detail)
    }

    /// The NATS server refuses a permission that this gateway needs; the gateway's log names the subject.
    pub(crate) fn not_permitted() -> Self {
        Self::new(
            NOT_PERMITTED,
            "The NATS server refused this gateway; its operator must mend the permissions. Repeating the same request is safe.",
        )
    }

    /// The same problem with a more precise `detail`.
    pub(crate) fn with_detail(mut self, detail: String) -> Self {
        self.0.detail = detail.into();
        self
    }

    /// Adds the event id under which the request may safely be repeated.
    pub(crate) fn event(mut self, event: EventId) -> Self {
        self.0.event_id = Some(event);
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.header = Some((name, value));
        self
    }

    pub(crate) fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The fields at fault.
    #[cfg(test)]
    pub(super) fn fields(&self) -> Vec<&str> {
        self.0.errors.iter().map(|invalid| invalid.field.as_str()).collect()
    }

    /// The same problem, seen from outside of the member called `outer`.
    pub(super) fn within(mut self, outer: &str) -> Self {
        for invalid in &mut self.0.errors {
            *invalid = invalid.clone().within(outer);
        }
        if let Some(invalid) = self.0.errors.first() {
            self.0.detail = invalid.to_string().into();
        }
        self
    }

    /// Whether repeating the same request may help.
    pub(super) fn is_passing(&self) -> bool {
        let status = self.0.kind.status;
        status.is_server_error() || matches!(status, StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS)
    }

    /// When a used-up quota admits more, if that is the problem.
    pub(super) fn quota_frees_after(&self) -> Option<Duration> {
        self.0.quota_frees_after
    }

    /// What happened, for people.
    pub(super) fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The problem as a document. Without `request_id` it is about a part of a request.
    pub(super) fn document<'a>(&'a self, request_id: Option<&'a str>, trace_id: Option<&'a str>) -> Document<'a> {
        let Parts {
            kind,
            detail,
            errors,
            event_id,
            ..
        } = &*self.0;
        Document {
            kind: format!("urn:peal:problem:{}", kind.code),
            title: kind.title,
            status: kind.status.as_u16(),
            detail,
            code: kind.code,
            errors: errors
                .iter()
                .map(|invalid| Broken {
                    field: &invalid.field,
                    rule: &invalid.rule,
                })
                .collect(),
            event_id: event_id.as_ref().map(EventId::as_str),
            trace_id,
            request_id,
        }
    }

    /// The problem as the answer to the HTTP request called `request_id`.
    pub(super) fn render(self, request_id: &str, trace_id: Option<&str>) -> Response {
        let document = self.document(Some(request_id), trace_id);
        let body = serde_json::to_vec(&document).expect("a problem always serializes");
        let Parts { kind, header, .. } = *self.0;
        let json = HeaderValue::from_static(PROBLEM_JSON);
        let mut response = (kind.status, [(header::CONTENT_TYPE, json)], body).into_response();
        if let Some(seconds) = kind.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.0.kind.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        Self::of_field(INVALID, invalid)
    }
}

impl From<Unread> for Problem {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Malformed(where_broken) => Self::new(MALFORMED, where_broken),
            Unread::Invalid(invalid) => Self::of_field(INVALID, invalid),
            Unread::NotBuilt(invalid) => Self::of_field(NOT_BUILT, invalid),
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unread(unread) => unread.into(),
            Refused::TooLarge(limit) => Self::new(TOO_LARGE, format!("The body may have at most {limit} bytes.")),
            Refused::NotCarried(channel) => Self::new(
                CHANNEL_UNAVAILABLE,
                format!("The app has no credential for a provider that carries {channel}."),
            ),
        }
    }
}

impl From<NotAccepted> for Problem {
    fn from(refused: NotAccepted) -> Self {
        match refused {
            NotAccepted::Invalid(invalid) => invalid.into(),
            NotAccepted::NoSuchRegion(region) => Self::new(
                REGION_UNAVAILABLE,
                format!("A recipient's home is {region}, which is not a region of this mesh."),
            ),
            NotAccepted::TooMany(too_many) => too_many.into(),
            NotAccepted::NotStored { why, stored, jobs } => Self::from(why).with_detail(format!(
                "{stored} of {jobs} jobs are stored: {why}. Repeat with the same event id; no job is sent twice."
            )),
        }
    }
}

impl From<NotStored> for Problem {
    fn from(error: NotStored) -> Self {
        match error {
            NotStored::Full => Self::new(
                STREAM_FULL,
                "The stream is at its limit; repeating the same request is safe.",
            ),
            NotStored::TooLarge => Self::new(TOO_LARGE, "The message is larger than the server accepts."),
            NotStored::Forbidden => Self::not_permitted(),
            NotStored::NoStream | NotStored::NoAnswer | NotStored::Refused => Self::new(
                STREAM_UNAVAILABLE,
                format!("{error}; repeating the same request is safe."),
            ),
        }
    }
}

impl From<NotRead> for Problem {
    fn from(error: NotRead) -> Self {
        match error {
            NotRead::Forbidden => Self::not_permitted(),
            NotRead::NoAnswer | NotRead::Unreadable => Self::new(HOME_UNREACHABLE, error.to_string()),
        }
    }
}

impl From<TooMany> for Problem {
    fn from(TooMany { limit, retry_after }: TooMany) -> Self {
        let seconds = seconds_up(retry_after).max(1);
        let detail = format!("The quota {limit} is used up. Nothing was stored; repeat after {seconds} s.");
        let mut problem = Self::new(RATE_LIMITED, detail).header(header::RETRY_AFTER, seconds.into());
        problem.0.quota_frees_after = Some(retry_after);
        problem
    }
}

impl From<NotChanged> for Problem {
    fn from(error: NotChanged) -> Self {
        match error {
            NotChanged::Read(error) => error.into(),
            NotChanged::Write(error) => error.into(),
        }
    }
}

impl From<NotRegistered> for Problem {
    fn from(error: NotRegistered) -> Self {
        match error {
            NotRegistered::Invalid(invalid) => invalid.into(),
            NotRegistered::NotChanged(error) => error.into(),
            NotRegistered::Moving => Self::new(TIMEOUT, "The move is not complete. Repeat the request to continue it."),
        }
    }
}

/// An error (RFC 9457), sent as `application/problem+json`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct Document<'a> {
    /// A URI that names the kind of problem: `urn:peal:problem:` and the code.
    #[serde(rename = "type")]
    kind: String,
    /// The kind of problem, for people.
    title: &'a str,
    /// The status of the answer.
    status: u16,
    /// What happened this time, for people.
    detail: &'a str,
    /// The kind of problem, for programs. Stable.
    code: &'a str,
    /// The fields at fault.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Broken<'a>>,
    /// The event id under which the request may be repeated without sending anything twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<&'a str>,
    /// The trace, if this request was traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
    /// Names this request in the gateway's logs; also in the header `X-Request-Id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

/// One field that breaks one rule.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Broken<'a> {
    /// Where: a path such as `push.title` or `to.recipients[3]`.
    field: &'a str,
    /// The rule.
    rule: &'a str,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use shared::contract;

    use super::*;

    #[test]
    fn codes_are_distinct_and_the_contract_and_the_manual_list_them_all() {
        let manual = include_str!("../../README.md");
        let codes: HashSet<_> = KINDS.iter().map(|kind| kind.code).collect();
        assert_eq!(codes.len(), KINDS.len());
        let problems = &contract::page().section("problems").unwrap().rows;
        let built = problems.iter().filter(|row| row[3] == "built");
        let listed: HashSet<_> = built.map(|row| (row[0].trim_matches('`'), row[1])).collect();
        let known: Vec<_> = KINDS.iter().map(|kind| (kind.code, kind.status.as_str())).collect();
        assert_eq!(listed, known.iter().copied().collect());
        for kind in KINDS {
            let row = format!("| `{}` | {} |", kind.code, kind.status.as_u16());
            assert!(manual.contains(&row), "README.md lacks the row {row}");
        }
    }
}
