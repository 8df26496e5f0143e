//! `/u/{token}`: the link to unsubscribe that a mail has (RFC 8058). Not a part of the API: mail programs and people follow it.

use std::sync::Arc;

use axum::{
    body::to_bytes,
    extract::{Path, Request, State, rejection::PathRejection},
    response::{Html, IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use shared::{app::App, id::Region, reference::Unsubscription};
use tokio::time::timeout;

use super::{
    api::Api,
    body::BODY_ARRIVES_WITHIN,
    problem::{NOT_FOUND, Problem, RESIDES_ELSEWHERE, STARTING, TOO_LARGE},
};
use crate::records::feedback::NotKept;

/// Most bytes of the form that a mail program posts.
const FORM_BYTES_MAX: usize = 4096;

/// What the form says (RFC 8058 §3.1).
const ONE_CLICK: &[u8] = b"One-Click";

/// What each page is sent with: it runs nothing, loads nothing, and its address, which is a right, goes nowhere.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; form-action 'self'; frame-ancestors 'none'"),
    ),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
];

/// Shows a page with a button. Nothing changes: scanners follow links.
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    token: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let (_, unsubscription, _) = read(&api, token)?;
    let from = match unsubscription.category {
        // A category has no character that HTML knows.
        Some(category) => format!("mails of the kind <b>{category}</b>"),
        None => "all mails of this sender".to_owned(),
    };
    let form = "<form method=\"post\"><input type=\"hidden\" name=\"List-Unsubscribe\" value=\"One-Click\">\
        <button>Unsubscribe</button></form>";
    Ok(page(&format!("<p>Unsubscribe from {from}?</p>{form}")))
}

/// Unsubscribes at once.
pub(super) async fn unsubscribe(
    State(api): State<Arc<Api>>,
    token: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let (app, unsubscription, home) = read(&api, token)?;
    let form = timeout(BODY_ARRIVES_WITHIN, to_bytes(request.into_body(), FORM_BYTES_MAX)).await;
    let form = form.ok().and_then(Result::ok);
    let form = form.ok_or_else(|| Problem::new(TOO_LARGE, "The form did not arrive, or is too large."))?;
    // A form of either kind that RFC 8058 permits has these bytes.
    if !form.windows(ONE_CLICK.len()).any(|window| window == ONE_CLICK) {
        return Ok((
            StatusCode::BAD_REQUEST,
            HEADERS,
            Html(PAGE.replace("{}", "<p>Press the button.</p>")),
        )
            .into_response());
    }
    match api.feedback.unsubscribe(&app.id, &home, unsubscription).await {
        Ok(()) => Ok(page("<p>You are unsubscribed.</p>")),
        Err(NotKept::NotStored(error)) => Err(error.into()),
        Err(NotKept::Unknown) => Err(unknown()),
    }
}

/// The app, what its link permits, and the region of the delivery.
fn read(api: &Api, token: Result<Path<String>, PathRejection>) -> Result<(Arc<App>, Unsubscription, Region), Problem> {
    let context = &api.context;
    if !context.is_informed() {
        return Err(Problem::new(STARTING, "Repeat after the time in Retry-After."));
    }
    let Ok(Path(token)) = token else {
        return Err(unknown());
    };
    let tenants = context.config.tenants();
    let ids = context.config.id_key();
    let opened = Unsubscription::open(&ids, tenants.regions.keys(), &token);
    let (app, unsubscription, home) = opened.ok_or_else(unknown)?;
    let app = tenants.apps.get(&app).cloned().ok_or_else(unknown)?;
    if app.residency.as_ref().is_some_and(|region| *region != context.here) {
        return Err(Problem::new(
            RESIDES_ELSEWHERE,
            "The data of this app stays in another region.",
        ));
    }
    Ok((app, unsubscription, home.clone()))
}

fn unknown() -> Problem {
    Problem::new(NOT_FOUND, "This link is not complete, or not one of Peal's.")
}

const PAGE: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
    content=\"width=device-width\"><meta name=\"robots\" content=\"noindex\"><title>Unsubscribe</title>{}</html>";

fn page(content: &str) -> Response {
    (HEADERS, Html(PAGE.replace("{}", content))).into_response()
}
