//! `/u/{token}`: the link to unsubscribe that a mail has (RFC 8058). Mail programs and people follow it.

use std::sync::Arc;

use axum::{
    extract::{Path, Request, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use maud::html;
use shared::{app::App, id::Region, policy::category::CategoryKind, reference::Unsubscription};

use super::{Refusal, UNKNOWN, check_residency, enter, form, page, title_of};
use crate::{
    doors::http::{api::Api, problem::Problem},
    records::feedback::NotKept,
};

/// Most bytes of the form that a mail program posts.
const FORM_BYTES_MAX: usize = 4096;

/// What the form says (RFC 8058 §3.1).
const ONE_CLICK: &[u8] = b"One-Click";

/// What each page of this link is called.
const TITLE: &str = "Unsubscribe";

/// A link that this mesh made.
struct Link {
    app: Arc<App>,
    unsubscription: Unsubscription,
    /// The region of the delivery.
    home: Region,
}

/// Shows a page with a button. Nothing changes: scanners follow links.
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    token: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    let _place = enter(&api)?;
    let link = Link::open(&api, token)?;
    if link.is_critical() {
        return Ok(link.kept());
    }
    let content = html! {
        @match &link.unsubscription.category {
            Some(category) => p { "Unsubscribe from mails of the kind " b { (title_of(&link.app, category)) } "?" },
            None => p { "Unsubscribe from all mails of this sender?" },
        }
        form method="post" {
            input type="hidden" name="List-Unsubscribe" value="One-Click";
            button { (TITLE) }
        }
    };
    Ok(page(Some(&link.app), TITLE, &content))
}

/// Unsubscribes at once.
pub(super) async fn unsubscribe(
    State(api): State<Arc<Api>>,
    token: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Refusal> {
    let _place = enter(&api)?;
    let link = Link::open(&api, token)?;
    let form = form(request, FORM_BYTES_MAX).await?;
    // A form of either kind that RFC 8058 permits has these bytes.
    if !form.windows(ONE_CLICK.len()).any(|window| window == ONE_CLICK) {
        let asked = page(Some(&link.app), TITLE, &html! { p { "Press the button." } });
        return Ok((StatusCode::BAD_REQUEST, asked).into_response());
    }
    if link.is_critical() {
        return Ok(link.kept());
    }
    let Link {
        app,
        unsubscription,
        home,
    } = link;
    match api.feedback.unsubscribe(&app.id, &home, unsubscription).await {
        Ok(()) => Ok(page(Some(&app), TITLE, &html! { p { "You are unsubscribed." } })),
        Err(NotKept::NotStored(error)) => Err(Problem::from(error).into()),
        Err(NotKept::Unknown) => Err(UNKNOWN),
    }
}

impl Link {
    fn open(api: &Api, token: Result<Path<String>, PathRejection>) -> Result<Self, Refusal> {
        let Ok(Path(token)) = token else {
            return Err(UNKNOWN);
        };
        let tenants = api.context.config.tenants();
        let ids = api.context.config.id_key();
        let opened = Unsubscription::open(&ids, tenants.regions.keys(), &token);
        let (app, unsubscription, home) = opened.ok_or(UNKNOWN)?;
        let app = tenants.apps.get(&app).cloned().ok_or(UNKNOWN)?;
        check_residency(api, &app)?;
        Ok(Self {
            app,
            unsubscription,
            home: home.clone(),
        })
    }

    /// Whether it is from before its category became critical: what is critical has no such link.
    fn is_critical(&self) -> bool {
        self.app.kind(self.unsubscription.category.as_ref()) == CategoryKind::Critical
    }

    /// Nothing is stored.
    fn kept(&self) -> Response {
        let text = "Mails of this kind are needed to use the service. They cannot be unsubscribed from.";
        page(Some(&self.app), TITLE, &html! { p { (text) } })
    }
}
