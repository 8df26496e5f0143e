//! Client tokens: JWTs (HS256) that a service signs with the secret of an API key, for one recipient and at most a day. A phone or
//! a browser registers its own device with one, so that no API key is ever in an app.

use std::{fmt::Display, sync::Arc};

use axum::extract::{FromRequestParts, RawPathParams};
use http::{HeaderValue, header, request};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use shared::{
    address::AddressType,
    api_key::{ApiKey, Scope},
    id::{AppId, RecipientId},
    nats::config::Tenants,
    seal::MeshKey,
    tolerant,
};
use utoipa::ToSchema;

use super::unknown;
use crate::doors::problem::{FORBIDDEN, Problem, UNAUTHENTICATED};

/// Seconds that a token lives at most.
const MAX_LIFE_S: u64 = 86_400;

/// Seconds by which the clock of who signs may be ahead.
const CLOCK_AHEAD_S: u64 = 60;

/// The audience that a token must name.
const AUDIENCE: &str = "peal";

/// What a token may do for its recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientScope {
    /// Read and write addresses of its own devices.
    Addresses,
    /// Read and write preferences.
    Preferences,
    /// Read, join and leave topics.
    Topics,
    /// Report what was opened.
    Engagement,
}

impl ClientScope {
    fn parse(word: &str) -> Option<Self> {
        match word {
            "addresses" => Some(Self::Addresses),
            "preferences" => Some(Self::Preferences),
            "topics" => Some(Self::Topics),
            "engagement" => Some(Self::Engagement),
            _ => None,
        }
    }
}

/// A valid token.
#[derive(Debug)]
pub(super) struct ClientToken {
    recipient: RecipientId,
    scopes: Vec<ClientScope>,
}

/// The claims of a client token: a JWT (HS256) that a service signs with the secret of an API key, whose id is in the header `kid`.
#[derive(ToSchema)]
#[schema(as = ClientToken)]
#[expect(dead_code, reason = "only describes what `Claims` reads")]
pub(in crate::doors::http) struct Described {
    /// The audience: `peal`.
    aud: String,
    /// The app.
    iss: AppId,
    /// The recipient it speaks for.
    sub: RecipientId,
    /// When it was signed, in seconds since 1970.
    iat: u64,
    /// When it ends: at most 86400 after `iat`.
    exp: u64,
    /// What it may do: of `addresses`, `preferences`, `topics` and `engagement`, with a space between.
    scope: String,
}

/// The claims of a token. Others are ignored (RFC 7519 §4).
#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    #[serde(default, deserialize_with = "tolerant::whole")]
    iat: Option<u64>,
    #[serde(default, deserialize_with = "tolerant::whole")]
    exp: Option<u64>,
    #[serde(default, deserialize_with = "tolerant::whole")]
    nbf: Option<u64>,
    scope: String,
}

/// Whether `text` has the form of a token: three parts (RFC 7515 §3.1).
pub(super) fn is_token(text: &str) -> bool {
    text.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// The token, and the key that signed it, if it is valid at `now`.
pub(super) fn verify(
    text: &str,
    tenants: &Tenants,
    mesh_key: &MeshKey,
    now: Timestamp,
) -> Result<(Arc<ApiKey>, ClientToken), Problem> {
    let header = jsonwebtoken::decode_header(text).map_err(|_| unknown())?;
    let key = header.kid.and_then(|kid| tenants.keys.get(&kid)).ok_or_else(unknown)?;
    let may_issue = key.is_live(now) && key.scopes.contains(&Scope::IssueTokens);
    // RFC 7515 §4.1.11: extensions that are marked critical must be understood.
    if !may_issue || header.crit.is_some() {
        return Err(unknown());
    }
    let secret = key.signing_secret(mesh_key).ok_or_else(unknown)?;
    // The one algorithm, whatever the header says. Times are checked below, against the gateway's clock.
    let mut validation = Validation::new(Algorithm::HS256);
    validation.validate_exp = false;
    validation.set_audience(&[AUDIENCE]);
    validation.set_required_spec_claims(&["aud"]);
    let key_of_hmac = DecodingKey::from_secret(secret.reveal().as_bytes());
    let claims = match jsonwebtoken::decode::<Claims>(text, &key_of_hmac, &validation) {
        Ok(token) => token.claims,
        Err(error) => {
            use jsonwebtoken::errors::ErrorKind;
            return Err(match error.kind() {
                ErrorKind::InvalidAudience => refused("aud must be peal"),
                ErrorKind::MissingRequiredClaim(_) => refused("it needs aud"),
                ErrorKind::Json(_) => {
                    refused("its claims must be aud, iss, sub, iat, exp and scope, of the right types")
                }
                _ => unknown(),
            });
        }
    };
    let token = claims.check(key, now).map_err(refused)?;
    Ok((Arc::clone(key), token))
}

impl Claims {
    fn check(&self, key: &ApiKey, now: Timestamp) -> Result<ClientToken, &'static str> {
        let now = u64::try_from(now.as_second()).unwrap_or(0);
        let (Some(iat), Some(exp)) = (self.iat, self.exp) else {
            return Err("it needs iat and exp");
        };
        if self.iss != key.app.as_str() {
            return Err("iss must be the app of the key");
        }
        if iat > now + CLOCK_AHEAD_S || self.nbf.is_some_and(|nbf| nbf > now + CLOCK_AHEAD_S) {
            return Err("iat and nbf must not lie in the future");
        }
        if exp <= now {
            return Err("exp has passed");
        }
        if exp.saturating_sub(iat) > MAX_LIFE_S {
            return Err("exp must be at most 86400 after iat");
        }
        let scopes = self.scope.split(' ').map(ClientScope::parse);
        Ok(ClientToken {
            recipient: self.sub.parse().map_err(|_| "sub must be the id of a recipient")?,
            scopes: scopes
                .collect::<Option<_>>()
                .ok_or("scope must be words of addresses, preferences, topics and engagement, each after one space")?,
        })
    }
}

