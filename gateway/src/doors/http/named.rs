//! Extractors for the ids in the path and the headers of a request.

use axum::extract::{FromRequestParts, Path};
use http::{HeaderName, request};
use serde::de::DeserializeOwned;
use shared::{
    id::{AddressId, AppId, ControlId, ErasureId, EventId, NotificationId, RecipientId, Region, ScheduleId, Topic},
    invalid::Invalid,
    suppression::SuppressionId,
};

use super::problem::{NOT_FOUND, Problem};
use crate::records::dead_letters::LetterId;

/// The ids in the path, in order.
#[derive(Debug)]
pub(crate) struct Named<T>(pub(crate) T);

impl<S: Send + Sync> FromRequestParts<S> for Named<RecipientId> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let text: String = segments(request, state).await?;
        Ok(Self(text.parse()?))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Named<(RecipientId, AddressId)> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let (recipient, address): (String, String) = segments(request, state).await?;
        let address = address
            .parse()
            .map_err(|_| Problem::new(NOT_FOUND, "Address ids are UUIDs."))?;
        Ok(Self((recipient.parse()?, address)))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Named<(RecipientId, Topic)> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let (recipient, topic): (String, String) = segments(request, state).await?;
        Ok(Self((recipient.parse()?, topic.parse()?)))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Named<NotificationId> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let text: String = segments(request, state).await?;
        text.parse()
            .map(Self)
            .map_err(|_| Problem::new(NOT_FOUND, "Notification ids are UUIDs."))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Named<SuppressionId> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let text: String = segments(request, state).await?;
        text.parse()
            .map(Self)
            .map_err(|_| Problem::new(NOT_FOUND, "Ids of suppressions are 32 hexadecimal digits."))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Named<ScheduleId> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let text: String = segments(request, state).await?;
        Ok(Self(text.parse()?))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Named<ErasureId> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let text: String = segments(request, state).await?;
        text.parse()
            .map(Self)
            .map_err(|_| Problem::new(NOT_FOUND, "Erasure ids are UUIDs."))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Named<ControlId> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let text: String = segments(request, state).await?;
        text.parse()
            .map(Self)
            .map_err(|_| Problem::new(NOT_FOUND, "Ids of controls are UUIDs."))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Named<AppId> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let text: String = segments(request, state).await?;
        text.parse().map(Self).map_err(|_| Problem::new(NOT_FOUND, NO_APP))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Named<(AppId, KeyId)> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let (app, key): (String, String) = segments(request, state).await?;
        let app = app.parse().map_err(|_| Problem::new(NOT_FOUND, NO_APP))?;
        let is_key = key.len() == 16 && key.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !is_key {
            return Err(Problem::new(NOT_FOUND, "Ids of keys are 16 hexadecimal digits."));
        }
        Ok(Self((app, KeyId(key))))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Named<Region> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let text: String = segments(request, state).await?;
        Ok(Self(text.parse()?))
    }
}

/// The id of a key: 16 hexadecimal digits.
#[derive(Debug)]
pub(crate) struct KeyId(pub(crate) String);

/// One answer for apps that do not exist and apps of others.
pub(crate) const NO_APP: &str = "There is no app of this name that this key may see.";

impl<S: Send + Sync> FromRequestParts<S> for Named<LetterId> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let text: String = segments(request, state).await?;
        text.parse().map(Self).map_err(|()| {
            Problem::new(
                NOT_FOUND,
                "Ids of dead letters are a region and a number, such as eu-42.",
            )
        })
    }
}

async fn segments<T: DeserializeOwned + Send, S: Send + Sync>(
    request: &mut request::Parts,
    state: &S,
) -> Result<T, Problem> {
    match Path::from_request_parts(request, state).await {
        Ok(Path(segments)) => Ok(segments),
        Err(_) => Err(Invalid::new("path", "must be percent-encoded UTF-8").into()),
    }
}

/// The header that carries the caller's event id.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The caller's event id; `None` if the header is absent.
#[derive(Debug)]
pub(crate) struct IdempotencyKey(pub(crate) Option<EventId>);

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, _: &S) -> Result<Self, Problem> {
        let Some(value) = request.headers.get(IDEMPOTENCY_KEY) else {
            return Ok(Self(None));
        };
        let event = value.to_str().ok().and_then(|text| text.parse().ok());
        let rule = "must be 1 to 255 printable ASCII characters without spaces";
        event
            .map(|event| Self(Some(event)))
            .ok_or_else(|| Invalid::new("Idempotency-Key", rule).into())
    }
}
