//! Provider tokens (Apple: Establishing a token-based connection to APNs): ES256, one per team and key, changed no more
//! often than every 20 minutes and no less than every 60.
//!
//! Apple counts the token changes of a team across all its workers. So time is divided into slots that are the same for
//! all workers, the `iat` of a token is the start of its slot, and signatures are deterministic (RFC 6979): all workers
//! of all regions make the same bytes, also after a restart or while cut off, without communication.
//!
//! The token of a slot comes into use when it is 5 minutes old, and the next one 25 minutes later. A worker that used a
//! token for the first time in the last 20 of these minutes keeps it until it is 50 minutes old:
//!
//! ```text
//! age in minutes   0    5        10                     30                  50   55   60
//!                  |    | first  | first use keeps it   | kept              |    |    | Apple refuses it
//!                  |    | use    | until 50             |                   | given back to at the latest
//! ```
//!
//! So the next token of a worker never follows in less than 20 minutes: after a first use before 10 it follows at 30 or
//! later, after a first use between 10 and 30 it follows at 50 or later. Any rule without communication has a moment
//! before which a worker that remembers nothing begins with one token, and after which another worker begins with the
//! next. If two workers of an idle team begin to push on both sides of that moment, Apple refuses the second token, and the
//! second worker goes back to the first one ([`ProviderToken::former`]): it is at most 55 minutes old then, and valid.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::HeaderValue;
use p256::{
    ecdsa::{Signature, SigningKey, signature::Signer},
    pkcs8::DecodePrivateKey,
};
use serde_json::json;
use shared::clock::Clock;

use crate::providers::BadCredential;

/// Seconds from one token to the next. The former version of Peal has every second of these tokens, at the same times.
const TOKEN_SLOT_S: i64 = 25 * 60;

/// Seconds after the start of a slot at which its token comes into use. Apple refuses tokens older than an hour or from
/// the future, so a clock may be wrong by this much either way.
const MAX_CLOCK_ERROR_S: i64 = 5 * 60;

/// Seconds for which Apple answers `TooManyProviderTokenUpdates` to a team that changed its token.
const MIN_BETWEEN_CHANGES_S: i64 = 20 * 60;

/// Age in seconds until which a token that was first used late is kept.
const MAX_KEPT_AGE_S: i64 = MAX_CLOCK_ERROR_S + TOKEN_SLOT_S + MIN_BETWEEN_CHANGES_S;

/// Age in seconds at which Apple refuses a token.
const EXPIRED_AGE_S: i64 = 60 * 60;

const BAD_KEY: BadCredential = BadCredential::new("private_key", "must be a P-256 private key, PKCS#8 in PEM");

/// The provider tokens of one team and key.
pub(super) struct ProviderToken {
    team_id: String,
    key_id: String,
    key: SigningKey,
    clock: Clock,
    current: ArcSwap<Minted>,
    /// Start of the earliest slot whose token Apple would not call expired. Later than the clock's own slot only if the
    /// clock is slow.
    earliest: AtomicI64,
}

/// A signed token, and its slot.
pub(super) struct Minted {
    /// The `authorization` header, marked sensitive.
    pub(super) header: HeaderValue,
    /// The claim `iat`: the start of the slot, in seconds since 1970.
    issued: i64,
    /// Until when it is used, although the next one is in use by the clock; 0 before its first use.
    used_until: AtomicI64,
}

impl ProviderToken {
    /// Reads the key and signs a first token.
    pub(super) fn new(team_id: String, key_id: String, pem: &str, clock: Clock) -> Result<Self, BadCredential> {
        let key = SigningKey::from_pkcs8_pem(pem).map_err(|_| BAD_KEY)?;
        let first = mint(&team_id, &key_id, &key, slot(&clock))?;
        Ok(Self {
            team_id,
            key_id,
            key,
            clock,
            current: ArcSwap::from_pointee(first),
            earliest: AtomicI64::new(i64::MIN),
        })
    }

    /// Whether `pem` is the key that signs these tokens.
    pub(super) fn is_of(&self, pem: &str) -> bool {
        SigningKey::from_pkcs8_pem(pem).is_ok_and(|key| key == self.key)
    }

    /// The token to use now.
    pub(super) fn current(&self) -> Arc<Minted> {
        let now = self.clock.now().as_second();
        let earliest = self.earliest.load(Ordering::Relaxed);
        let newest = slot(&self.clock).max(earliest);
        let current = self.current.load_full();
        let is_kept =
            || (earliest..newest).contains(&current.issued) && now < current.used_until.load(Ordering::Relaxed);
        if current.issued == newest || is_kept() {
            current.use_at(now);
            return current;
        }
        let new = self.replace(newest).unwrap_or(current);
        new.use_at(now);
        new
    }

