//! Who asks: an API key, which speaks for one app and no other.

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

/// What a route needs a key to allow.
pub(crate) trait Needs: Send + Sync + 'static {
    const SCOPE: Scope;
}

macro_rules! needs {
    ($($name:ident = $scope:ident),+ $(,)?) => {
        $(
            #[derive(Debug)]
            pub(crate) struct $name;
            impl Needs for $name {
                const SCOPE: Scope = Scope::$scope;
            }
        )+
    };
}

needs!(
    ToSend = Send,
    ToAsk = Status,
    ToWrite = RecipientsWrite,
    ToRead = RecipientsRead
);

/// The app on whose behalf a request is made, from the key and from nowhere else. A handler that takes
/// `Caller<ToSend>` can only be reached with a key of that scope.
#[derive(Debug)]
pub(crate) struct Caller<N> {
    pub(crate) app: Arc<App>,
    scopes: Vec<Scope>,
    needs: PhantomData<N>,
}

impl<N: Needs> FromRequestParts<Arc<Api>> for Caller<N> {
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
        if !key.scopes.contains(&N::SCOPE) {
            return Err(lacking(N::SCOPE));
        }
        if let Some(residency) = app.residency.as_ref().filter(|region| **region != context.here) {
            let detail = format!("What concerns this app stays in {residency}. Ask a gateway there.");
            return Err(Problem::new(RESIDES_ELSEWHERE, detail));
        }
        Ok(Self {
            app: Arc::clone(app),
            scopes: key.scopes.clone(),
            needs: PhantomData,
        })
    }
}

impl<N> Caller<N> {
    /// A recipient of the caller's app.
    pub(crate) fn key(&self, recipient: RecipientId) -> RecipientKey {
        RecipientKey {
            app: self.app.id.clone(),
            recipient,
        }
    }

    /// Insists on a scope that only some requests to the route need.
    pub(crate) fn must(&self, scope: Scope) -> Result<(), Problem> {
        if self.scopes.contains(&scope) {
            Ok(())
        } else {
            Err(lacking(scope))
        }
    }
}

fn presented(headers: &http::HeaderMap) -> Result<Presented, Problem> {
    let value = headers.get(header::AUTHORIZATION).ok_or_else(|| {
        let ask = HeaderValue::from_static("Bearer realm=\"peal\"");
        Problem::new(UNAUTHENTICATED, "Send the header Authorization: Bearer peal_….")
            .header(header::WWW_AUTHENTICATE, ask)
    })?;
    let text = value.to_str().map_err(|_| unknown())?;
    let (scheme, key) = text.split_once(' ').ok_or_else(unknown)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(unknown());
    }
    key.trim().parse().map_err(|_| unknown())
}

/// One answer for every key that is not good, so that nothing can be learnt from the difference.
fn unknown() -> Problem {
    let ask = HeaderValue::from_static("Bearer realm=\"peal\", error=\"invalid_token\"");
    Problem::new(
        UNAUTHENTICATED,
        "The API key is not known, has ended, or is not written as it was issued.",
    )
    .header(header::WWW_AUTHENTICATE, ask)
}

fn lacking(scope: Scope) -> Problem {
    let ask = format!("Bearer realm=\"peal\", error=\"insufficient_scope\", scope=\"{scope}\"");
    let ask = HeaderValue::try_from(ask).expect("scopes are ASCII");
    Problem::new(FORBIDDEN, format!("The API key lacks the scope {scope}.")).header(header::WWW_AUTHENTICATE, ask)
}
