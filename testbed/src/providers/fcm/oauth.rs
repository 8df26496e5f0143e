//! Google's OAuth 2 token endpoint for service accounts (RFC 7523).

use std::collections::HashMap;
use std::sync::{OnceLock, PoisonError, RwLock};

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

use super::ServiceAccount;

const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// The values that clients put into `aud`, regardless of their `token_uri`.
const GOOGLE_AUDIENCES: [&str; 2] = [
    "https://oauth2.googleapis.com/token",
    "https://www.googleapis.com/oauth2/v4/token",
];

/// The scopes, each of which permits sending.
const SCOPES: [&str; 2] = [
    "https://www.googleapis.com/auth/firebase.messaging",
    "https://www.googleapis.com/auth/cloud-platform",
];

/// The maximum validity of an assertion, seconds.
const ASSERTION_LIFE_MAX_S: i64 = 3600;

/// Why an assertion was refused: OAuth's `error` and `error_description`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) error: &'static str,
    pub(crate) description: &'static str,
}

/// The registered accounts, and the access tokens that were issued to them.
#[derive(Debug)]
pub(crate) struct OAuth {
    accounts: HashMap<String, (ServiceAccount, DecodingKey)>,
    audiences: OnceLock<[String; 2]>,
    access: RwLock<HashMap<String, AccessToken>>,
    life_ms: i64,
}

#[derive(Debug)]
struct AccessToken {
    project: String,
    expires_ms: i64,
}

/// What an access token permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// It may send for the project.
    Yes,
    /// It is valid, but for another project.
    OtherProject,
    /// It is unknown or has expired.
    No,
}

#[derive(Clone, Deserialize)]
struct Claims {
    iss: String,
    scope: String,
    aud: String,
    iat: i64,
    exp: i64,
}

fn refused(error: &'static str, description: &'static str) -> Refused {
    Refused { error, description }
}

impl OAuth {
    pub(crate) fn new(accounts: &[ServiceAccount], life_ms: i64) -> anyhow::Result<Self> {
        let accounts = accounts
            .iter()
            .map(|account| {
                let key = DecodingKey::from_rsa_pem(account.public_key.as_bytes())?;
                Ok((account.client_email.clone(), (account.clone(), key)))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            accounts,
            audiences: OnceLock::new(),
            access: RwLock::default(),
            life_ms,
        })
    }

    /// Also accepts these values as `aud`. They are the endpoint's own addresses, which are known only after it listens.
    pub(crate) fn set_audiences(&self, audiences: [String; 2]) {
        self.audiences.get_or_init(|| audiences);
    }

    /// Answers a token request, an HTML form. Returns the new access token.
    pub(crate) fn grant(&self, form: &[u8], now_ms: i64) -> Result<String, Refused> {
        let (grant_type, assertion) = read_form(form);
        if grant_type.as_deref() != Some(GRANT_TYPE) {
            return Err(refused("unsupported_grant_type", "Invalid grant_type"));
        }
        let assertion = assertion.ok_or(refused("invalid_request", "Missing required parameter: assertion"))?;
        let project = self.verify(&assertion)?;
        let token = format!("ya29.c.{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        access.retain(|_, access| access.expires_ms > now_ms);
        access.insert(
            token.clone(),
            AccessToken {
                project,
                expires_ms: now_ms + self.life_ms,
            },
        );
        Ok(token)
    }

    fn verify(&self, assertion: &str) -> Result<String, Refused> {
        let unreadable = || refused("invalid_grant", "Invalid JWT: Failed to parse the assertion.");
        let key_id = jsonwebtoken::decode_header(assertion).map_err(|_| unreadable())?.kid;
        // The issuer is needed to find its key. Nothing in the token is trusted until the signature is checked below.
        let issuer = jsonwebtoken::dangerous::insecure_decode_claims::<Claims>(assertion)
            .map_err(|_| unreadable())?
            .iss;
        let (account, key) = self
            .accounts
            .get(&issuer)
            .ok_or(refused("invalid_grant", "Invalid grant: account not found"))?;
        let mut rules = Validation::new(Algorithm::RS256);
        rules.validate_aud = false;
        let wrong_key = key_id.is_some_and(|id| id != account.private_key_id);
        let claims = jsonwebtoken::decode::<Claims>(assertion, key, &rules)
            .ok()
            .filter(|_| !wrong_key)
            .ok_or(refused("invalid_grant", "Invalid JWT Signature."))?
            .claims;
        let own = self.audiences.get();
        if !GOOGLE_AUDIENCES.contains(&claims.aud.as_str()) && !own.is_some_and(|own| own.contains(&claims.aud)) {
            return Err(refused("invalid_grant", "Invalid JWT: Failed audience check."));
        }
        if claims.exp - claims.iat > ASSERTION_LIFE_MAX_S {
            return Err(refused(
                "invalid_grant",
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your \
                 iat and exp values in the JWT claim.",
            ));
        }
        if !claims.scope.split(' ').any(|scope| SCOPES.contains(&scope)) {
            return Err(refused(
                "invalid_scope",
                "Invalid OAuth scope or ID token audience provided.",
            ));
        }
        Ok(account.project_id.clone())
    }

    /// Whether this access token permits sending for the project.
    pub(crate) fn check(&self, token: &str, project: &str, now_ms: i64) -> Grant {
        match self.access.read().unwrap_or_else(PoisonError::into_inner).get(token) {
            Some(access) if access.expires_ms <= now_ms => Grant::No,
            Some(access) if access.project == project => Grant::Yes,
            Some(_) => Grant::OtherProject,
            None => Grant::No,
        }
    }

    pub(crate) fn revoke_all(&self) {
        self.access.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The fields `grant_type` and `assertion` of a form.
fn read_form(form: &[u8]) -> (Option<String>, Option<String>) {
    let (mut grant_type, mut assertion) = (None, None);
    let query = format!("http://form/?{}", String::from_utf8_lossy(form));
    if let Ok(url) = reqwest::Url::parse(&query) {
        for (name, value) in url.query_pairs() {
            match &*name {
                "grant_type" => grant_type = Some(value.into_owned()),
                "assertion" => assertion = Some(value.into_owned()),
                _ => {}
            }
        }
    }
    (grant_type, assertion)
}
