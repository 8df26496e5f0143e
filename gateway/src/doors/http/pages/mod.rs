//! Pages for people, to which links in messages lead; not a part of the API. They need no script and no cookie: the token in a link is
//! the right to do what its page does. So a page loads nothing, and its address goes nowhere else.

mod preferences;
mod unsubscribe;

use std::sync::Arc;

use axum::{
    Router,
    body::{Bytes, to_bytes},
    extract::Request,
    response::{Html, IntoResponse, Response},
    routing::get,
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use shared::{app::App, id::Category};
use tokio::{sync::SemaphorePermit, time::timeout};
use uuid::Uuid;

use super::{
    api::Api,
    body::BODY_ARRIVES_WITHIN,
    problem::{NOT_FOUND, OVERLOADED, Problem, RESIDES_ELSEWHERE, STARTING, TOO_LARGE},
};

/// Where links to preferences lead, before the token.
pub(super) const PREFERENCES: &str = "/p/";

/// The routes of all pages.
pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/u/{token}", get(unsubscribe::show).post(unsubscribe::unsubscribe))
        .route(
            &format!("{PREFERENCES}{{token}}"),
            get(preferences::show).post(preferences::store),
        )
}

/// The headers of every page but the policy of its content.
const HEADERS: [(HeaderName, HeaderValue); 3] = [
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
];

/// Light and dark, wide and narrow. `--accent` is the app's colour.
const STYLE: &str = include_str!("style.css");

/// A page of an app; of none if the link leads to none.
fn page(app: Option<&App>, title: &str, content: &Markup) -> Response {
    let nonce = Uuid::new_v4().simple().to_string();
    let color = app.and_then(|app| app.page.color);
    let theme = color.map(|color| format!(":root{{--accent:{color};--on-accent:{}}}", color.of_text()));
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="robots" content="noindex";
                title { (title) }
                style nonce=(nonce) { (PreEscaped(STYLE)) @if let Some(theme) = theme { (PreEscaped(theme)) } }
            }
            body {
                main {
                    @if let Some(app) = app { p.app { (app.page.name.as_deref().unwrap_or(app.id.as_str())) } }
                    h1 { (title) }
                    (content)
                }
            }
        }
    };
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    (
        HEADERS,
        [(header::CONTENT_SECURITY_POLICY, policy)],
        Html(document.into_string()),
    )
        .into_response()
}

/// What a recipient reads as the name of a category.
fn title_of<'a>(app: &'a App, category: &'a Category) -> &'a str {
    let policy = app.categories.get(category);
    let title = policy.and_then(|policy| policy.title.as_deref());
    title.unwrap_or(category.as_str())
}

/// Why a link leads nowhere, as a page.
#[derive(Debug)]
struct Refusal(StatusCode, &'static str);

/// A link that was not made by this mesh for what it names. All are answered alike.
const UNKNOWN: Refusal = Refusal(StatusCode::NOT_FOUND, "This link is not complete, or not valid.");

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let kind = problem.kind();
        if kind == NOT_FOUND {
            return UNKNOWN;
        }
        let text = match kind.status {
            status if status.is_server_error() => "This does not work at the moment. Please try again in a minute.",
            StatusCode::MISDIRECTED_REQUEST => "This link leads to another region.",
            _ => "This was not understood. Please open the link again.",
        };
        Self(kind.status, text)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = page(None, "Sorry", &html! { p { (self.1) } });
        *response.status_mut() = self.0;
        response
    }
}

/// Checks that this gateway knows the apps, and takes a place among its requests. No key limits people who follow a link.
fn enter(api: &Api) -> Result<SemaphorePermit<'_>, Problem> {
    if !api.context.is_informed() {
        return Err(Problem::new(STARTING, ""));
    }
    api.permits.try_acquire().map_err(|_| Problem::new(OVERLOADED, ""))
}

/// Checks that the app's data may be here.
fn check_residency(api: &Api, app: &App) -> Result<(), Problem> {
    match &app.residency {
        Some(region) if *region != api.context.here => Err(Problem::new(RESIDES_ELSEWHERE, "")),
        _ => Ok(()),
    }
}

/// Reads the form that a page posts, of at most `limit` bytes.
async fn form(request: Request, limit: usize) -> Result<Bytes, Problem> {
    let body = timeout(BODY_ARRIVES_WITHIN, to_bytes(request.into_body(), limit)).await;
    let body = body.ok().and_then(Result::ok);
    body.ok_or_else(|| Problem::new(TOO_LARGE, ""))
}
