//! `/v1/recipients/{recipient_id}/addresses`: the addresses of a recipient. Answers never show tokens.

use std::{collections::HashMap, iter};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use shared::{
    address::{Address, AddressState, AddressType, Format, Members, Target},
    id::{AddressId, RecipientId},
    provider::{
        Provider,
        apns::{Environment, Kind},
        hms::Generation,
    },
    suppression::{Suppression, SuppressionId},
};
use utoipa::ToSchema;

use super::{
    auth::{Caller, ToReadAddresses, ToWriteAddresses},
    body::Json,
    named::Named,
    openapi,
    problem::{NOT_FOUND, Problem},
    recipients,
};
use crate::{
    context::Context,
    recipients::{
        homes::Homes,
        register::{NewAddress, Registered, Room},
        suppressions,
    },
};

/// An address, without its token.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AddressResponse {
    /// The id of the address: a digest of app, provider and token, so that one token is one address.
    address_id: AddressId,
    /// What the address is.
    #[serde(rename = "type")]
    kind_of_address: AddressType,
    /// The provider that issued the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<Provider>,
    /// The use of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<Kind>,
    /// The APNs environment of the token; `production` for FCM.
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<Environment>,
    /// The APNs topic (bundle id) of the token, if it is not the topic of the app's credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    /// The app's name of the Live Activity that the token updates.
    #[serde(skip_serializing_if = "Option::is_none")]
    activity_id: Option<String>,
    /// Which of Huawei's APIs issued the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u8>)]
    generation: Option<Generation>,
    /// The mailbox or number with most of it hidden.
    #[serde(skip_serializing_if = "Option::is_none")]
    masked: Option<String>,
    /// Whether it is sent to.
    state: AddressState,
    /// Why it is not active.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The form of the body that a receiver wants.
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Format>,
    /// The secret that was made for a signed receiver. It is shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    /// The IANA time zone of the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    timezone: Option<String>,
    /// When the address was last registered.
    #[schema(value_type = String, format = DateTime)]
    registered_at: Timestamp,
}

/// The addresses of a recipient.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AddressList {
    /// The addresses, the most recently registered first.
    addresses: Vec<AddressResponse>,
}

/// Register an address
///
/// Registering the same token again refreshes the address. A token that belongs to another recipient of the app moves
/// to this one. An unknown recipient is registered at the app's default region. A recipient has at most 100 addresses.
#[utoipa::path(
    post,
    path = "/v1/recipients/{recipient_id}/addresses",
    operation_id = "registerAddress",
    tag = "addresses",
    params(("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded")),
    request_body = Members,
    responses(
        (status = 200, description = "Refreshed: the recipient had this address already", body = AddressResponse),
        (status = 201, description = "Registered, or moved from another recipient", body = AddressResponse),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["recipients:write"]), ("client_token" = ["addresses"])),
)]
pub(crate) async fn register(
    State(homes): State<Homes>,
    caller: Caller<ToWriteAddresses>,
    Named(recipient): Named<RecipientId>,
    Json(wanted): Json<Members>,
) -> Result<Response, Problem> {
    let key = caller.key(recipient);
    caller.check_address(wanted.kind_of_address()?)?;
    let new = NewAddress::check(&homes, &caller.app, wanted)?;
    let home = homes.ensure_home(&key, &caller.app.default_region).await?;
    let Registered {
        address,
        secret,
        is_new,
    } = new.store(&homes, &home, &key, Room::ToBeChecked).await?;
    let suppressed = suppressions::of_addresses(&homes.context, &key.app, iter::once(&address)).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let response = AddressResponse {
        secret: secret.map(|secret| secret.reveal().to_owned()),
        ..AddressResponse::of(address, &homes.context, &suppressed)
    };
    Ok((status, axum::Json(response)).into_response())
}

/// List the addresses of a recipient
#[utoipa::path(
    get,
    path = "/v1/recipients/{recipient_id}/addresses",
    operation_id = "listAddresses",
    tag = "addresses",
    params(("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded")),
    responses(
        (status = 200, description = "The addresses, without tokens", body = AddressList),
        openapi::ReadRefusal,
    ),
    security(("api_key" = ["recipients:read"]), ("client_token" = ["addresses"])),
)]
pub(crate) async fn list(
    State(homes): State<Homes>,
    caller: Caller<ToReadAddresses>,
    Named(recipient): Named<RecipientId>,
) -> Result<axum::Json<AddressList>, Problem> {
    let key = caller.key(recipient);
    let home = homes.home_or(&key, &caller.app.default_region).await?;
    let mut known = homes.read(&home, &key).await?;
    if !known.is_known() {
        return Err(recipients::unknown());
    }
    known
        .addresses
        .sort_by_key(|(address, _)| std::cmp::Reverse(address.registered_at));
    let addresses = known.addresses.iter().map(|(address, _)| address);
    let suppressed = suppressions::of_addresses(&homes.context, &key.app, addresses).await?;
    let answered = known.addresses.into_iter();
    Ok(axum::Json(AddressList {
        addresses: answered
            .map(|(address, _)| AddressResponse::of(address, &homes.context, &suppressed))
            .collect(),
    }))
}

