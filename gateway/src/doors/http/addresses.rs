//! `/v1/recipients/{recipient_id}/addresses`: the addresses of a recipient. Answers never show tokens.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shared::{
    address::{Address, Target},
    id::{AddressId, RecipientId},
    invalid::Invalid,
    only_objects,
    provider::{
        Provider,
        apns::{self, Environment, Kind},
        fcm,
    },
    recipient::{Fact, RecipientKey},
    tolerant::or_default,
};
use utoipa::ToSchema;

use super::{
    auth::{Caller, ToRead, ToWrite},
    body::Json,
    named::Named,
    openapi,
    problem::{NOT_FOUND, Problem},
    recipients,
};
use crate::recipients::{homes::Homes, owners};

/// An address to register.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct PostAddress {
    /// The provider that issued the token.
    provider: Provider,
    /// The device token. For APNs: hexadecimal, an even number of digits.
    #[schema(max_length = 4096)]
    token: String,
    /// The purpose of the token. For FCM: always `device`.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(default = "device")]
    kind: Kind,
    /// The APNs environment of the token. For FCM: always `production`.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(default = "production")]
    environment: Environment,
    /// The APNs topic (bundle id) of the token, if it is not the topic of the app's credential. Not for FCM.
    #[schema(max_length = 255)]
    topic: Option<String>,
}

only_objects!(PostAddress);

/// An address, without its token.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AddressResponse {
    /// The id of the address: a digest of app, provider and token, so that one token is one address.
    address_id: AddressId,
    /// The provider that issued the token.
    provider: Provider,
    /// The purpose of the token.
    kind: Kind,
    /// The APNs environment of the token; `production` for FCM.
    environment: Environment,
    /// The APNs topic (bundle id) of the token, if it is not the topic of the app's credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
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
    request_body = PostAddress,
    responses(
        (status = 200, description = "Refreshed: the recipient had this address already", body = AddressResponse),
        (status = 201, description = "Registered, or moved from another recipient", body = AddressResponse),
        openapi::WriteRefusal,
    ),
    security(("api_key" = ["recipients:write"])),
)]
pub(crate) async fn register(
    State(homes): State<Homes>,
    caller: Caller<ToWrite>,
    Named(recipient): Named<RecipientId>,
    Json(wanted): Json<PostAddress>,
) -> Result<Response, Problem> {
    let key = caller.key(recipient);
    let mut address = wanted.into_address(&key, homes.context.clock.now())?;
    let home = homes.ensure_home(&key, &caller.app.default_region).await?;
    let owners = homes.owners(&key.app, address.id).await?;
    address.registered_at = owners.next(address.registered_at);
    // The owner is written last: if something fails before that, a repetition starts again.
    let is_new = owners.owner() != Some(&key.recipient);
    if is_new {
        homes.check_addresses(&home, &key, address.id).await?;
    }
    homes.write(&home, &key, Fact::Address(address.clone())).await?;
    if is_new {
        let owner = Some(key.recipient.clone());
        homes
            .put_owner(&key.app, address.id, owner, address.registered_at)
            .await?;
    }
    // The gateways of other regions do this when they read the entry; here it is done before the answer. A repetition does it
    // again, because the first request may have failed in between.
    if !owners.former().is_empty() || (is_new && owners.owner().is_some()) {
        owners::settle(&homes, &key.app, address.id).await?;
    }
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, axum::Json(AddressResponse::from(address))).into_response())
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
    security(("api_key" = ["recipients:read"])),
)]
pub(crate) async fn list(
    State(homes): State<Homes>,
    caller: Caller<ToRead>,
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
    Ok(axum::Json(AddressList {
        addresses: known.addresses.into_iter().map(|(address, _)| address.into()).collect(),
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
    security(("api_key" = ["recipients:write"])),
)]
pub(crate) async fn remove_all(
    State(homes): State<Homes>,
    caller: Caller<ToWrite>,
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
    security(("api_key" = ["recipients:write"])),
)]
pub(crate) async fn remove(
    State(homes): State<Homes>,
    caller: Caller<ToWrite>,
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

impl PostAddress {
    fn into_address(self, key: &RecipientKey, registered_at: Timestamp) -> Result<Address, Invalid> {
        if self.provider == Provider::Fcm {
            if self.kind != Kind::Device {
                return Err(Invalid::new("kind", "must be device for fcm"));
            }
            if self.environment != Environment::Production {
                return Err(Invalid::new("environment", "must be production for fcm"));
            }
            if self.topic.is_some() {
                return Err(Invalid::new("topic", "must not be given for fcm"));
            }
        }
        let target = match self.provider {
            Provider::Apns => Target::Apns(apns::Target::new(&self.token, self.kind, self.environment, self.topic)?),
            Provider::Fcm => Target::Fcm(fcm::Target::new(self.token)?),
        };
        Ok(Address::new(&key.app, target, registered_at))
    }
}

impl From<Address> for AddressResponse {
    fn from(address: Address) -> Self {
        let provider = address.provider();
        let (kind, environment, topic) = match address.target {
            Target::Apns(target) => (target.kind, target.environment, target.topic),
            Target::Fcm(_) => (Kind::Device, Environment::Production, None),
        };
        Self {
            address_id: address.id,
            provider,
            kind,
            environment,
            topic,
            registered_at: address.registered_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(body: Value) -> Result<Address, Invalid> {
        let key = RecipientKey {
            app: "shop".parse().unwrap(),
            recipient: "ann".parse().unwrap(),
        };
        serde_json::from_value::<PostAddress>(body)
            .unwrap()
            .into_address(&key, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn one_token_is_one_address_in_upper_and_lower_case() {
        let upper = read(json!({ "provider": "apns", "token": "AB12" })).unwrap();
        let lower = read(json!({ "provider": "apns", "token": "ab12", "environment": "sandbox" })).unwrap();
        assert_eq!(upper.id, lower.id);
        assert_ne!(
            upper.id,
            read(json!({ "provider": "fcm", "token": "ab12" })).unwrap().id
        );
    }

    #[test]
    fn fields_of_apns_are_refused_for_fcm() {
        for (field, body) in [
            (
                "kind",
                json!({ "provider": "fcm", "token": "t", "kind": "live_activity" }),
            ),
            (
                "environment",
                json!({ "provider": "fcm", "token": "t", "environment": "sandbox" }),
            ),
            (
                "topic",
                json!({ "provider": "fcm", "token": "t", "topic": "com.example" }),
            ),
            (
                "topic",
                json!({ "provider": "apns", "token": "ab", "topic": "com example" }),
            ),
            ("token", json!({ "provider": "apns", "token": "xyz" })),
        ] {
            assert_eq!(read(body).unwrap_err().field, field);
        }
    }

    #[test]
    fn an_answer_contains_no_token() {
        let address = read(json!({ "provider": "fcm", "token": "top-secret" })).unwrap();
        assert!(
            !serde_json::to_string(&AddressResponse::from(address))
                .unwrap()
                .contains("secret")
        );
    }
}
