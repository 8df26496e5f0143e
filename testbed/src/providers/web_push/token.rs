//! VAPID tokens (RFC 8292): the keys of apps, and the check of the `authorization` header.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use anyhow::Context;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::Deserialize;

use super::Reason;

/// Seconds from now until the latest expiry of a token (RFC 8292, section 2).
const EXPIRY_MAX_S: i64 = 24 * 60 * 60;

/// The maximum number of cached tokens. The cache is cleared when it is full.
const CACHED_TOKENS_MAX: usize = 10_000;

/// An app's VAPID key.
#[derive(Clone)]
pub struct VapidKey {
    /// The private key, PEM of PKCS#8, curve P-256.
    pub pem: String,
    /// The public key as `applicationServerKey` has it: base64url of 65 bytes.
    pub public: String,
}

impl VapidKey {
    /// Generates a key.
    ///
    /// # Errors
    /// When no random bytes can be had.
    pub fn generate() -> anyhow::Result<Self> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("generating a VAPID key")?;
        let pem = pair.serialize_pem();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair.serialize_der())?;
        Ok(Self {
            pem,
            public: BASE64_URL_SAFE_NO_PAD.encode(pair.public_key()),
        })
    }
}

impl std::fmt::Debug for VapidKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VapidKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Claims {
    exp: i64,
    sub: String,
}

/// Checks tokens, and caches the valid ones.
#[derive(Debug, Default)]
pub(super) struct Checker {
    /// From header and origin to the expiry in seconds and the key.
    cache: RwLock<HashMap<(String, String), (i64, String)>>,
}

impl Checker {
    /// The public key that signed the token in `header`, for a request to `origin`.
    pub(super) fn check(&self, header: &str, origin: &str, now_s: i64) -> Result<String, Reason> {
        let cached = (header.to_owned(), origin.to_owned());
        let known = self
            .cache
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&cached)
            .cloned();
        let (expires_s, key) = match known {
            Some(known) => known,
            None => verify(header, origin)?,
        };
        if expires_s <= now_s || expires_s > now_s + EXPIRY_MAX_S {
            return Err(Reason::BadJwtToken);
        }
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHED_TOKENS_MAX {
            cache.clear();
        }
        cache.insert(cached, (expires_s, key.clone()));
        Ok(key)
    }
}

/// The expiry and the key of a token that was signed for `origin`.
fn verify(header: &str, origin: &str) -> Result<(i64, String), Reason> {
    let (scheme, parameters) = header.split_once(' ').ok_or(Reason::BadAuthorizationHeader)?;
    let parameter = |name: &str| {
        let mut parameters = parameters.split(',').filter_map(|part| part.trim().split_once('='));
        parameters
            .find(|(found, _)| *found == name)
            .map(|(_, value)| value.trim_matches('"'))
    };
    let (Some(token), Some(key), true) = (parameter("t"), parameter("k"), scheme.eq_ignore_ascii_case("vapid")) else {
        return Err(Reason::BadAuthorizationHeader);
    };
    let point = BASE64_URL_SAFE_NO_PAD
        .decode(key)
        .map_err(|_| Reason::BadAuthorizationHeader)?;
    if point.len() != 65 || point[0] != 4 {
        return Err(Reason::BadAuthorizationHeader);
    }
    let (x, y) = point[1..].split_at(32);
    let [x, y] = [x, y].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
    let decoding = DecodingKey::from_ec_components(&x, &y).map_err(|_| Reason::BadJwtToken)?;
    let mut rules = Validation::new(Algorithm::ES256);
    rules.set_audience(&[origin]);
    rules.set_required_spec_claims(&["aud", "exp", "sub"]);
    // Against the clock at each use, because valid tokens are cached.
    rules.validate_exp = false;
    let token = jsonwebtoken::decode::<Claims>(token, &decoding, &rules).map_err(|_| Reason::BadJwtToken)?;
    // Apple: the subject is a URL or mailto:.
    let sub = &token.claims.sub;
    if !sub.starts_with("https://") && !sub.strip_prefix("mailto:").is_some_and(|mailbox| mailbox.contains('@')) {
        return Err(Reason::BadJwtToken);
    }
    Ok((token.claims.exp, key.to_owned()))
}