/// Remove every address of a recipient
///
/// The recipient stays registered and keeps its preferences and topics.
#[utoipa::path(
    delete,
    path = "/v1/recipients/{recipient_id}/addresses",
    operation_id = "removeAddresses",
    tag = "addresses",
    params(("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded")),
    responses(
        (status = 204, description = "The recipient has no address"),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["recipients:write"]), ("client_token" = ["addresses"])),
)]
pub(crate) async fn remove_all(
    State(homes): State<Homes>,
    caller: Caller<ToWriteAddresses>,
    Named(recipient): Named<RecipientId>,
) -> Result<StatusCode, Problem> {
    let key = caller.key(recipient);
    let home = homes.home_or(&key, &caller.app.default_region).await?;
    let known = homes.read(&home, &key).await?;
    if !known.is_known() {
        return Err(recipients::unknown());
    }
    homes.remove_addresses(&home, &key, &known).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove an address
#[utoipa::path(
    delete,
    path = "/v1/recipients/{recipient_id}/addresses/{address_id}",
    operation_id = "removeAddress",
    tag = "addresses",
    params(
        ("recipient_id" = RecipientId, Path, description = "The id of the recipient, percent-encoded"),
        ("address_id" = AddressId, Path, description = "The id of the address"),
    ),
    responses(
        (status = 204, description = "Removed"),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["recipients:write"]), ("client_token" = ["addresses"])),
)]
pub(crate) async fn remove(
    State(homes): State<Homes>,
    caller: Caller<ToWriteAddresses>,
    Named((recipient, address)): Named<(RecipientId, AddressId)>,
) -> Result<StatusCode, Problem> {
    let key = caller.key(recipient);
    let home = homes.home_or(&key, &caller.app.default_region).await?;
    let known = homes.read(&home, &key).await?;
    if !known.addresses.iter().any(|(known, _)| known.id == address) {
        return Err(Problem::new(NOT_FOUND, "The recipient has no such address."));
    }
    homes.remove_address(&home, &key, address).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl AddressResponse {
    /// The answer for an address, if `suppressed` has what is on the app's list.
    fn of(address: Address, context: &Context, suppressed: &HashMap<SuppressionId, Suppression>) -> Self {
        let id = suppressions::id_of(context, address.id, None);
        let answer = Self::from(address);
        match suppressed.get(&id) {
            Some(suppression) => Self {
                state: AddressState::Suppressed,
                reason: Some(suppression.reason.to_string()),
                ..answer
            },
            None => answer,
        }
    }
}

impl From<Address> for AddressResponse {
    fn from(address: Address) -> Self {
        let kind_of_address = address.target.kind();
        let masked = address.target.masked();
        let disabled = match &address.target {
            Target::Webhook(receiver) => receiver.disabled().cloned(),
            _ => None,
        };
        let members = Members::from(address.target);
        Self {
            address_id: address.id,
            kind_of_address,
            provider: members.provider,
            kind: members.kind,
            environment: members.environment,
            topic: members.topic,
            activity_id: members.activity_id,
            generation: members.generation,
            masked,
            state: disabled
                .as_ref()
                .map_or(AddressState::Active, |_| AddressState::Disabled),
            reason: disabled.map(|disabled| disabled.reason),
            format: members.format,
            secret: None,
            timezone: address.timezone,
            registered_at: address.registered_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use shared::id_key::IdKey;

    use super::*;

    /// The subscription of RFC 8291, appendix A.
    const P256DH: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

    #[test]
    fn an_answer_contains_nothing_that_reaches_the_device() {
        for members in [
            json!({ "provider": "fcm", "token": "top-secret" }),
            json!({ "type": "email", "email": "top-secret@example.com" }),
            json!({ "type": "phone", "phone": "+41791234567" }),
            json!({ "type": "hms", "token": "top-secret" }),
            json!({ "type": "jpush", "token": "top-secret" }),
            json!({ "type": "sns", "target_arn": "arn:aws:sns:eu-central-1:1:endpoint/GCM/shop/top-secret" }),
            json!({ "type": "webhook", "url": "https://example.com/top-secret", "format": "chat" }),
            json!({
                "type": "web_push", "endpoint": "https://push.example/top-secret",
                "p256dh": P256DH, "auth": AUTH,
            }),
        ] {
            let members: Members = serde_json::from_value(members).unwrap();
            let target = members.target().unwrap();
            let address = Address::new(
                &IdKey::unkeyed(),
                &"shop".parse().unwrap(),
                target,
                Timestamp::UNIX_EPOCH,
            );
            let answer = serde_json::to_string(&AddressResponse::from(address)).unwrap();
            for part in ["secret", "1234", P256DH, AUTH] {
                assert!(!answer.contains(part), "{answer}");
            }
        }
    }
}
