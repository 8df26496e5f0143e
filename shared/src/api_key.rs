//! API keys: `peal_<key id>_<secret>`. The secret has 256 bits, so an HMAC is enough to store it; a slow hash would
//! only help a denial of service.

use std::{fmt, str::FromStr};

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use rand::{TryRngCore, rngs::OsRng};
use serde::{Deserialize, Serialize};

use crate::{
    channel::words,
    id::AppId,
    invalid::Invalid,
    seal::{Legacy, MeshKey, Sealed},
    secret::Secret,
};

/// Bytes of a secret.
const SECRET_BYTES: usize = 32;

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
        /// Export recipients with the tokens of their devices.
        RecipientsExport = "recipients:export",
        /// Write the suppression list.
        SuppressionsWrite = "suppressions:write",
        /// Sign client tokens.
        IssueTokens = "client_tokens:issue",
        /// Write apps, keys and credentials: its own app's, of the whole mesh for an operator's key.
        AppsWrite = "apps:write",
        /// Read apps and keys, without secrets.
        AppsRead = "apps:read",
        /// Write and read controls: its own app's, of the whole mesh for an operator's key.
        ControlsWrite = "controls:write",
    }
);

/// What an operator or an app decides about a key before it is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// Its permissions.
    pub scopes: Vec<Scope>,
    /// For people; 1 to 64 characters.
    #[serde(default)]
    pub name: Option<String>,
    /// From this time on it is refused.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// Reaches the test recipients of its app only.
    #[serde(default)]
    pub test: bool,
    /// May sign requests and client tokens.
    #[serde(default)]
    pub signing: bool,
}

impl NewKey {
    /// Most characters of a name.
    const NAME_CHARS_MAX: usize = 64;

    /// A key without a name, which does not expire and does not sign.
    pub fn with(scopes: &[Scope]) -> Self {
        Self {
            scopes: scopes.to_vec(),
            ..Self::default()
        }
    }

    /// Checks the rules for a key that is made at `now`.
    ///
    /// # Errors
    /// The first member that breaks a rule.
    pub fn check(&self, now: Timestamp) -> Result<(), Invalid> {
        let is_short = |name: &String| (1..=Self::NAME_CHARS_MAX).contains(&name.chars().count());
        if !self.name.as_ref().is_none_or(is_short) {
            return Err(Invalid::new("name", "must be 1 to 64 characters"));
        }
        if self.expires_at.is_some_and(|end| end <= now) {
            return Err(Invalid::new("expires_at", "must be in the future"));
        }
        if !self.signing && self.scopes.contains(&Scope::IssueTokens) {
            let rule = format_args!("must be true for a key with the scope {}", Scope::IssueTokens);
            return Err(Invalid::new("signing", rule));
        }
        Ok(())
    }
}

/// A key as kept in the `config` bucket: everything but the secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct ApiKey {
    /// Names the key; 16 hexadecimal digits.
    pub key_id: String,
    /// The only app that it acts for.
    pub app: AppId,
    /// HMAC-SHA256 of the secret, base64url. That of a test key also covers that it is one: a gateway of 0.1, which knows no
    /// test keys, does not admit it.
    pub hmac: String,
    /// Its permissions; anything else is refused.
    pub scopes: Vec<Scope>,
    /// From this time on it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was made; absent for keys that 0.1 made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// Reaches the test recipients of its app only.
    #[serde(skip_serializing_if = "crate::tolerant::is_usual")]
    pub test: bool,
    /// The secret of a key that may sign requests and client tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    signing_secret: Option<Sealed>,
}

/// A key as it is stored, perhaps by a newer version: scopes and members that this version does not know are ignored.
#[derive(Deserialize)]
struct Stored {
    key_id: String,
    app: AppId,
    hmac: String,
    scopes: Vec<String>,
    #[serde(default)]
    expires_at: Option<Timestamp>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    created_at: Option<Timestamp>,
    #[serde(default)]
    test: bool,
    #[serde(default)]
    signing_secret: Option<Sealed>,
}

impl From<Stored> for ApiKey {
    fn from(stored: Stored) -> Self {
        Self {
            key_id: stored.key_id,
            app: stored.app,
            hmac: stored.hmac,
            scopes: stored.scopes.iter().filter_map(|scope| scope.parse().ok()).collect(),
            expires_at: stored.expires_at,
            name: stored.name,
            created_at: stored.created_at,
            test: stored.test,
            signing_secret: stored.signing_secret,
        }
    }
}

/// A key as a client presents it.
pub struct Presented {
    /// Names the key.
    pub key_id: String,
    secret: [u8; SECRET_BYTES],
}

