//! Provider tokens: the JWT in the `authorization` header of a push.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::Value;

use super::{ApnsKey, Environment, Reason};

/// How a provider token is parsed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum JwtMode {
    /// As Apple parses it: either alphabet of base64, padded or not; a raw or a DER signature; `iat` a number or a string,
    /// in seconds or milliseconds. Apple's own sample token needs all of it.
    #[default]
    Apple,
    /// As RFC 7515, 7518 and 7519 specify, parsed by the `jsonwebtoken` crate; ids have exactly ten characters.
    Strict,
}

/// A provider token of this age or older is refused, milliseconds.
const TOKEN_AGE_MAX_MS: i64 = 60 * 60 * 1000;

/// How far ahead of our clock a provider token may be, milliseconds. Apple documents no limit; this one is ours.
const TOKEN_AHEAD_MAX_MS: i64 = 5 * 60 * 1000;

/// The shortest time between two new provider tokens of a team, milliseconds.
const UPDATE_INTERVAL_MIN_MS: i64 = 20 * 60 * 1000;

/// The maximum number of cached tokens, more than any mesh uses at once. The cache is cleared when it is full.
const CACHED_TOKENS_MAX: usize = 10_000;

/// A registered key, which may sign for its team.
#[derive(Clone, Debug)]
pub struct ProviderKey {
    /// The key with its ids; only its public half is used.
    pub key: ApnsKey,
    /// The environment to which it is restricted; `None` means both, as for all keys before 2025.
    pub environment: Option<Environment>,
    /// The topics to which it is restricted; `None` means every topic of the team.
    pub topics: Option<Vec<String>>,
}

impl From<ApnsKey> for ProviderKey {
    fn from(key: ApnsKey) -> Self {
        Self {
            key,
            environment: None,
            topics: None,
        }
    }
}

/// A provider token whose signature has been checked.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) team: String,
    pub(crate) issued_ms: i64,
    pub(crate) signer: Arc<Signer>,
}

#[derive(Debug)]
pub(crate) struct Signer {
    point: [u8; 65],
    decoding: DecodingKey,
    pub(crate) environment: Option<Environment>,
    pub(crate) topics: Option<Vec<String>>,
}

impl Signer {
    /// Whether both may be used on one connection: their keys have the same environment and topics.
    pub(crate) fn related(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || (self.environment == other.environment && self.topics == other.topics)
    }
}

/// Checks provider tokens, and caches the valid ones by their exact bytes.
#[derive(Debug)]
pub(crate) struct Checker {
    mode: JwtMode,
    limits_updates: bool,
    signers: RwLock<HashMap<(String, String), Arc<Signer>>>,
    cache: RwLock<HashMap<Box<[u8]>, Arc<Verified>>>,
    updates: Mutex<HashMap<String, Updates>>,
}

/// The recent provider tokens of a team.
#[derive(Debug, Default)]
struct Updates {
    last_ms: i64,
    issued_ms: Vec<i64>,
}

impl Checker {
    pub(crate) fn new(mode: JwtMode, limits_updates: bool) -> Self {
        Self {
            mode,
            limits_updates,
            signers: RwLock::default(),
            cache: RwLock::default(),
            updates: Mutex::default(),
        }
    }

