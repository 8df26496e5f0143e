//! Tokens by which push services know an app (RFC 8292: VAPID): ES256, one per app and push service.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{EcdsaKeyPair, KeyPair},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::HeaderValue;
use serde_json::json;
use shared::clock::Clock;

/// Seconds for which a token is valid. RFC 8292, section 2, allows 24 hours; half of it leaves room for clocks that are wrong.
const TOKEN_LIFE_S: i64 = 12 * 60 * 60;

/// Age in seconds at which a token is replaced.
const RENEW_AT_AGE_S: i64 = TOKEN_LIFE_S / 2;

/// Push services whose tokens are kept. Browsers have four; endpoints come from users, so somebody may register many.
const MAX_KEPT: usize = 64;

/// Characters of the public key that name it in metrics: 16 bytes of it.
const NAME_CHARACTERS: usize = 22;

/// The tokens of one app.
pub(super) struct Vapid {
    key: EcdsaKeyPair,
    /// In base64url, as browsers have it in `applicationServerKey`.
    public: String,
    subject: String,
    clock: Clock,
    /// By origin.
    minted: Mutex<HashMap<String, Minted>>,
}

struct Minted {
    header: HeaderValue,
    /// Seconds since 1970.
    issued: i64,
}

impl Vapid {
    pub(super) fn new(key: EcdsaKeyPair, subject: String, clock: Clock) -> Self {
        Self {
            public: BASE64_URL_SAFE_NO_PAD.encode(key.public_key()),
            key,
            subject,
            clock,
            minted: Mutex::default(),
        }
    }

    /// Names the key; no secret.
    pub(super) fn name(&self) -> &str {
        &self.public[..NAME_CHARACTERS]
    }

    /// The `authorization` header for a push service, marked sensitive. `origin` is its scheme, host, and port if it is not
    /// that of the scheme (RFC 6454, section 6.1).
    ///
    /// `None` if the key cannot sign.
    pub(super) fn header(&self, origin: &str) -> Option<HeaderValue> {
        let now = self.clock.now().as_second();
        let mut minted = self.minted();
        if let Some(token) = minted.get(origin).filter(|token| token.is_fresh(now)) {
            return Some(token.header.clone());
        }
        let header = self.mint(origin, now)?;
        if minted.len() >= MAX_KEPT {
            minted.clear();
        }
        let token = Minted {
            header: header.clone(),
            issued: now,
        };
        minted.insert(origin.to_owned(), token);
        Some(header)
    }

    /// Drops the token for a push service that refused it.
    pub(super) fn refused(&self, origin: &str) {
        self.minted().remove(origin);
    }

    /// A JWT by RFC 7515 and 7518: base64url without padding, the signature as r and s.
    fn mint(&self, origin: &str, now: i64) -> Option<HeaderValue> {
        let part = |json: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
        let header = part(json!({ "typ": "JWT", "alg": "ES256" }));
        let claims = part(json!({ "aud": origin, "exp": now + TOKEN_LIFE_S, "sub": self.subject }));
        let content = format!("{header}.{claims}");
        let signature = self.key.sign(&SystemRandom::new(), content.as_bytes()).ok()?;
        let signature = BASE64_URL_SAFE_NO_PAD.encode(signature);
        let mut header = HeaderValue::try_from(format!("vapid t={content}.{signature}, k={}", self.public)).ok()?;
        header.set_sensitive(true);
        Some(header)
    }

    fn minted(&self) -> MutexGuard<'_, HashMap<String, Minted>> {
        self.minted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Minted {
    /// A clock that was set back makes a token look as if it came from the future.
    fn is_fresh(&self, now: i64) -> bool {
        (0..RENEW_AT_AGE_S).contains(&(now - self.issued))
    }
}

impl fmt::Debug for Vapid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vapid")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    };

    use jiff::Timestamp;
    use jsonwebtoken::{Algorithm, DecodingKey, Validation};
    use shared::provider::web_push::Credential;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn vapid(seconds: &Arc<AtomicI64>) -> Vapid {
        let credential = Credential {
            subject: "mailto:ops@example.com".into(),
            private_key: include_str!("../testdata/p256.pem").to_owned().into(),
        };
        let seconds = seconds.clone();
        let clock = Clock::from_fn(move || Timestamp::from_second(seconds.load(Ordering::Relaxed)).unwrap());
        Vapid::new(credential.signing_key().unwrap(), credential.subject, clock)
    }

    fn parts(header: &HeaderValue) -> (String, String) {
        let text = header.to_str().unwrap();
        let (token, key) = text.strip_prefix("vapid t=").unwrap().split_once(", k=").unwrap();
        (token.to_owned(), key.to_owned())
    }

    #[test]
    fn another_library_verifies_the_token_with_the_key_beside_it() {
        let vapid = vapid(&Arc::new(AtomicI64::new(NOW)));
        let header = vapid.header("https://push.example.net").unwrap();
        assert!(header.is_sensitive());
        let (token, public) = parts(&header);
        let point = BASE64_URL_SAFE_NO_PAD.decode(&public).unwrap();
        assert_eq!((point.len(), point[0]), (65, 4));
        let (x, y) = point[1..].split_at(32);
        let [x, y] = [x, y].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
        let key = DecodingKey::from_ec_components(&x, &y).unwrap();
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_audience(&["https://push.example.net"]);
        rules.validate_exp = false;
        let read = jsonwebtoken::decode::<serde_json::Value>(&token, &key, &rules).unwrap();
        assert_eq!(
            read.claims,
            json!({ "aud": "https://push.example.net", "exp": NOW + 12 * 3600, "sub": "mailto:ops@example.com" })
        );
        assert!(public.starts_with(vapid.name()));
    }

    #[test]
    fn a_token_is_signed_once_for_each_push_service_and_renewed_half_way() {
        let seconds = Arc::new(AtomicI64::new(NOW));
        let vapid = vapid(&seconds);
        let first = vapid.header("https://one.example").unwrap();
        let other = vapid.header("https://other.example").unwrap();
        assert_ne!(first, other);
        seconds.store(NOW + RENEW_AT_AGE_S - 1, Ordering::Relaxed);
        assert_eq!(vapid.header("https://one.example").unwrap(), first);
        seconds.store(NOW + RENEW_AT_AGE_S, Ordering::Relaxed);
        let second = vapid.header("https://one.example").unwrap();
        assert_ne!(second, first);
        seconds.store(NOW, Ordering::Relaxed);
        assert_ne!(
            vapid.header("https://one.example").unwrap(),
            second,
            "the clock was set back"
        );
        assert_eq!(vapid.header("https://other.example").unwrap(), other);
        vapid.refused("https://other.example");
        assert_ne!(vapid.header("https://other.example").unwrap(), other);
    }

    #[test]
    fn many_push_services_do_not_fill_the_memory() {
        let vapid = vapid(&Arc::new(AtomicI64::new(NOW)));
        for n in 0..3 * MAX_KEPT {
            vapid.header(&format!("https://{n}.example")).unwrap();
            assert!(vapid.minted().len() <= MAX_KEPT);
        }
    }

    #[test]
    fn debug_output_hides_tokens() {
        let vapid = vapid(&Arc::new(AtomicI64::new(NOW)));
        let header = vapid.header("https://push.example.net").unwrap();
        let shown = format!("{vapid:?} {header:?}");
        assert!(!shown.contains("eyJ"), "{shown}");
    }
}