impl ApiKey {
    /// Makes a key at `now`. The returned text holds the secret: show it once, store it nowhere.
    ///
    /// # Panics
    /// If the operating system provides no randomness.
    pub fn issue(mesh: &MeshKey, app: AppId, new: NewKey, now: Timestamp) -> (Self, String) {
        let (mut id, mut secret) = ([0; 8], [0; SECRET_BYTES]);
        OsRng
            .try_fill_bytes(&mut id)
            .expect("the operating system gives randomness");
        OsRng
            .try_fill_bytes(&mut secret)
            .expect("the operating system gives randomness");
        let key_id = format!("{:016x}", u64::from_be_bytes(id));
        let secret_text = URL_SAFE_NO_PAD.encode(secret);
        let text = format!("peal_{key_id}_{secret_text}");
        let key = Self {
            hmac: URL_SAFE_NO_PAD.encode(hmac::sign(mesh.for_api_keys(), &covered(&secret, new.test))),
            signing_secret: new
                .signing
                .then(|| mesh.seal(&Self::seal_name(&app, &key_id), &secret_text)),
            key_id,
            app,
            scopes: new.scopes,
            expires_at: new.expires_at,
            name: new.name,
            created_at: Some(now),
            test: new.test,
        };
        (key, text)
    }

    /// Whether `presented` is this key, compared in constant time, and the key has not expired at `now`. `legacy` is what former
    /// keys of the mesh left: one of them may have been the first when this key was made.
    pub fn admits(&self, mesh: &MeshKey, legacy: &[Legacy], presented: &Presented, now: Timestamp) -> bool {
        let Ok(expected) = URL_SAFE_NO_PAD.decode(&self.hmac) else {
            return false;
        };
        let covered = covered(&presented.secret, self.test);
        self.is_live(now) && mesh.verifies_api_key(legacy, &covered, &expected)
    }

    /// Whether the key has not expired at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }

    /// Whether the key may sign requests and client tokens.
    pub fn signing(&self) -> bool {
        self.signing_secret.is_some()
    }

    /// The text of the secret, after the second `_` of the key, of a key that may sign. `None` also if the secret cannot be
    /// opened.
    pub fn signing_secret(&self, mesh: &MeshKey) -> Option<Secret> {
        let opened = mesh.open(&Self::seal_name(&self.app, &self.key_id), self.signing_secret.as_ref()?);
        let secret =
            opened.inspect_err(|error| tracing::error!(key_id = self.key_id, %error, "the secret of an API key"));
        secret.ok().map(Secret::from)
    }

    /// Whether `signature` is the HMAC-SHA256 of `message` with the text of the secret; compared in constant time.
    pub fn has_signed(&self, mesh: &MeshKey, message: &[u8], signature: &[u8]) -> bool {
        self.signing_secret(mesh).is_some_and(|secret| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.reveal().as_bytes());
            hmac::verify(&key, message, signature).is_ok()
        })
    }

    /// The name under which the secret of a key that signs is sealed.
    pub(crate) fn seal_name(app: &AppId, key_id: &str) -> String {
        format!("{app}/key/{key_id}")
    }

    /// Whether this key is what `new` asks for.
    pub fn is_like(&self, new: &NewKey) -> bool {
        let same_scopes =
            self.scopes.len() == new.scopes.len() && self.scopes.iter().all(|scope| new.scopes.contains(scope));
        same_scopes
            && self.name == new.name
            && self.expires_at == new.expires_at
            && self.test == new.test
            && self.signing() == new.signing
    }
}