impl ClientToken {
    /// Whether the token may do what needs `scope`, for the recipient that the path names. `None` is what no token may do.
    pub(super) async fn admit(
        &self,
        scope: Option<ClientScope>,
        parts: &mut request::Parts,
        state: &(impl Send + Sync),
    ) -> Result<(), Problem> {
        let path = RawPathParams::from_request_parts(parts, state).await;
        let path = path.map_err(|_| forbidden("The client token speaks for another recipient."))?;
        let names = |recipient: &str| recipient == self.recipient.as_str();
        let is_own = path.iter().any(|(name, value)| name == "recipient_id" && names(value));
        match scope {
            None => Err(forbidden("A client token may not do this; send an API key.")),
            Some(scope) if !self.scopes.contains(&scope) => Err(forbidden("The scope of the client token lacks this.")),
            Some(_) if !is_own => Err(forbidden("The client token speaks for another recipient.")),
            Some(_) => Ok(()),
        }
    }
}

/// Checks that a device itself has an address of this kind. Whoever holds a phone shows neither that a mailbox or a number is
/// theirs, nor that a server may be posted to; and an address that is registered leaves its former recipient.
pub(super) fn check_device(kind: AddressType) -> Result<(), Problem> {
    match kind {
        AddressType::Apns
        | AddressType::Fcm
        | AddressType::WebPush
        | AddressType::Hms
        | AddressType::JPush
        | AddressType::Sns => Ok(()),
        AddressType::Email | AddressType::Phone | AddressType::Webhook => Err(forbidden(
            "A client token registers devices only; mailboxes, numbers and receivers need an API key.",
        )),
    }
}

fn forbidden(detail: &'static str) -> Problem {
    Problem::new(FORBIDDEN, detail)
}