    pub(crate) fn register(&self, key: &ProviderKey) -> anyhow::Result<()> {
        let point = key.key.public_point()?;
        let signer = Signer {
            point,
            decoding: DecodingKey::from_ec_components(
                &BASE64_URL_SAFE_NO_PAD.encode(&point[1..33]),
                &BASE64_URL_SAFE_NO_PAD.encode(&point[33..]),
            )?,
            environment: key.environment,
            topics: key.topics.clone(),
        };
        let id = (key.key.team_id.clone(), key.key.key_id.clone());
        self.signers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, Arc::new(signer));
        Ok(())
    }

    pub(crate) fn revoke(&self, team_id: &str, key_id: &str) {
        self.signers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(team_id.to_owned(), key_id.to_owned()));
        self.cache.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The number of different tokens that it has accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.cache.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Checks the value of an `authorization` header, but not its age.
    pub(crate) fn check(&self, authorization: &[u8], now_ms: i64) -> Result<Arc<Verified>, Reason> {
        let token = bearer(authorization)?;
        let cached = self
            .cache
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(token)
            .cloned();
        if let Some(verified) = cached {
            return Ok(verified);
        }
        let verified = Arc::new(self.verify(token).ok_or(Reason::InvalidProviderToken)?);
        check_age(&verified, now_ms)?;
        self.count_update(&verified, now_ms)?;
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHED_TOKENS_MAX {
            cache.clear();
        }
        cache.insert(token.into(), Arc::clone(&verified));
        Ok(verified)
    }

    fn verify(&self, token: &[u8]) -> Option<Verified> {
        let token = std::str::from_utf8(token).ok()?;
        match self.mode {
            JwtMode::Apple => self.verify_leniently(token),
            JwtMode::Strict => self.verify_strictly(token),
        }
    }

    fn signer(&self, team: &str, key_id: &str) -> Option<Arc<Signer>> {
        self.signers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(team.to_owned(), key_id.to_owned()))
            .cloned()
    }

    fn verify_leniently(&self, token: &str) -> Option<Verified> {
        let (content, signature) = token.rsplit_once('.')?;
        let (header, claims) = content.split_once('.')?;
        let header: Value = serde_json::from_slice(&lenient_base64(header)?).ok()?;
        let claims: Value = serde_json::from_slice(&lenient_base64(claims)?).ok()?;
        if header.get("alg")?.as_str()? != "ES256" {
            return None;
        }
        let team = claims.get("iss")?.as_str()?;
        let signer = self.signer(team, header.get("kid")?.as_str()?)?;
        let signature = lenient_base64(signature)?;
        let algorithm = if signature.len() == 64 {
            &ECDSA_P256_SHA256_FIXED
        } else {
            &ECDSA_P256_SHA256_ASN1
        };
        UnparsedPublicKey::new(algorithm, signer.point)
            .verify(content.as_bytes(), &signature)
            .ok()?;
        let issued = match claims.get("iat")? {
            Value::String(text) => text.parse().ok()?,
            number => number.as_i64()?,
        };
        // Twelve digits must be milliseconds: as seconds they would be after the year 5138.
        let issued_ms = if issued >= 100_000_000_000 {
            issued
        } else {
            issued * 1000
        };
        Some(Verified {
            team: team.to_owned(),
            issued_ms,
            signer,
        })
    }

    fn verify_strictly(&self, token: &str) -> Option<Verified> {
        #[derive(Clone, Deserialize)]
        struct Claims {
            iss: String,
            iat: u32,
        }

        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_required_spec_claims(&["iss"]);
        rules.validate_exp = false;
        rules.validate_aud = false;
        let key_id = jsonwebtoken::decode_header(token).ok()?.kid?;
        // The team is needed to find the key. Nothing in the token is trusted until the signature is checked below.
        let team = jsonwebtoken::dangerous::insecure_decode_claims::<Claims>(token)
            .ok()?
            .iss;
        if key_id.len() != 10 || team.len() != 10 {
            return None;
        }
        let signer = self.signer(&team, &key_id)?;
        let claims = jsonwebtoken::decode::<Claims>(token, &signer.decoding, &rules)
            .ok()?
            .claims;
        Some(Verified {
            team: claims.iss,
            issued_ms: i64::from(claims.iat) * 1000,
            signer,
        })
    }

    /// Counts a token as an update of its team. Tokens with the same time of issue are the same update, whichever key signed
    /// them.
    fn count_update(&self, verified: &Verified, now_ms: i64) -> Result<(), Reason> {
        if !self.limits_updates {
            return Ok(());
        }
        let mut teams = self.updates.lock().unwrap_or_else(PoisonError::into_inner);
        let updates = teams.entry(verified.team.clone()).or_default();
        if updates.issued_ms.contains(&verified.issued_ms) {
            return Ok(());
        }
        if !updates.issued_ms.is_empty() && now_ms - updates.last_ms < UPDATE_INTERVAL_MIN_MS {
            return Err(Reason::TooManyProviderTokenUpdates);
        }
        updates.issued_ms.retain(|issued| now_ms - issued < TOKEN_AGE_MAX_MS);
        updates.issued_ms.push(verified.issued_ms);
        updates.last_ms = now_ms;
        Ok(())
    }
}

/// Checks that the token is neither too old nor from the future.
pub(crate) fn check_age(verified: &Verified, now_ms: i64) -> Result<(), Reason> {
    let age = now_ms - verified.issued_ms;
    if age >= TOKEN_AGE_MAX_MS {
        Err(Reason::ExpiredProviderToken)
    } else if age < -TOKEN_AHEAD_MAX_MS {
        Err(Reason::InvalidProviderToken)
    } else {
        Ok(())
    }
}

/// The token after the scheme `bearer`, which is case-insensitive.
fn bearer(authorization: &[u8]) -> Result<&[u8], Reason> {
    let (scheme, token) = authorization.split_at_checked(7).ok_or(Reason::MissingProviderToken)?;
    let token = token.trim_ascii();
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        Err(Reason::InvalidProviderToken)
    } else if token.is_empty() {
        Err(Reason::MissingProviderToken)
    } else {
        Ok(token)
    }
}

fn lenient_base64(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let alphabet = if text.contains(['+', '/']) {
        alphabet::STANDARD
    } else {
        alphabet::URL_SAFE
    };
    GeneralPurpose::new(&alphabet, config).decode(text).ok()
}
