//! Provider tokens (Apple: Establishing a token-based connection to APNs): ES256, one per team and key, used for most
//! of an hour and never changed more often than every 20 minutes.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use http::HeaderValue;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;
use shared::clock::Clock;

use crate::providers::BadCredential;

/// Apple refuses a token older than an hour; ten minutes are left for clocks that disagree.
const LIFE: Duration = Duration::from_mins(50);

/// Apple answers `TooManyProviderTokenUpdates` to a team that changes its token more often.
const LEAST_BETWEEN: Duration = Duration::from_mins(20);

const BAD_KEY: BadCredential = BadCredential::new("private_key", "must be a P-256 private key, PKCS#8 in PEM");

/// The current provider token of one team and key.
pub(super) struct ProviderToken {
    team_id: String,
    key_id: String,
    key: EncodingKey,
    clock: Clock,
    current: ArcSwap<Minted>,
    /// Serializes minting; readers never wait.
    minting: Mutex<()>,
}

/// A token, and since when.
pub(super) struct Minted {
    /// `authorization`, marked sensitive.
    pub(super) header: HeaderValue,
    issued: Timestamp,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    iat: i64,
}

impl ProviderToken {
    /// Reads the key and signs a first token.
    pub(super) fn new(team_id: String, key_id: String, pem: &str, clock: Clock) -> Result<Self, BadCredential> {
        let key = EncodingKey::from_ec_pem(pem.as_bytes()).map_err(|_| BAD_KEY)?;
        let first = mint(&team_id, &key_id, &key, clock.now())?;
        Ok(Self {
            team_id,
            key_id,
            key,
            clock,
            current: ArcSwap::from_pointee(first),
            minting: Mutex::new(()),
        })
    }

    /// Whether `pem` holds the key that signs here.
    pub(super) fn is_of(&self, pem: &str) -> bool {
        EncodingKey::from_ec_pem(pem.as_bytes()).is_ok_and(|key| key.as_bytes() == self.key.as_bytes())
    }

    /// The token to use now; a new one when the former is about to become too old.
    pub(super) fn current(&self) -> Arc<Minted> {
        let current = self.current.load_full();
        if self.age(&current) < LIFE {
            current
        } else {
            self.renew(&current)
        }
    }

    /// What to use after APNs called `refused` expired: another token, if there is one or Apple allows one already,
    /// else how long it takes until it does.
    pub(super) fn after_expired(&self, refused: &Arc<Minted>) -> Result<Arc<Minted>, Duration> {
        let current = self.current.load_full();
        if !Arc::ptr_eq(&current, refused) {
            return Ok(current);
        }
        match self.wait_to_change() {
            Duration::ZERO => Ok(self.renew(&current)),
            wait => Err(wait),
        }
    }

    /// How long until Apple lets the token be changed.
    pub(super) fn wait_to_change(&self) -> Duration {
        LEAST_BETWEEN.saturating_sub(self.age(&self.current.load()))
    }

    /// Counts a token from the future as old, so that a clock set back does not freeze a token for ever.
    fn age(&self, minted: &Minted) -> Duration {
        self.clock.now().duration_since(minted.issued).unsigned_abs()
    }

    fn renew(&self, old: &Arc<Minted>) -> Arc<Minted> {
        let _one = self.minting.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load_full();
        if !Arc::ptr_eq(&current, old) {
            return current;
        }
        // The key signed once already, so this cannot fail for a reason of the key's.
        let Ok(new) = mint(&self.team_id, &self.key_id, &self.key, self.clock.now()) else {
            return current;
        };
        let new = Arc::new(new);
        self.current.store(new.clone());
        new
    }
}

/// RFC 7515 and 7518 to the letter: base64url without padding, the signature as r and s.
fn mint(team_id: &str, key_id: &str, key: &EncodingKey, now: Timestamp) -> Result<Minted, BadCredential> {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(key_id.to_owned());
    let claims = Claims {
        iss: team_id,
        iat: now.as_second(),
    };
    let token = encode(&header, &claims, key).map_err(|_| BAD_KEY)?;
    let mut header = HeaderValue::try_from(format!("bearer {token}")).map_err(|_| BAD_KEY)?;
    header.set_sensitive(true);
    Ok(Minted { header, issued: now })
}

impl fmt::Debug for ProviderToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderToken")
            .field("team_id", &self.team_id)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    /// Made for this test with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`.
    const KEY: &str = include_str!("../testdata/p256.pem");

    fn token_at(seconds: &Arc<AtomicI64>) -> ProviderToken {
        let seconds = seconds.clone();
        let clock = Clock::from_fn(move || Timestamp::from_second(seconds.load(Ordering::Relaxed)).unwrap());
        ProviderToken::new("TEAM123456".into(), "KEY1234567".into(), KEY, clock).unwrap()
    }

    #[test]
    fn a_token_serves_fifty_minutes() {
        let now = Arc::new(AtomicI64::new(1_800_000_000));
        let token = token_at(&now);
        let first = token.current();
        now.fetch_add(50 * 60 - 1, Ordering::Relaxed);
        assert!(Arc::ptr_eq(&first, &token.current()));
        now.fetch_add(1, Ordering::Relaxed);
        let second = token.current();
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &token.current()));
    }

    #[test]
    fn an_expired_token_is_replaced_only_when_apple_allows_it() {
        let now = Arc::new(AtomicI64::new(1_800_000_000));
        let token = token_at(&now);
        let first = token.current();
        now.fetch_add(60, Ordering::Relaxed);
        assert_eq!(token.after_expired(&first).err(), Some(Duration::from_mins(19)));
        now.fetch_add(19 * 60, Ordering::Relaxed);
        let second = token.after_expired(&first).ok().unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        let again = token.after_expired(&first).ok().unwrap();
        assert!(
            Arc::ptr_eq(&second, &again),
            "a late answer to the old token does not replace the new one"
        );
    }

    #[test]
    fn a_clock_set_back_does_not_freeze_a_token() {
        let now = Arc::new(AtomicI64::new(1_800_000_000));
        let token = token_at(&now);
        let first = token.current();
        now.fetch_sub(3600, Ordering::Relaxed);
        assert!(!Arc::ptr_eq(&first, &token.current()));
    }

    #[test]
    fn the_token_is_hidden_and_well_formed() {
        let token = token_at(&Arc::new(AtomicI64::new(1_800_000_000)));
        let minted = token.current();
        assert!(minted.header.is_sensitive());
        let text = minted.header.to_str().unwrap().strip_prefix("bearer ").unwrap();
        let parts: Vec<&str> = text.split('.').collect();
        assert_eq!(parts.len(), 3);
        assert!(!text.contains(['=', '+', '/']));
        assert_eq!(parts[2].len(), 86, "r and s, 64 bytes in base64url");
        assert!(!format!("{token:?}{:?}", minted.header).contains(parts[2]));
        for pem in [
            "",
            "nonsense",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ] {
            let clock = Clock::system();
            assert!(ProviderToken::new("TEAM123456".into(), "KEY1234567".into(), pem, clock).is_err());
        }
    }
}
