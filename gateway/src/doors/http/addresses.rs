//! `/v1/recipients/{recipient_id}/addresses`: the ways to reach a recipient. A token is taken and never shown again.

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
    provider::{
        Provider,
        apns::{self, Environment, Kind},
        fcm,
    },
    recipient::{Fact, RecipientKey},
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
#[serde(deny_unknown_fields)]
pub(crate) struct PostAddress {
    /// Who carries pushes to it.
    provider: Provider,
    /// The device token. APNs: hexadecimal.
    #[schema(max_length = 4096)]
    token: String,
    /// What the token is for.
    #[serde(default = "device")]
    #[schema(default = "device")]
    kind: Kind,
    /// Which of Apple's worlds; APNs only.
    #[serde(default = "production")]
    #[schema(default = "production")]
    environment: Environment,
    /// The bundle id, if it is not the app's default topic; APNs only.
    #[schema(max_length = 255)]
    topic: Option<String>,
}

fn device() -> Kind {
    Kind::Device
}

fn production() -> Environment {
    Environment::Production
}

/// An address, without its token.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AddressResponse {
    /// Names the address: derived from app, provider and token, so that one token is one address.
    address_id: AddressId,
    /// Who carries pushes to it.
    provider: Provider,
    /// What the token is for.
    kind: Kind,
    /// Which of Apple's worlds.
    environment: Environment,
    /// The bundle id, if it is not the app's default topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    /// When the device last registered.
    #[schema(value_type = String, format = DateTime)]
    registered_at: Timestamp,
}

/// Every address of a recipient.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AddressList {
    /// The addresses, the newest first.
    addresses: Vec<AddressResponse>,
}

/// Register an address
///
/// Registering again refreshes it. A known recipient gains a device; an unknown one is registered at the app's default
/// region; a token that another recipient of the app has moves to this one.
#[utoipa::path(
    post,
    path = "/v1/recipients/{recipient_id}/addresses",
    operation_id = "registerAddress",
    tag = "addresses",
    params(("recipient_id" = RecipientId, Path, description = "The recipient, percent-encoded")),
    request_body = PostAddress,
    responses(
        (status = 200, description = "Refreshed: the recipient had registered it before", body = AddressResponse),
        (status = 201, description = "Registered, or moved here", body = AddressResponse),
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
    let address = wanted.into_address(&key, homes.context.clock.now())?;
    let home = homes.ensure_home(&key, &caller.app.default_region).await?;
    // The owner's entry is written last: until then a repetition does all of it again.
    let former = homes.context.directory.owner(&key.app, address.id);
    let is_new = former.as_ref() != Some(&key.recipient);
    homes.write(&home, &key, Fact::Address(address.clone())).await?;
    if is_new {
        let owner = Some(key.recipient.clone());
        homes
            .put_owner(&key.app, address.id, owner, address.registered_at)
            .await?;
    }
    if is_new && former.is_some() {
        // Every gateway that reads the owner's entry does the same; here it is done before the answer.
        owners::settle_now(&homes, &key.app, address.id).await;
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
    params(("recipient_id" = RecipientId, Path, description = "The recipient, percent-encoded")),
    responses(
        (status = 200, description = "Its addresses, without tokens", body = AddressList),
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
    let mut known = homes
        .read(&homes.home_or(&key, &caller.app.default_region), &key)
        .await?;
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
/// The recipient stays registered, with its preferences.
#[utoipa::path(
    delete,
    path = "/v1/recipients/{recipient_id}/addresses",
    operation_id = "removeAddresses",
    tag = "addresses",
    params(("recipient_id" = RecipientId, Path, description = "The recipient, percent-encoded")),
    responses(
        (status = 204, description = "It has none any more"),
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
    let home = homes.home_or(&key, &caller.app.default_region);
    let known = homes.read(&home, &key).await?;
    if !known.is_known() {
        return Err(recipients::unknown());
    }
    for (address, _) in known.addresses {
        homes.remove_address(&home, &key, address.id).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Remove an address
#[utoipa::path(
    delete,
    path = "/v1/recipients/{recipient_id}/addresses/{address_id}",
    operation_id = "removeAddress",
    tag = "addresses",
    params(
        ("recipient_id" = RecipientId, Path, description = "The recipient, percent-encoded"),
        ("address_id" = AddressId, Path, description = "The address"),
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
    let home = homes.home_or(&key, &caller.app.default_region);
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
    fn one_token_is_one_address_however_it_is_written() {
        let upper = read(json!({ "provider": "apns", "token": "AB12" })).unwrap();
        let lower = read(json!({ "provider": "apns", "token": "ab12", "environment": "sandbox" })).unwrap();
        assert_eq!(upper.id, lower.id);
        assert_ne!(
            upper.id,
            read(json!({ "provider": "fcm", "token": "ab12" })).unwrap().id
        );
    }

    #[test]
    fn what_only_apple_has_is_refused_for_fcm() {
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
    fn an_answer_shows_no_token() {
        let address = read(json!({ "provider": "fcm", "token": "top-secret" })).unwrap();
        assert!(
            !serde_json::to_string(&AddressResponse::from(address))
                .unwrap()
                .contains("secret")
        );
    }
}