fn refused(why: impl Display) -> Problem {
    let challenge = HeaderValue::from_static("Bearer realm=\"peal\", error=\"invalid_token\"");
    Problem::new(UNAUTHENTICATED, format!("The client token is refused: {why}."))
        .header(header::WWW_AUTHENTICATE, challenge)
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::{Value, json};
    use shared::api_key::NewKey;

    use super::*;

    const NOW: i64 = 1_000_000;

    fn mesh_key() -> MeshKey {
        MeshKey::from_base64("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=").unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    /// Keys of `shop` and of `bank`, each with its secret, that may sign tokens, and one that may not.
    fn tenants() -> (Tenants, Vec<(String, String)>) {
        let mut tenants = Tenants::default();
        let issue = |app: &str, scopes: &[Scope]| {
            let new = NewKey {
                signing: true,
                ..NewKey::with(scopes)
            };
            let (key, text) = ApiKey::issue(&mesh_key(), app.parse().unwrap(), new, now());
            let secret = text.splitn(3, '_').nth(2).unwrap().to_owned();
            (key, secret)
        };
        let issued = [
            issue("shop", &[Scope::IssueTokens]),
            issue("bank", &[Scope::IssueTokens]),
            issue("shop", &[Scope::RecipientsWrite]),
        ];
        let ids = issued.map(|(key, secret)| {
            let id = key.key_id.clone();
            tenants.keys.insert(id.clone(), key.into());
            (id, secret)
        });
        (tenants, ids.into())
    }

    fn claims() -> Value {
        json!({ "aud": "peal", "iss": "shop", "sub": "ann", "iat": NOW, "exp": NOW + 600, "scope": "addresses topics" })
    }

    fn header(kid: &str) -> Header {
        Header {
            kid: Some(kid.to_owned()),
            ..Header::new(Algorithm::HS256)
        }
    }

    fn sign(header: &Header, claims: &Value, secret: &str) -> String {
        jsonwebtoken::encode(header, claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    #[test]
    fn a_token_speaks_for_its_recipient_within_its_scope() {
        let (tenants, ids) = tenants();
        let (id, secret) = &ids[0];
        let (key, token) = verify(&sign(&header(id), &claims(), secret), &tenants, &mesh_key(), now()).unwrap();
        assert_eq!((key.key_id.as_str(), token.recipient.as_str()), (id.as_str(), "ann"));
        assert_eq!(token.scopes, [ClientScope::Addresses, ClientScope::Topics]);
    }

    #[test]
    fn a_token_that_another_key_signed_or_that_breaks_a_rule_is_refused() {
        let (tenants, ids) = tenants();
        let verify = |text: &str| verify(text, &tenants, &mesh_key(), now()).unwrap_err();
        let [(shop, shop_secret), (bank, bank_secret), (plain, plain_secret)] = ids.as_slice() else {
            panic!("three keys");
        };
        let unknown = unknown().detail().to_owned();
        for (why, text) in [
            ("another secret", sign(&header(shop), &claims(), bank_secret)),
            ("a key that may not", sign(&header(plain), &claims(), plain_secret)),
            ("no such key", sign(&header("0123456789abcdef"), &claims(), shop_secret)),
            ("no kid", sign(&Header::new(Algorithm::HS256), &claims(), shop_secret)),
            ("another algorithm", {
                let header = Header {
                    kid: Some(shop.clone()),
                    ..Header::new(Algorithm::HS512)
                };
                sign(&header, &claims(), shop_secret)
            }),
        ] {
            assert_eq!(verify(&text).detail(), unknown, "{why}");
        }
        // Another header over a signature that was right, in the ways in which libraries were fooled.
        let text = sign(&header(shop), &claims(), shop_secret);
        let (_, rest) = text.split_once('.').unwrap();
        let (payload, _) = rest.split_once('.').unwrap();
        for alg in ["none", "None", "RS256", "ES256", "HS384"] {
            use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
            let head = URL_SAFE_NO_PAD.encode(json!({ "alg": alg, "typ": "JWT", "kid": shop }).to_string());
            for text in [format!("{head}.{rest}"), format!("{head}.{payload}.")] {
                assert_eq!(verify(&text).detail(), unknown, "{alg}");
            }
        }
        assert_eq!(verify("..").detail(), unknown);

        let refused = |member: &str, value: Value| {
            let mut claims = claims();
            claims[member] = value;
            let problem = verify(&sign(&header(shop), &claims, shop_secret));
            assert_eq!(problem.kind(), UNAUTHENTICATED);
            assert!(
                problem.detail().starts_with("The client token is refused"),
                "{}",
                problem.detail()
            );
            problem.detail().to_owned()
        };
        assert!(refused("iss", json!("bank")).contains("iss"));
        assert!(refused("aud", json!("other")).contains("aud"));
        assert!(refused("exp", json!(NOW)).contains("exp"));
        assert!(refused("exp", json!(NOW + 86_401)).contains("86400"));
        assert!(refused("iat", json!(NOW + 61)).contains("iat"));
        assert!(refused("nbf", json!(NOW + 61)).contains("nbf"));
        for (member, value) in [
            ("exp", Value::Null),
            ("iat", json!("yesterday")),
            ("iat", json!(-1)),
            ("sub", json!("")),
            ("sub", Value::Null),
            ("scope", json!("addresses notifications:write")),
            ("scope", json!("")),
            ("aud", Value::Null),
        ] {
            refused(member, value);
        }
        let of_bank = sign(&header(bank), &claims(), bank_secret);
        assert!(
            verify(&of_bank).detail().contains("iss"),
            "another app's key signs for that app alone"
        );
        let late = Timestamp::from_second(NOW + 600).unwrap();
        let expired = super::verify(
            &sign(&header(shop), &claims(), shop_secret),
            &tenants,
            &mesh_key(),
            late,
        );
        assert!(expired.unwrap_err().detail().contains("exp"));
    }
}
