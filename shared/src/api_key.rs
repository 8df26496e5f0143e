//! API keys: `peal_<key id>_<secret>`. The secret has 256 bits, so an HMAC is enough to store it; a slow hash would
//! only help a denial of service.

use std::{fmt, str::FromStr};

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use rand::{TryRngCore, rngs::OsRng};
use serde::{Deserialize, Serialize};

use crate::{channel::words, id::AppId, seal::MeshKey};

words!(
    /// One permission of a key.
    Scope, "scope", {
        /// Send notifications.
        Send = "notifications:write",
        /// Send to all members of a topic; needs the scope to send too.
        Broadcast = "notifications:broadcast",
        /// Read the status of notifications.
        Status = "notifications:read",
        /// Write recipients, addresses and preferences.
        RecipientsWrite = "recipients:write",
        /// Read recipients, addresses and preferences.
        RecipientsRead = "recipients:read",
    }
);

/// A key as kept in the `config` bucket: everything but the secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Names the key; 16 hexadecimal digits.
    pub key_id: String,
    /// The only app that it acts for.
    pub app: AppId,
    /// HMAC-SHA256 of the secret, base64url.
    pub hmac: String,
    /// Its permissions; anything else is refused.
    pub scopes: Vec<Scope>,
    /// From this time on it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// A key as a client presents it.
pub struct Presented {
    /// Names the key.
    pub key_id: String,
    secret: [u8; 32],
}

impl ApiKey {
    /// Makes a key. The returned text holds the secret: show it once, store it nowhere.
    ///
    /// # Panics
    /// If the operating system provides no randomness.
    pub fn issue(mesh: &MeshKey, app: AppId, scopes: Vec<Scope>) -> (Self, String) {
        let (mut id, mut secret) = ([0; 8], [0; 32]);
        OsRng
            .try_fill_bytes(&mut id)
            .expect("the operating system gives randomness");
        OsRng
            .try_fill_bytes(&mut secret)
            .expect("the operating system gives randomness");
        let key_id = format!("{:016x}", u64::from_be_bytes(id));
        let text = format!("peal_{key_id}_{}", URL_SAFE_NO_PAD.encode(secret));
        let hmac = URL_SAFE_NO_PAD.encode(hmac::sign(mesh.hmac(), &secret));
        (
            Self {
                key_id,
                app,
                hmac,
                scopes,
                expires_at: None,
            },
            text,
        )
    }

    /// Whether `presented` is this key, compared in constant time, and the key has not expired at `now`.
    pub fn admits(&self, mesh: &MeshKey, presented: &Presented, now: Timestamp) -> bool {
        let Ok(expected) = URL_SAFE_NO_PAD.decode(&self.hmac) else {
            return false;
        };
        hmac::verify(mesh.hmac(), &presented.secret, &expected).is_ok() && self.expires_at.is_none_or(|end| now < end)
    }
}

/// The text is not an API key.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("is not an API key")]
pub struct NotAKey;

impl FromStr for Presented {
    type Err = NotAKey;
    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let (key_id, secret) = text
            .strip_prefix("peal_")
            .and_then(|rest| rest.split_once('_'))
            .ok_or(NotAKey)?;
        let secret = URL_SAFE_NO_PAD.decode(secret).map_err(|_| NotAKey)?;
        let secret = secret.try_into().map_err(|_| NotAKey)?;
        if key_id.len() != 16 || !key_id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotAKey);
        }
        Ok(Self {
            key_id: key_id.to_owned(),
            secret,
        })
    }
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presented")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;

    #[test]
    fn a_key_admits_itself_and_nothing_else() {
        let mesh = MeshKey::from_base64(&STANDARD.encode([1; 32])).unwrap();
        let app: AppId = "shop".parse().unwrap();
        let (key, text) = ApiKey::issue(&mesh, app.clone(), vec![Scope::Send]);
        let (_, other) = ApiKey::issue(&mesh, app, vec![Scope::Send]);
        let now = Timestamp::UNIX_EPOCH;
        assert!(key.admits(&mesh, &text.parse().unwrap(), now));
        assert!(!key.admits(&mesh, &other.parse().unwrap(), now));
        let ended = ApiKey {
            expires_at: Some(now),
            ..key
        };
        assert!(!ended.admits(&mesh, &text.parse().unwrap(), now));
        assert!(!format!("{:?}", text.parse::<Presented>().unwrap()).contains(&text[22..]));
    }
}
