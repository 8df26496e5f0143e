//! Authentication: an API key identifies one app and has scopes.

use std::{marker::PhantomData, sync::Arc};

use axum::extract::FromRequestParts;
use http::{HeaderValue, header, request};
use shared::{
    api_key::{ApiKey, Presented, Scope},
    app::App,
    id::RecipientId,
    nats::config::Tenants,
    recipient::RecipientKey,
};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    api::Api,
    connections::Connection,
    problem::{FORBIDDEN, OVERLOADED, Problem, RESIDES_ELSEWHERE, UNAUTHENTICATED},
    quota::Used,
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
    ToRead = RecipientsRead,
    ToSuppress = SuppressionsWrite
);

/// The app that makes the request, known only from its API key. A handler that takes `Caller<ToSend>` can only be
/// reached with a key of that scope.
#[derive(Debug)]
pub(crate) struct Caller<R> {
    pub(crate) app: Arc<App>,
    key_id: String,
    scopes: Vec<Scope>,
    requires: PhantomData<R>,
    /// The key's place, and one of the places that all keys share. A caller has them before its body is read, and only
    /// with a valid key.
    _places: [OwnedSemaphorePermit; 2],
}

impl<R: Requires> FromRequestParts<Arc<Api>> for Caller<R> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let context = &api.context;
        let presented = presented(&parts.headers)?;
        let tenants = context.config.tenants();
        let key = tenants.keys.get(&presented.key_id).ok_or_else(unknown)?;
        if !key.admits(&context.mesh_key, &presented, context.clock.now()) {
            return Err(unknown());
        }
        let app = tenants.apps.get(&key.app).ok_or_else(unknown)?;
        let places = enter(parts, api, &tenants, key, app)?;
        if !key.scopes.contains(&R::SCOPE) {
            return Err(lacking(R::SCOPE));
        }
        if let Some(residency) = app.residency.as_ref().filter(|region| **region != context.here) {
            let detail = format!("The data of this app stays in {residency}. Send the request to a gateway there.");
            return Err(Problem::new(RESIDES_ELSEWHERE, detail));
        }
        Ok(Self {
            app: Arc::clone(app),
            key_id: key.key_id.clone(),
            scopes: key.scopes.clone(),
            requires: PhantomData,
            _places: places,
        })
    }
}

/// Takes the places of a request with this valid key, within the quota of its app.
fn enter(
    parts: &request::Parts,
    api: &Api,
    tenants: &Tenants,
    key: &ApiKey,
    app: &Arc<App>,
) -> Result<[OwnedSemaphorePermit; 2], Problem> {
    if let Some(connection) = parts.extensions.get::<Arc<Connection>>() {
        connection.set_key();
    }
    let budgets = &api.intake.budgets;
    let key_use = api
        .keys
        .of(&key.key_id, budgets.quota(app), |id| tenants.keys.contains_key(id));
    if let Some(used) = parts.extensions.get::<Used>() {
        used.set(Arc::clone(&key_use), budgets.of(app));
    }
    let of_key = key_use.enter().map_err(|too_many| {
        api.context.telemetry.metrics.limited(too_many.limit, &app.id);
        Problem::from(too_many)
    })?;
    let of_all = Arc::clone(&api.permits).try_acquire_owned();
    let of_all = of_all.map_err(|_| Problem::new(OVERLOADED, "Repeat after the time in Retry-After."))?;
    Ok([of_key, of_all])
}

impl<R> Caller<R> {
    /// The key of a recipient of the caller's app.
    pub(crate) fn key(&self, recipient: RecipientId) -> RecipientKey {
        RecipientKey {
            app: self.app.id.clone(),
            recipient,
        }
    }

    /// The public part of the caller's key.
    pub(crate) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Gives back the places, for a request that has one of its own, and leaves the app.
    pub(crate) fn leave(self) -> Arc<App> {
        self.app
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
