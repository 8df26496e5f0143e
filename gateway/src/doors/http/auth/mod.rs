//! Authentication: an API key identifies one app and has scopes. It is sent, or signs the request, or has signed a client token.

pub(super) mod client;
pub(super) mod signed;

use std::{marker::PhantomData, sync::Arc};

use axum::extract::FromRequestParts;
use http::{HeaderValue, header, request};
use shared::{
    address::AddressType,
    api_key::{ApiKey, Presented, Scope},
    app::App,
    id::{AppId, RecipientId},
    nats::{config::Tenants, nonce},
    recipient::RecipientKey,
    secret::Secret,
    trial::Trial,
};
use tokio::sync::OwnedSemaphorePermit;

use self::{
    client::{ClientScope, ClientToken},
    signed::Signed,
};
use super::{
    api::Api,
    connections::Connection,
    problem::{FORBIDDEN, OVERLOADED, Problem, REPLAYED, RESIDES_ELSEWHERE, UNAUTHENTICATED},
    quota::Used,
};

/// What a route requires.
pub(crate) trait Requires: Send + Sync + 'static {
    /// Of an API key.
    const SCOPE: Scope;
    /// Of a client token; `None` if no such token may do it.
    const CLIENT_SCOPE: Option<ClientScope>;
    /// Whether a test key may do it: it sends and reads. With any write it could reach others than the test recipients, such as
    /// by an address that it gives to one of them, or change what other keys have done.
    const BY_TEST_KEY: bool;
}

macro_rules! requires {
    ($($name:ident = $scope:ident, $client_scope:expr, $by_test_key:literal;)+) => {
        $(
            #[derive(Debug)]
            pub(crate) struct $name;
            impl Requires for $name {
                const SCOPE: Scope = Scope::$scope;
                const CLIENT_SCOPE: Option<ClientScope> = $client_scope;
                const BY_TEST_KEY: bool = $by_test_key;
            }
        )+
    };
}

requires!(
    ToSend = Send, None, true;
    ToHandleSent = Send, None, false;
    ToReadStatus = Status, None, true;
    ToWrite = RecipientsWrite, None, false;
    ToRead = RecipientsRead, None, true;
    ToWriteAddresses = RecipientsWrite, Some(ClientScope::Addresses), false;
    ToReadAddresses = RecipientsRead, Some(ClientScope::Addresses), true;
    ToWritePreferences = RecipientsWrite, Some(ClientScope::Preferences), false;
    ToReadPreferences = RecipientsRead, Some(ClientScope::Preferences), true;
    ToWriteTopics = RecipientsWrite, Some(ClientScope::Topics), false;
    ToReadTopics = RecipientsRead, Some(ClientScope::Topics), true;
    ToSuppress = SuppressionsWrite, None, false;
    ToExport = RecipientsExport, None, true;
    ToWriteApps = AppsWrite, None, false;
    ToReadApps = AppsRead, None, true;
    ToControl = ControlsWrite, None, false;
    ToReadControls = ControlsWrite, None, true;
);

/// The app that makes the request, known only from its API key. A handler that takes `Caller<ToSend>` can only be
/// reached with a key of that scope, and one that takes `Caller<ToWriteAddresses>` also with a client token of the recipient
/// that the path names.
#[derive(Debug)]
pub(crate) struct Caller<R> {
    pub(crate) app: Arc<App>,
    key_id: String,
    scopes: Vec<Scope>,
    /// Whether its key is a test key.
    is_test: bool,
    /// Whether a client token speaks.
    is_client: bool,
    requires: PhantomData<R>,
    /// The key's place, and one of the places that all keys share. A caller has them before its body is read, and only
    /// with a valid key.
    _places: [OwnedSemaphorePermit; 2],
}

impl<R: Requires> FromRequestParts<Arc<Api>> for Caller<R> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let context = &api.context;
        let tenants = context.config.tenants();
        let Proved { key, client, nonce } = prove(parts, api, &tenants)?;
        let app = tenants.apps.get(&key.app).ok_or_else(unknown)?;
        let places = enter(parts, api, &tenants, &key, app)?;
        if app.suspended {
            return Err(Problem::suspended());
        }
        match &client {
            Some(token) => token.admit(R::CLIENT_SCOPE, parts, api).await?,
            None if !key.scopes.contains(&R::SCOPE) => return Err(lacking(R::SCOPE)),
            None => {}
        }
        if key.test && !R::BY_TEST_KEY {
            return Err(Problem::new(
                FORBIDDEN,
                "A test key sends and reads; it may not do this.",
            ));
        }
        if let Some(residency) = app.residency.as_ref().filter(|region| **region != context.here) {
            let detail = format!("The data of this app stays in {residency}. Send the request to a gateway there.");
            return Err(Problem::new(RESIDES_ELSEWHERE, detail));
        }
        // Last, so that what is refused can be sent again as it is.
        if let Some(nonce) = nonce {
            let taking = nonce::take(
                &context.js,
                &context.border,
                &context.here,
                &app.id,
                &key.key_id,
                &nonce,
                nonce::KEPT_FOR,
            );
            if !taking.await? {
                let detail = "This nonce was used before. Sign each request anew.";
                return Err(Problem::new(REPLAYED, detail));
            }
        }
        Ok(Self {
            app: Arc::clone(app),
            key_id: key.key_id.clone(),
            scopes: key.scopes.clone(),
            is_test: key.test,
            is_client: client.is_some(),
            requires: PhantomData,
            _places: places,
        })
    }
}