/// What the HMAC of a key covers.
fn covered(secret: &[u8; SECRET_BYTES], test: bool) -> Vec<u8> {
    let mut covered = secret.to_vec();
    if test {
        covered.extend_from_slice(b"test");
    }
    covered
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
    use serde_json::json;

    use super::*;
    use crate::testing::mesh_key;

    fn app() -> AppId {
        "shop".parse().unwrap()
    }

    #[test]
    fn a_key_admits_itself_and_nothing_else() {
        let mesh = mesh_key();
        let now = Timestamp::UNIX_EPOCH;
        let issue = |new| ApiKey::issue(&mesh, app(), new, now);
        let (key, text) = issue(NewKey::with(&[Scope::Send]));
        let (_, other) = issue(NewKey::with(&[Scope::Send]));
        assert!(key.admits(&mesh, &[], &text.parse().unwrap(), now));
        assert!(!key.admits(&mesh, &[], &other.parse().unwrap(), now));
        let ended = ApiKey {
            expires_at: Some(now),
            ..key.clone()
        };
        assert!(!ended.admits(&mesh, &[], &text.parse().unwrap(), now));
        assert!(!format!("{:?}", text.parse::<Presented>().unwrap()).contains(&text[22..]));

        let for_tests = NewKey {
            test: true,
            ..NewKey::with(&[Scope::Send])
        };
        let (key, text) = issue(for_tests);
        assert!(key.admits(&mesh, &[], &text.parse().unwrap(), now));
        let as_0_1_reads_it = ApiKey { test: false, ..key };
        assert!(!as_0_1_reads_it.admits(&mesh, &[], &text.parse().unwrap(), now));
    }

    #[test]
    fn a_key_outlives_the_mesh_key_under_which_it_was_made() {
        let bytes = |byte: u8| base64::engine::general_purpose::STANDARD.encode([byte; 32]);
        let mesh = |text: &str| MeshKey::from_base64(text).unwrap();
        let (old, new) = (mesh(&bytes(7)), mesh(&bytes(8)));
        let both = mesh(&format!("{} {}", bytes(8), bytes(7)));
        let now = Timestamp::UNIX_EPOCH;
        let (key, text) = ApiKey::issue(&old, app(), NewKey::with(&[Scope::Send]), now);
        let admits = |mesh: &MeshKey, legacy: &[Legacy]| key.admits(mesh, legacy, &text.parse().unwrap(), now);
        assert!(admits(&both, &[]) && admits(&new, &both.legacies()) && !admits(&new, &[]));
    }

    #[test]
    fn a_key_signs_for_itself_alone() {
        let issue = |signing| {
            let new = NewKey {
                signing,
                ..NewKey::with(&[Scope::Send])
            };
            ApiKey::issue(&mesh_key(), app(), new, Timestamp::UNIX_EPOCH)
        };
        let sign = |text: &str| {
            let secret = text.splitn(3, '_').nth(2).unwrap();
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), b"message")
        };
        let ((key, text), (_, other), (plain, plain_text)) = (issue(true), issue(true), issue(false));
        let has_signed = |key: &ApiKey, message, text: &str| key.has_signed(&mesh_key(), message, sign(text).as_ref());
        assert!(has_signed(&key, b"message", &text));
        assert!(!has_signed(&key, b"massage", &text));
        assert!(!has_signed(&key, b"message", &other));
        assert!(!has_signed(&plain, b"message", &plain_text), "it may not sign");
        let of_another_app = ApiKey {
            app: "bank".parse().unwrap(),
            ..key
        };
        assert!(
            !has_signed(&of_another_app, b"message", &text),
            "its secret is sealed for its app"
        );
    }

    #[test]
    fn a_key_that_another_version_stored_is_read() {
        let former =
            json!({ "key_id": "0123456789abcdef", "app": "shop", "hmac": "x", "scopes": ["notifications:write"] });
        let key: ApiKey = serde_json::from_value(former.clone()).unwrap();
        assert!(!key.test && !key.signing() && key.created_at.is_none());
        assert_eq!(serde_json::to_value(&key).unwrap(), former, "0.1 reads it again");
        let newer = json!({
            "key_id": "0123456789abcdef", "app": "shop", "hmac": "x", "newer": {},
            "scopes": ["notifications:write", "newer:scope"],
        });
        assert_eq!(serde_json::from_value::<ApiKey>(newer).unwrap(), key);
        let all = NewKey {
            scopes: Scope::ALL.to_vec(),
            name: Some("app server".into()),
            expires_at: Some(Timestamp::MAX),
            test: true,
            signing: true,
        };
        let (key, text) = ApiKey::issue(&mesh_key(), app(), all.clone(), Timestamp::UNIX_EPOCH);
        let stored = serde_json::to_string(&key).unwrap();
        assert!(!stored.contains(&text[22..]));
        assert_eq!(serde_json::from_str::<ApiKey>(&stored).unwrap(), key);
        assert!(key.is_like(&all) && !key.is_like(&NewKey { test: false, ..all }));
    }

    #[test]
    fn a_new_key_that_breaks_a_rule_is_refused_by_name() {
        let now = Timestamp::UNIX_EPOCH;
        let invalid = |new: NewKey| new.check(now).unwrap_err().field;
        let send = || NewKey::with(&[Scope::Send]);
        for name in ["", &"é".repeat(65)] {
            let name = Some(name.to_owned());
            assert_eq!(invalid(NewKey { name, ..send() }), "name");
        }
        let expires_at = Some(now);
        assert_eq!(invalid(NewKey { expires_at, ..send() }), "expires_at");
        assert_eq!(invalid(NewKey::with(&[Scope::IssueTokens])), "signing");
        send().check(now).unwrap();
    }
}
