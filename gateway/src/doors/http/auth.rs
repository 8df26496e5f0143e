//! Authentication: an API key identifies one app and has scopes.

use std::{marker::PhantomData, sync::Arc};

use axum::extract::FromRequestParts;
use http::{HeaderValue, header, request};
use shared::{
    api_key::{Presented, Scope},
    app::App,
    id::RecipientId,
    recipient::RecipientKey,
};

use super::{
    api::Api,
    problem::{FORBIDDEN, Problem, RESIDES_ELSEWHERE, UNAUTHENTICATED},
};

/// The scope that a route requires.
pub(crate) trait Requires: Send + Sync + 'static {
    const SCOPE: Scope;
}

macro_rules! requires {
    ($($name:ident = $scope:ident),+ $(,)?) => {
        $(
            #[derive(Debug)]
            pub(crate) struct $name;
            impl Requires for $name {
                const SCOPE: Scope = Scope::$scope;
            }
        )+
    };
}

requires!(
    ToSend = Send,
    ToReadStatus = Status,
    ToWrite = RecipientsWrite,
    ToRead = RecipientsRead
);

/// The app that makes the request, known only from its API key. A handler that takes `Caller<ToSend>` can only be
/// reached with a key of that scope.
#[derive(Debug)]
pub(crate) struct Caller<R> {
    pub(crate) app: Arc<App>,
    scopes: Vec<Scope>,
    requires: PhantomData<R>,
}

impl<R: Requires> FromRequestParts<Arc<Api>> for Caller<R> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let context = &api.context;
        let presented = presented(&request.headers)?;
        let tenants = context.config.tenants();
        let key = tenants.keys.get(&presented.key_id).ok_or_else(unknown)?;
        if !key.admits(&context.mesh_key, &presented, context.clock.now()) {
            return Err(unknown());
        }
        let app = tenants.apps.get(&key.app).ok_or_else(unknown)?;
        if !key.scopes.contains(&R::SCOPE) {
            return Err(lacking(R::SCOPE));
        }
        if let Some(residency) = app.residency.as_ref().filter(|region| **region != context.here) {
            let detail = format!("The data of this app stays in {residency}. Send the request to a gateway there.");
            return Err(Problem::new(RESIDES_ELSEWHERE, detail));
        }
        Ok(Self {
            app: Arc::clone(app),
            scopes: key.scopes.clone(),
            requires: PhantomData,
        })
    }
}

impl<R> Caller<R> {
    /// The key of a recipient of the caller's app.
    pub(crate) fn key(&self, recipient: RecipientId) -> RecipientKey {
        RecipientKey {
            app: self.app.id.clone(),
            recipient,
        }
    }

    /// Checks for a scope that only some requests to the route require.
    pub(crate) fn require(&self, scope: Scope) -> Result<(), Problem> {
        if self.scopes.contains(&scope) {
            Ok(())
        } else {
            Err(lacking(scope))
        }
    }
}

fn presented(headers: &http::HeaderMap) -> Result<Presented, Problem> {
    let value = headers.get(header::AUTHORIZATION).ok_or_else(|| {
        let challenge = HeaderValue::from_static("Bearer realm=\"peal\"");
        Problem::new(UNAUTHENTICATED, "Send the header Authorization: Bearer peal_….")
            .header(header::WWW_AUTHENTICATE, challenge)
    })?;
    let text = value.to_str().map_err(|_| unknown())?;
    let (scheme, key) = text.split_once(' ').ok_or_else(unknown)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(unknown());
    }
    key.trim().parse().map_err(|_| unknown())
}

/// One answer for every key that is not accepted, so that the answer reveals nothing about the reason.
fn unknown() -> Problem {
    let challenge = HeaderValue::from_static("Bearer realm=\"peal\", error=\"invalid_token\"");
    Problem::new(UNAUTHENTICATED, "The API key is unknown, expired or malformed.")
        .header(header::WWW_AUTHENTICATE, challenge)
}

fn lacking(scope: Scope) -> Problem {
    let challenge = format!("Bearer realm=\"peal\", error=\"insufficient_scope\", scope=\"{scope}\"");
    let challenge = HeaderValue::try_from(challenge).expect("scopes are ASCII");
    Problem::new(FORBIDDEN, format!("The API key lacks the scope {scope}.")).header(header::WWW_AUTHENTICATE, challenge)
}