    /// Mints and stores the token of another slot. Two threads that do so at the same time make the same token.
    fn replace(&self, issued: i64) -> Option<Arc<Minted>> {
        // The key has signed before, so it cannot be the cause of a failure.
        let new = Arc::new(mint(&self.team_id, &self.key_id, &self.key, issued).ok()?);
        self.current.store(new.clone());
        Some(new)
    }

    /// The token to go back to after APNs answered that `refused` followed the former one too soon: some worker of the team
    /// uses the former one. `None` if it is no longer valid.
    pub(super) fn former(&self, refused: &Minted) -> Option<Arc<Minted>> {
        let now = self.clock.now().as_second();
        let issued = refused.issued - TOKEN_SLOT_S;
        let age = now - issued;
        if age >= EXPIRED_AGE_S - MAX_CLOCK_ERROR_S || issued < self.earliest.load(Ordering::Relaxed) {
            return None;
        }
        let current = self.current.load_full();
        if current.issued < refused.issued {
            return Some(current);
        }
        let former = self.replace(issued)?;
        let until = if age < MAX_KEPT_AGE_S {
            MAX_KEPT_AGE_S
        } else {
            EXPIRED_AGE_S - MAX_CLOCK_ERROR_S
        };
        former.used_until.store(issued + until, Ordering::Relaxed);
        Some(former)
    }

    /// The token to use after APNs called `refused` expired: by Apple's clock it is an hour old, so that workers with a
    /// correct clock use the token after the next. This adds no change of the team's token.
    pub(super) fn after_expired(&self, refused: &Minted) -> Arc<Minted> {
        self.earliest
            .fetch_max(refused.issued + 2 * TOKEN_SLOT_S, Ordering::Relaxed);
        self.current()
    }

    /// Records that APNs called `refused` invalid. If its slot is later than the clock's own, the clock was right, and
    /// its token is used again.
    pub(super) fn learn_invalid(&self, refused: &Minted) {
        if refused.issued > slot(&self.clock) {
            self.earliest.store(i64::MIN, Ordering::Relaxed);
        }
    }

    /// How long until Apple accepts the current token from every worker, however recently one used the previous token.
    pub(super) fn wait_to_change(&self) -> Duration {
        let in_use_from = slot(&self.clock) + MAX_CLOCK_ERROR_S;
        let left = in_use_from + MIN_BETWEEN_CHANGES_S - self.clock.now().as_second();
        Duration::from_secs(u64::try_from(left).unwrap_or(0))
    }
}

