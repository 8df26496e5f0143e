//! Signatures of what is posted to receivers, by the rules of [Standard Webhooks
//! 1.0](https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md): HMAC-SHA256 over the
//! id, the time and the body, in the header `webhook-signature`.

use std::fmt;

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{invalid::Invalid, secret::Secret};

/// What a secret begins with, before its bytes in base64.
const SECRET_PREFIX: &str = "whsec_";

/// Bytes that a secret may have.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Bytes of a secret that Peal makes.
const NEW_SECRET_BYTES: usize = 32;

/// A key that signs.
#[derive(Clone)]
pub struct SigningKey(hmac::Key);

impl SigningKey {
    /// The key of a secret: `whsec_` and 24 to 64 bytes in base64.
    ///
    /// # Errors
    /// `secret`, with that rule.
    pub fn new(secret: &Secret) -> Result<Self, Invalid> {
        let rule = || Invalid::new("secret", "must be whsec_ and 24 to 64 bytes in base64");
        let bytes = bytes(secret).ok_or_else(rule)?;
        if SECRET_BYTES.contains(&bytes.len()) {
            Ok(Self::of(&bytes))
        } else {
            Err(rule())
        }
    }

    /// The key of a secret that was stored, perhaps before its length was checked. `None` if it is not `whsec_` and base64,
    /// or has no bytes: everybody could sign with an empty key.
    pub fn of_stored(secret: &Secret) -> Option<Self> {
        bytes(secret)
            .filter(|bytes| !bytes.is_empty())
            .map(|bytes| Self::of(&bytes))
    }

    fn of(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }
}

fn bytes(secret: &Secret) -> Option<Vec<u8>> {
    STANDARD.decode(secret.reveal().strip_prefix(SECRET_PREFIX)?).ok()
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(hidden)")
    }
}

/// A new secret of 32 random bytes.
pub fn new_secret() -> Secret {
    let bytes: [u8; NEW_SECRET_BYTES] = rand::random();
    format!("{SECRET_PREFIX}{}", STANDARD.encode(bytes)).into()
}

/// The value of the header `webhook-signature`: a signature by each of `keys`, so that a receiver may know either secret
/// while one replaces the other. `id` and `seconds` (since 1970) are the headers `webhook-id` and `webhook-timestamp`.
pub fn sign<'a>(keys: impl IntoIterator<Item = &'a SigningKey>, id: &str, seconds: i64, body: &[u8]) -> String {
    let head = format!("{id}.{seconds}.");
    let mut all = String::new();
    for SigningKey(key) in keys {
        let mut signed = hmac::Context::with_key(key);
        signed.update(head.as_bytes());
        signed.update(body);
        if !all.is_empty() {
            all.push(' ');
        }
        all.push_str("v1,");
        STANDARD.encode_string(signed.sign(), &mut all);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn secret(text: &str) -> Secret {
        text.to_owned().into()
    }

    #[test]
    fn the_example_of_the_specification_gets_the_specified_signature() {
        let key = SigningKey::new(&secret(SECRET)).unwrap();
        let signed = |keys: &[SigningKey]| {
            sign(
                keys,
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                br#"{"test": 2432232314}"#,
            )
        };
        let specified = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signed(std::slice::from_ref(&key)), specified);
        let other = SigningKey::new(&new_secret()).unwrap();
        let both = signed(&[other.clone(), key]);
        assert_eq!(both, format!("{} {specified}", signed(&[other])));
    }

    #[test]
    fn a_secret_of_another_form_is_refused() {
        let of = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![7; bytes]));
        for bytes in [24, 32, 64] {
            assert!(SigningKey::new(&secret(&of(bytes))).is_ok());
        }
        for bad in [
            "",
            "whsec_",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_nonsense!",
            &of(23),
            &of(65),
        ] {
            assert_eq!(SigningKey::new(&secret(bad)).unwrap_err().field, "secret");
        }
        assert!(SigningKey::of_stored(&secret(&of(8))).is_some());
        assert!(SigningKey::of_stored(&secret("whsec_")).is_none());
    }

    #[test]
    fn new_secrets_differ_and_are_not_shown() {
        let (one, two) = (new_secret(), new_secret());
        assert_ne!(one, two);
        let key = SigningKey::new(&one).unwrap();
        assert!(!format!("{one:?} {key:?}").contains(one.reveal()));
    }
}