/// What a request has proved: whose it is.
struct Proved {
    key: Arc<ApiKey>,
    /// The client token that the key signed, if the request has one.
    client: Option<ClientToken>,
    /// The nonce of a signed request.
    nonce: Option<String>,
}

fn prove(parts: &mut request::Parts, api: &Api, tenants: &Tenants) -> Result<Proved, Problem> {
    if let Some(Signed { key, nonce }) = parts.extensions.remove() {
        return Ok(Proved {
            key,
            client: None,
            nonce: Some(nonce),
        });
    }
    let context = &api.context;
    let now = context.clock.now();
    let text = bearer(&parts.headers)?;
    if client::is_token(text) {
        let (key, token) = client::verify(text, tenants, &context.mesh_key, now)?;
        return Ok(Proved {
            key,
            client: Some(token),
            nonce: None,
        });
    }
    let presented: Presented = text.parse().map_err(|_| unknown())?;
    let key = tenants.keys.get(&presented.key_id).ok_or_else(unknown)?;
    if !key.admits(&context.mesh_key, &context.config.legacies(), &presented, now) {
        return Err(unknown());
    }
    Ok(Proved {
        key: Arc::clone(key),
        client: None,
        nonce: None,
    })
}

/// Who reads or writes apps: an operator all of them, an app itself.
#[derive(Debug)]
pub(crate) struct Administrator<R> {
    who: Who<R>,
    /// The key itself, which an admin gateway checks again; `None` if it was not sent but signs the request.
    pub(crate) key: Option<Secret>,
}

#[derive(Debug)]
enum Who<R> {
    Operator {
        key_id: String,
        _place: OwnedSemaphorePermit,
    },
    App(Caller<R>),
}

impl<R> Administrator<R> {
    /// The app that it may see; `None` if it may see all.
    pub(crate) fn only(&self) -> Option<&AppId> {
        match &self.who {
            Who::Operator { .. } => None,
            Who::App(caller) => Some(&caller.app.id),
        }
    }

    /// Whose turn a write takes.
    pub(crate) fn title(&self) -> String {
        match &self.who {
            Who::Operator { key_id, .. } => format!("operator {key_id}"),
            Who::App(caller) => format!("app {}", caller.app.id),
        }
    }
}

impl<R: Requires> FromRequestParts<Arc<Api>> for Administrator<R> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let context = &api.context;
        let key: Option<Secret> = bearer(&parts.headers).ok().map(|text| text.to_owned().into());
        let presented = key.as_ref().and_then(|key| key.reveal().parse::<Presented>().ok());
        let tenants = context.config.tenants();
        let operator = presented.and_then(|presented| Some((tenants.operators.get(&presented.key_id)?, presented)));
        let who = match operator {
            Some((key, presented))
                if key.admits(
                    &context.mesh_key,
                    &context.config.legacies(),
                    &presented,
                    context.clock.now(),
                ) =>
            {
                if let Some(connection) = parts.extensions.get::<Arc<Connection>>() {
                    connection.set_key();
                }
                let place = Arc::clone(&api.permits).try_acquire_owned();
                let place = place.map_err(|_| Problem::new(OVERLOADED, "Repeat after the time in Retry-After."))?;
                if !key.scopes.contains(&R::SCOPE) {
                    return Err(lacking(R::SCOPE));
                }
                Who::Operator {
                    key_id: key.key_id.clone(),
                    _place: place,
                }
            }
            Some(_) => return Err(unknown()),
            None => Who::App(Caller::from_request_parts(parts, api).await?),
        };
        Ok(Self { who, key })
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
    api.key_uses.note(&key.key_id, api.context.clock.now());
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

    /// What the caller's key makes of everything that it sends.
    pub(crate) fn trial(&self) -> Trial {
        Trial {
            test_key: self.is_test,
            ..Trial::NONE
        }
    }

    /// Gives back the places, for a request that has one of its own, and leaves the app.
    pub(crate) fn leave(self) -> Arc<App> {
        self.app
    }

    /// Checks that the caller may register an address of this kind.
    pub(crate) fn check_address(&self, kind: AddressType) -> Result<(), Problem> {
        if self.is_client {
            client::check_device(kind)
        } else {
            Ok(())
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

/// What the request sends as its credential.
fn bearer(headers: &http::HeaderMap) -> Result<&str, Problem> {
    let value = headers.get(header::AUTHORIZATION).ok_or_else(|| {
        let challenge = HeaderValue::from_static("Bearer realm=\"peal\"");
        Problem::new(UNAUTHENTICATED, "Send the header Authorization: Bearer peal_….")
            .header(header::WWW_AUTHENTICATE, challenge)
    })?;
    let text = value.to_str().map_err(|_| unknown())?;
    let (scheme, credential) = text.split_once(' ').ok_or_else(unknown)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(unknown());
    }
    Ok(credential.trim())
}

/// One answer for every key that is not accepted, so that the answer reveals nothing about the reason.
pub(super) fn unknown() -> Problem {
    let challenge = HeaderValue::from_static("Bearer realm=\"peal\", error=\"invalid_token\"");
    Problem::new(
        UNAUTHENTICATED,
        "The API key, the signature or the token is unknown, expired or malformed.",
    )
    .header(header::WWW_AUTHENTICATE, challenge)
}

pub(super) fn lacking(scope: Scope) -> Problem {
    let challenge = format!("Bearer realm=\"peal\", error=\"insufficient_scope\", scope=\"{scope}\"");
    let challenge = HeaderValue::try_from(challenge).expect("scopes are ASCII");
    Problem::new(FORBIDDEN, format!("The API key lacks the scope {scope}.")).header(header::WWW_AUTHENTICATE, challenge)
}