impl Minted {
    /// Notes the first use.
    fn use_at(&self, now: i64) {
        let next = self.issued + TOKEN_SLOT_S + MAX_CLOCK_ERROR_S;
        let until = if now > next - MIN_BETWEEN_CHANGES_S {
            self.issued + MAX_KEPT_AGE_S
        } else {
            next
        };
        // An error says that it was used before.
        let _used = self
            .used_until
            .compare_exchange(0, until, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The start of the slot whose token is used now, in seconds since 1970.
fn slot(clock: &Clock) -> i64 {
    let now = clock.now().as_second() - MAX_CLOCK_ERROR_S;
    now - now.rem_euclid(TOKEN_SLOT_S)
}

/// A JWT by RFC 7515 and 7518: base64url without padding, the signature as r and s. Workers rely on equal bytes, so the
/// order of the members must not change.
fn mint(team_id: &str, key_id: &str, key: &SigningKey, issued: i64) -> Result<Minted, BadCredential> {
    let part = |json: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
    let header = part(json!({ "alg": "ES256", "kid": key_id }));
    let claims = part(json!({ "iat": issued, "iss": team_id }));
    let content = format!("{header}.{claims}");
    let signature: Signature = key.try_sign(content.as_bytes()).map_err(|_| BAD_KEY)?;
    let signature = BASE64_URL_SAFE_NO_PAD.encode(signature.to_bytes());
    let mut header = HeaderValue::try_from(format!("bearer {content}.{signature}")).map_err(|_| BAD_KEY)?;
    header.set_sensitive(true);
    Ok(Minted {
        header,
        issued,
        used_until: AtomicI64::new(0),
    })
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
    use jiff::Timestamp;
    use jsonwebtoken::{Algorithm, DecodingKey, Validation};
    use p256::pkcs8::{EncodePublicKey, LineEnding};

    use super::*;

    /// Made for this test with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`.
    const KEY: &str = include_str!("../testdata/p256.pem");

    /// The start of a slot.
    const BEGIN: i64 = 1_200_000 * TOKEN_SLOT_S;

    fn token_at(seconds: &Arc<AtomicI64>) -> ProviderToken {
        let seconds = seconds.clone();
        let clock = Clock::from_fn(move || Timestamp::from_second(seconds.load(Ordering::Relaxed)).unwrap());
        ProviderToken::new("TEAM123456".into(), "KEY1234567".into(), KEY, clock).unwrap()
    }

    fn set(seconds: &Arc<AtomicI64>, minutes: i64) {
        seconds.store(BEGIN + 60 * minutes, Ordering::Relaxed);
    }

    fn text(minted: &Minted) -> &str {
        minted.header.to_str().unwrap().strip_prefix("bearer ").unwrap()
    }

    #[test]
    fn all_workers_make_the_same_token_within_a_slot() {
        let mine = Arc::new(AtomicI64::new(BEGIN + MAX_CLOCK_ERROR_S));
        let first = token_at(&mine);
        let token = first.current();
        for minutes in [5, 20, 29] {
            let started_then = Arc::new(AtomicI64::new(0));
            set(&started_then, minutes);
            assert_eq!(text(&token_at(&started_then).current()), text(&token), "{minutes}");
        }
        set(&mine, 29);
        assert!(Arc::ptr_eq(&token, &first.current()), "minted once in a slot");
        for minutes in [4, 30] {
            set(&mine, minutes);
            assert_ne!(text(&first.current()), text(&token), "{minutes}");
        }
        // Made by Python's cryptography with `deterministic_signing` from the same key and content. Every version of
        // Peal must make it.
        assert_eq!(
            text(&token),
            "eyJhbGciOiJFUzI1NiIsImtpZCI6IktFWTEyMzQ1NjcifQ.eyJpYXQiOjE4MDAwMDAwMDAsImlzcyI6IlRFQU0xMjM0NTYifQ.\
             4xO45IocWIvTg08kefEywYiUL0qsMBDtUJZkVDLOiTJBMHkPSeWoBqwqWS1rUwuYWn9CMRAe-R3Ez4_RorqPCQ"
        );
    }

    #[test]
    fn another_library_verifies_the_token() {
        let token = token_at(&Arc::new(AtomicI64::new(BEGIN + MAX_CLOCK_ERROR_S)));
        let public = p256::PublicKey::from(token.key.verifying_key());
        let public = public.to_public_key_pem(LineEnding::LF).unwrap();
        let key = DecodingKey::from_ec_pem(public.as_bytes()).unwrap();
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_required_spec_claims(&["iss"]);
        rules.validate_exp = false;
        let read = jsonwebtoken::decode::<serde_json::Value>(text(&token.current()), &key, &rules).unwrap();
        assert_eq!(read.header.kid.as_deref(), Some("KEY1234567"));
        assert_eq!(read.claims, json!({ "iss": "TEAM123456", "iat": BEGIN }));
    }

    #[test]
    fn an_expired_token_is_replaced_by_the_one_that_correct_clocks_use() {
        let slow = Arc::new(AtomicI64::new(0));
        set(&slow, 30);
        let token = token_at(&slow);
        let refused = token.current();
        let next = token.after_expired(&refused);
        let right = Arc::new(AtomicI64::new(0));
        set(&right, 30 + 50);
        assert_eq!(text(&next), text(&token_at(&right).current()));
        let again = token.after_expired(&refused);
        assert!(
            Arc::ptr_eq(&next, &again),
            "a late answer to the old token changes nothing"
        );
        set(&slow, 60);
        assert!(
            Arc::ptr_eq(&next, &token.current()),
            "it stays in use when its own slot begins"
        );
    }

    /// Apple's rule, as the simulator of the testbed has it: a token that it has not seen is refused within 20 minutes of the
    /// last one. Times are in seconds.
    #[derive(Default)]
    struct Apple {
        seen: Vec<i64>,
        changed_at: Option<i64>,
        refusals: usize,
    }

    impl Apple {
        fn takes(&mut self, token: &Minted, now: i64) -> bool {
            let age = now - token.issued;
            assert!(
                (MAX_CLOCK_ERROR_S..=EXPIRED_AGE_S - MAX_CLOCK_ERROR_S).contains(&age),
                "{age}"
            );
            if self.seen.contains(&token.issued) {
                return true;
            }
            if self.changed_at.is_some_and(|at| now - at < MIN_BETWEEN_CHANGES_S) {
                self.refusals += 1;
                return false;
            }
            self.seen.push(token.issued);
            self.changed_at = Some(now);
            true
        }

        /// Sends one push, and once more with the former token if this one is refused.
        fn push(&mut self, worker: &ProviderToken, now: i64) -> bool {
            let token = worker.current();
            self.takes(&token, now) || worker.former(&token).is_some_and(|former| self.takes(&former, now))
        }
    }

    #[test]
    fn a_worker_changes_its_token_at_most_once_in_20_minutes_however_late_it_begins() {
        for first in 0..=30 {
            for gap in [1, 7, 24, 26, 49, 51, 130] {
                let now = Arc::new(AtomicI64::new(0));
                set(&now, first);
                let worker = token_at(&now);
                let mut apple = Apple::default();
                for push in 0..(180 / gap).max(5) {
                    set(&now, first + push * gap);
                    assert!(apple.push(&worker, now.load(Ordering::Relaxed)));
                }
                assert_eq!(apple.refusals, 0, "first push at {first}, then every {gap} minutes");
                assert!(apple.seen.len() >= 3, "{:?}", apple.seen);
            }
        }
    }

    #[test]
    fn workers_that_begin_at_any_time_deliver_with_a_token_of_the_team() {
        // Each worker pushes at a time and a pace of its own; every fifth start is another process without a memory.
        for seed in 0..40_i64 {
            let now = Arc::new(AtomicI64::new(0));
            set(&now, 0);
            let mut workers: Vec<_> = (0..4).map(|_| token_at(&now)).collect();
            let mut apple = Apple::default();
            for minute in 0..240 {
                set(&now, minute);
                for (nth, worker) in (1..).zip(&mut workers) {
                    let draw = (seed * 7919 + minute * 104_729 + nth * 1_299_709).rem_euclid(97);
                    if draw < seed.rem_euclid(20) + nth {
                        if draw % 5 == 0 {
                            *worker = token_at(&now);
                        }
                        assert!(
                            apple.push(worker, now.load(Ordering::Relaxed)),
                            "seed {seed}, minute {minute}, worker {nth}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_refused_change_goes_back_to_the_former_token_until_both_are_old_enough() {
        let (early, late) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
        set(&early, 29);
        set(&late, 31);
        let (first, second) = (token_at(&early), token_at(&late));
        let (used, refused) = (first.current(), second.current());
        assert_ne!(text(&used), text(&refused));
        let former = second.former(&refused).unwrap();
        assert_eq!(text(&former), text(&used));
        let again = second.former(&refused).unwrap();
        assert!(
            Arc::ptr_eq(&former, &again),
            "a late answer to the refused token changes nothing"
        );
        for minutes in [32, 49] {
            set(&early, minutes);
            set(&late, minutes);
            assert_eq!(text(&first.current()), text(&used), "{minutes}");
            assert_eq!(text(&second.current()), text(&used), "{minutes}");
        }
        set(&early, 50);
        set(&late, 50);
        assert_eq!(text(&first.current()), text(&refused));
        assert_eq!(text(&second.current()), text(&refused));
        assert!(first.former(&used).is_none(), "an hour old");
    }

    #[test]
    fn a_token_that_was_too_new_is_replaced_by_the_one_of_the_own_slot() {
        let now = Arc::new(AtomicI64::new(0));
        set(&now, 30);
        let token = token_at(&now);
        let own = token.current();
        let next = token.after_expired(&own);
        token.learn_invalid(&own);
        assert!(
            Arc::ptr_eq(&next, &token.current()),
            "a late answer to the old token changes nothing"
        );
        token.learn_invalid(&next);
        assert_eq!(token.current().issued, own.issued);
    }

    #[test]
    fn a_token_follows_a_clock_that_is_set_back() {
        let now = Arc::new(AtomicI64::new(BEGIN));
        let token = token_at(&now);
        let first = token.current();
        set(&now, -60);
        assert!(token.current().issued < first.issued);
    }

    #[test]
    fn the_wait_after_a_change_ends_when_every_worker_has_changed() {
        let now = Arc::new(AtomicI64::new(0));
        set(&now, 5);
        let token = token_at(&now);
        assert_eq!(token.wait_to_change(), Duration::from_mins(20));
        set(&now, 26);
        assert_eq!(token.wait_to_change(), Duration::ZERO);
        set(&now, 31);
        assert_eq!(token.wait_to_change(), Duration::from_mins(19));
    }

    #[test]
    fn the_token_is_hidden_and_a_bad_key_refused() {
        let token = token_at(&Arc::new(AtomicI64::new(BEGIN)));
        let minted = token.current();
        assert!(minted.header.is_sensitive());
        let signature = text(&minted).rsplit('.').next().unwrap();
        assert_eq!(signature.len(), 86, "r and s, 64 bytes in base64url");
        assert!(!format!("{token:?}{:?}", minted.header).contains(signature));
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
