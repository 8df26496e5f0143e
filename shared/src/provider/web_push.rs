//! Web push: the keys of an app (VAPID), the subscriptions of browsers, overrides, and the payload that a browser decrypts.
//!
//! The payload is a declarative push message (W3C Push API, "declarative push message"; `WebKit`: Meet Declarative Web Push).
//! Safari shows it by itself; other browsers hand the same JSON to the site's service worker.

use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr};

use aws_lc_rs::{
    agreement::{self, ECDH_P256, ParsedPublicKey, UnparsedPublicKey},
    digest::{SHA256, digest},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{
    Engine,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    prelude::BASE64_URL_SAFE_NO_PAD,
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::{Map, Value};
use url::Url;
use utoipa::ToSchema;

use super::{is_empty, lay_over, serialize};
use crate::{
    address::Token,
    channel::words,
    content::push::{Priority, Push},
    invalid::Invalid,
    secret::Secret,
    tolerant::{self, objects},
};

/// Longest payload in bytes before encryption. Push services take bodies of 4096 bytes (RFC 8030, section 7.2); the header of
/// `aes128gcm` takes 86 of them, the delimiter 1 and the authentication tag 16 (RFC 8291, section 4).
pub const MAX_PAYLOAD: usize = 3993;

/// Longest `Topic` in characters (RFC 8030, section 5.4).
pub const MAX_TOPIC: usize = 32;

/// The value of `web_push` that marks a declarative message: the number of the RFC.
const DECLARATIVE: u16 = 8030;

/// Libraries write base64url with padding and without.
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The key by which push services know an app (RFC 8292: VAPID).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// How the operators of push services reach the app's: `mailto:` and a mailbox, or an https URL. Apple refuses `localhost`.
    pub subject: String,
    /// A P-256 private key: PKCS#8 or SEC 1 in PEM, or its 32 bytes in base64url, as libraries for browsers print it. The
    /// browser subscribes with its public key (`applicationServerKey`).
    #[serde(serialize_with = "crate::secret::reveal")]
    pub private_key: Secret,
}

impl Credential {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if !is_subject(&self.subject) {
            return Err(Invalid::new(
                "subject",
                "must be mailto: and a mailbox, or an https URL, without spaces and angle brackets",
            ));
        }
        self.signing_key().map(drop)
    }

    /// The key pair that signs tokens with ES256.
    ///
    /// # Errors
    /// `private_key`, if it is none.
    pub fn signing_key(&self) -> Result<EcdsaKeyPair, Invalid> {
        signing_key(self.private_key.reveal().trim()).ok_or_else(|| {
            Invalid::new(
                "private_key",
                "must be a P-256 private key: PKCS#8 or SEC 1 in PEM, or 32 bytes in base64url",
            )
        })
    }
}

fn is_subject(text: &str) -> bool {
    let is_plain = text.len() <= MAX_SUBJECT && text.bytes().all(|b| b.is_ascii_graphic() && !b"<>\"\\".contains(&b));
    let is_reachable = match text.strip_prefix("mailto:") {
        Some(mailbox) => mailbox
            .split_once('@')
            .is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty()),
        None => Url::parse(text).is_ok_and(|url| url.scheme() == "https" && url.has_host()),
    };
    is_plain && is_reachable
}

/// Longest subject of a credential in bytes.
const MAX_SUBJECT: usize = 255;

fn signing_key(text: &str) -> Option<EcdsaKeyPair> {
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    if text.contains("-----BEGIN ") {
        let der = PrivateKeyDer::from_pem_slice(text.as_bytes()).ok()?;
        return EcdsaKeyPair::from_private_key_der(algorithm, der.secret_der()).ok();
    }
    let private = BASE64_URL.decode(text).ok()?;
    let public = agreement::PrivateKey::from_private_key(&ECDH_P256, &private).ok()?;
    let public = public.compute_public_key().ok()?;
    EcdsaKeyPair::from_private_key_and_public_key(algorithm, &private, public.as_ref()).ok()
}

/// A subscription of a browser (W3C Push API: `PushSubscription`). Its endpoint is a capability: whoever knows it may push, so
/// no part of it is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The URL to which pushes are posted, normalised; https with the name of a host.
    pub endpoint: Token,
    /// The browser's public key, to which pushes are encrypted.
    pub p256dh: PublicKey,
    /// The secret that the browser shares with senders.
    pub auth: AuthSecret,
}

impl Target {
    /// Checks and normalises what a browser registered: the members of `PushSubscription.toJSON()`.
    ///
    /// # Errors
    /// `endpoint` or `p256dh`, with its rule.
    pub fn new(endpoint: &str, p256dh: PublicKey, auth: AuthSecret) -> Result<Self, Invalid> {
        let endpoint = endpoint_url(endpoint).ok_or_else(|| Invalid::new("endpoint", ENDPOINT_RULE))?;
        if ParsedPublicKey::try_from(UnparsedPublicKey::new(&ECDH_P256, p256dh.reveal())).is_err() {
            return Err(Invalid::new("p256dh", "must be a point of the curve P-256"));
        }
        Ok(Self {
            endpoint: Token::checked(endpoint),
            p256dh,
            auth,
        })
    }
}

/// Longest endpoint in bytes. Those of the browsers have 150 to 600.
const MAX_ENDPOINT: usize = 2048;

const ENDPOINT_RULE: &str =
    "must be an https URL of at most 2048 bytes with the name of a host, without user and fragment";

/// The normalised endpoint. Push services have names, so an address in its place is a mistake, or an attempt to make workers
/// ask a machine of their own network.
fn endpoint_url(text: &str) -> Option<String> {
    let is_plain = text.len() <= MAX_ENDPOINT && text.bytes().all(|b| b.is_ascii_graphic());
    let url = Url::parse(text).ok().filter(|_| is_plain)?;
    let is_endpoint = url.scheme() == "https"
        && url.domain().is_some()
        && url.username().is_empty()
        && url.password().is_none()
        && url.fragment().is_none();
    is_endpoint.then(|| url.into())
}

/// Defines bytes of a fixed number that JSON has in base64url and that are never shown.
macro_rules! hidden_bytes {
    ($(#[$doc:meta])* $name:ident, $field:literal, $bytes:literal, $rule:literal, $is_valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The bytes themselves, for encryption only.
            pub const fn reveal(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                let is_valid: fn(&[u8; $bytes]) -> bool = $is_valid;
                let bytes = BASE64_URL.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
                let bytes = bytes.filter(is_valid);
                bytes.map(Self).ok_or_else(|| Invalid::new($field, $rule))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(hidden)"))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&BASE64_URL_SAFE_NO_PAD.encode(self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(|invalid: Invalid| D::Error::custom(invalid.rule))
            }
        }
    };
}

hidden_bytes!(
    /// A public key on P-256, 65 bytes: 4 and both coordinates. The hybrid form, which begins with 6 or 7, is refused: no
    /// browser has it, and the library would take it.
    PublicKey, "p256dh", 65, "must be base64url of 65 bytes that begin with 4", |bytes| bytes[0] == 4
);

hidden_bytes!(
    /// The authentication secret of a subscription, 16 bytes.
    AuthSecret, "auth", 16, "must be base64url of 16 bytes", |_| true
);

/// Overrides for web push.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schema(as = WebPushOverride)]
pub struct Override {
    /// Laid over the declarative payload: members replace, those of objects (`notification`) are merged one by one.
    #[serde(skip_serializing_if = "Map::is_empty", deserialize_with = "tolerant::or_default")]
    #[schema(value_type = Object)]
    pub payload: Map<String, Value>,
    /// `Urgency` (RFC 8030, section 5.3); default by `priority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub urgency: Option<Urgency>,
}

objects!(Override);

words!(
    /// How long a device that saves its battery may leave a push at the push service (RFC 8030, section 5.3).
    Urgency, "push.web_push.urgency", {
        /// Advertisements: with power and Wi-Fi.
        VeryLow = "very-low",
        /// Updates of a topic: with power or Wi-Fi.
        Low = "low",
        /// Chat or calendar: without either.
        Normal = "normal",
        /// Calls and alarms: also with a low battery.
        High = "high",
    }
);

/// `Urgency` of `push`.
pub fn urgency(push: &Push) -> Urgency {
    let chosen = push.web_push.as_ref().and_then(|over| over.urgency);
    chosen.unwrap_or(match push.priority {
        Priority::High => Urgency::High,
        Priority::Normal => Urgency::Normal,
    })
}

/// `Topic` for a collapse key: the key itself if it may be one, else a digest of it.
pub fn topic(collapse_key: &str) -> Cow<'_, str> {
    let is_topic = (1..=MAX_TOPIC).contains(&collapse_key.len())
        && collapse_key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if is_topic {
        return Cow::Borrowed(collapse_key);
    }
    let digest = digest(&SHA256, collapse_key.as_bytes());
    let mut topic = BASE64_URL_SAFE_NO_PAD.encode(digest);
    topic.truncate(MAX_TOPIC);
    Cow::Owned(topic)
}

#[derive(Serialize)]
struct Payload<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    web_push: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notification: Option<Notification<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_badge: Option<u32>,
    /// For the service worker, where nothing shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a BTreeMap<String, String>>,
}

#[derive(Serialize)]
struct Notification<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    navigate: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
    tag: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a BTreeMap<String, String>>,
}

/// What the browser decrypts. `tag` names the push on the device if it has no collapse key, so that the copy of a repeated
/// attempt replaces the first one.
pub fn render(push: &Push, tag: &str) -> Vec<u8> {
    let over = push.web_push.as_ref().filter(|over| !over.payload.is_empty());
    let over_notification = over.and_then(|over| over.payload.get("notification"));
    let shows = shows(push);
    let data = Some(&push.data).filter(|data| !data.is_empty());
    let text = |text: &'_ Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
    let (mut title, mut body) = (text(&push.title), text(&push.body));
    // A declarative message needs a title.
    if title.is_none() && over_notification.is_none_or(|over| over.get("title").is_none()) {
        title = body.take();
    }
    let payload = Payload {
        web_push: shows.then_some(DECLARATIVE),
        notification: shows.then(|| Notification {
            title: title.as_deref(),
            body: body.as_deref(),
            navigate: push.url.as_deref().filter(|url| is_web(url)),
            image: push.image.as_deref(),
            tag: push.collapse_key.as_deref().unwrap_or(tag),
            data,
        }),
        app_badge: push.badge.filter(|_| !push.silent),
        data: data.filter(|_| !shows),
    };
    let Some(over) = over else { return serialize(&payload) };
    let Ok(Value::Object(mut members)) = serde_json::to_value(&payload) else {
        unreachable!("strings and numbers always make an object")
    };
    lay_over(&mut members, &over.payload);
    if push.silent {
        members.retain(|name, _| !INTERACTING.contains(&name.as_str()));
    }
    serialize(&members)
}

/// Whether a browser can go to `url`. That of an application's own scheme is for its devices.
fn is_web(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "https" | "http"))
}

/// The members that interact with the user, which a silent push has not.
const INTERACTING: [&str; 3] = ["web_push", "notification", "app_badge"];

/// Whether a notification shows: there is text, or the override has a notification.
fn shows(push: &Push) -> bool {
    let by_override = |over: &Override| over.payload.get("notification").is_some_and(|shown| !is_empty(shown));
    !push.silent && (push.has_text() || push.web_push.as_ref().is_some_and(by_override))
}

/// Whether the rendered push shows anything or gives the service worker something to do.
pub(crate) fn has_something(push: &Push) -> bool {
    if push.web_push.is_none() && push.apns_push_type().is_apples_own() {
        return false;
    }
    let by_override = |over: &Override| over.payload.values().any(|member| !is_empty(member));
    push.silent || push.has_text() || !push.data.is_empty() || push.web_push.as_ref().is_some_and(by_override)
}

/// The bytes that count for [`MAX_PAYLOAD`].
pub(crate) fn size(push: &Push) -> usize {
    // As long as the job's id, which is the tag if the push has no collapse key.
    let tag = [b'-'; uuid::fmt::Hyphenated::LENGTH];
    render(push, std::str::from_utf8(&tag).unwrap_or_default()).len()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::{AsBigEndian, EcPrivateKeyBin},
        signature::ECDSA_P384_SHA384_FIXED_SIGNING,
    };
    use base64::prelude::BASE64_STANDARD;
    use serde_json::json;

    use super::*;

    /// The subscription of RFC 8291, appendix A.
    const P256DH: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";
    const ENDPOINT: &str = "https://push.example.net/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV";

    /// The same key, as `openssl` writes it in both forms, and as its 32 bytes.
    const PKCS8: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgToLPpFiioAMnJw74
hJ3jW66Kkz+T954irDubXOmAL4yhRANCAASslJijJHCfshht317Yakb99IcORrD4
zPsBBB/5jrlNEx7kaA1lyVOmQcUxD7p3yiJGOt/a3NjyZcQIj3B6D978
-----END PRIVATE KEY-----
";
    const SEC1: &str = "-----BEGIN EC PARAMETERS-----
BggqhkjOPQMBBw==
-----END EC PARAMETERS-----
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIE6Cz6RYoqADJycO+ISd41uuipM/k/eeIqw7m1zpgC+MoAoGCCqGSM49
AwEHoUQDQgAErJSYoyRwn7IYbd9e2GpG/fSHDkaw+Mz7AQQf+Y65TRMe5GgNZclT
pkHFMQ+6d8oiRjrf2tzY8mXECI9weg/e/A==
-----END EC PRIVATE KEY-----
";
    const RAW: &str = "ToLPpFiioAMnJw74hJ3jW66Kkz-T954irDubXOmAL4w";

    fn target(endpoint: &str, p256dh: &str, auth: &str) -> Result<Target, Invalid> {
        Target::new(endpoint, p256dh.parse()?, auth.parse()?)
    }

    fn credential(subject: &str, private_key: &str) -> Credential {
        Credential {
            subject: subject.into(),
            private_key: private_key.to_owned().into(),
        }
    }

    #[test]
    fn a_key_is_read_in_every_form_that_tools_print() {
        for text in [PKCS8, SEC1, RAW, &format!("{RAW}="), &format!("  {RAW}\n")] {
            let key = credential("mailto:ops@example.com", text).signing_key().unwrap();
            let private: EcPrivateKeyBin<'_> = key.private_key().as_be_bytes().unwrap();
            assert_eq!(BASE64_URL_SAFE_NO_PAD.encode(private.as_ref()), RAW);
        }
    }

    #[test]
    fn other_keys_are_refused_without_showing_them() {
        let zero = BASE64_URL_SAFE_NO_PAD.encode([0; 32]);
        let long = BASE64_URL_SAFE_NO_PAD.encode([1; 33]);
        let order = BASE64_URL_SAFE_NO_PAD.encode([0xff; 32]);
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let p384 = BASE64_STANDARD.encode(p384.to_pkcs8v1().unwrap());
        let p384 = format!("-----BEGIN PRIVATE KEY-----\n{p384}\n-----END PRIVATE KEY-----\n");
        for text in ["", "secret", &zero, &long, &order, &p384, &PKCS8[..100]] {
            let error = credential("mailto:ops@example.com", text).check().unwrap_err();
            assert_eq!(error.field, "private_key", "{text}");
            assert!(text.is_empty() || !error.to_string().contains(text));
        }
        assert!(!format!("{:?}", credential("mailto:a@b", RAW)).contains(RAW));
    }

    #[test]
    fn a_subject_is_a_mailbox_or_an_https_url() {
        for good in [
            "mailto:ops@example.com",
            "https://example.com/contact",
            "https://example.com",
        ] {
            assert_eq!(credential(good, RAW).check(), Ok(()), "{good}");
        }
        for bad in [
            "",
            "ops@example.com",
            "mailto:",
            "mailto:ops",
            "mailto:@example.com",
            "mailto: <ops@example.com>",
            "http://example.com",
            "https://",
            "https://example.com/a b",
            &format!("https://example.com/{}", "x".repeat(255)),
        ] {
            assert_eq!(credential(bad, RAW).check().unwrap_err().field, "subject", "{bad}");
        }
    }

    #[test]
    fn a_subscription_of_a_browser_is_taken_with_or_without_padding() {
        let plain = target(ENDPOINT, P256DH, AUTH).unwrap();
        let padded = target(ENDPOINT, &format!("{P256DH}="), &format!("{AUTH}==")).unwrap();
        assert_eq!(plain, padded);
        assert_eq!(plain.p256dh.reveal().len(), 65);
        let spelled = target(
            "HTTPS://Push.Example.NET:443/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV",
            P256DH,
            AUTH,
        );
        assert_eq!(spelled.unwrap().endpoint.reveal(), ENDPOINT);
    }

    #[test]
    fn nothing_of_a_subscription_is_shown() {
        let shown = format!("{:?}", target(ENDPOINT, P256DH, AUTH).unwrap());
        for secret in ["push.example", "JzLQ", P256DH, AUTH, "37, 113"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn what_is_no_subscription_is_refused_by_field() {
        let field = |endpoint: &str, p256dh: &str, auth: &str| target(endpoint, p256dh, auth).unwrap_err().field;
        let long = format!("https://push.example.net/{}", "x".repeat(MAX_ENDPOINT));
        for endpoint in [
            "",
            "push",
            "http://push.example.net/a",
            "https://",
            "https://user@push.example.net/a",
            "https://u:p@push.example.net/a",
            "https://push.example.net/a#b",
            "https://push.example.net/a b",
            "https://push.example.net/\u{e4}",
            "https://127.0.0.1/a",
            "https://2130706433/a",
            "https://0x7f.1/a",
            "https://[::1]/a",
            "https://[::ffff:10.0.0.1]/a",
            "https://93.184.216.34/a",
            &long,
        ] {
            assert_eq!(field(endpoint, P256DH, AUTH), "endpoint", "{endpoint}");
        }
        let mut point = BASE64_URL.decode(P256DH).unwrap();
        let encoded = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        assert_eq!(field(ENDPOINT, &encoded(&point[..64]), AUTH), "p256dh");
        point[0] = 6 + (point[64] & 1);
        assert_eq!(field(ENDPOINT, &encoded(&point), AUTH), "p256dh", "the hybrid form");
        point[0] = 4;
        point[64] ^= 1;
        assert_eq!(
            field(ENDPOINT, &encoded(&point), AUTH),
            "p256dh",
            "no point of the curve"
        );
        assert_eq!(field(ENDPOINT, "B/+=", AUTH), "p256dh");
        for auth in [
            "",
            "BTBZMqHH6r4Tts7J_aSI",
            "BTBZMqHH6r4Tts7J/aSIgg",
            "BTBZMqHH6r4Tts7J_aSIggAA",
        ] {
            assert_eq!(field(ENDPOINT, P256DH, auth), "auth");
        }
    }

    #[test]
    fn keys_are_stored_in_base64url() {
        let browser = target(ENDPOINT, P256DH, AUTH).unwrap();
        let stored = json!([&browser.p256dh, &browser.auth]);
        assert_eq!(stored, json!([P256DH, AUTH]));
        let (p256dh, auth): (PublicKey, AuthSecret) = serde_json::from_value(stored).unwrap();
        assert_eq!((p256dh, auth), (browser.p256dh, browser.auth));
        assert!(serde_json::from_value::<AuthSecret>(json!("AAAA")).is_err());
    }

    #[test]
    fn a_topic_is_the_collapse_key_or_a_digest_of_it() {
        for key in ["score", "a-b_C9", &"x".repeat(32)] {
            assert_eq!(topic(key), key);
        }
        // Made by Python's hashlib and base64.
        assert_eq!(topic("score 2"), "y4cqbNtRTY70ZRS29GUPPtXBeRVPJNLT");
        for key in ["a b", "a.b", &"x".repeat(33)] {
            let topic = topic(key);
            assert_eq!(topic.len(), MAX_TOPIC);
            assert!(topic.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
        }
    }

    fn read(json: &Value) -> Push {
        let push: Push = serde_json::from_value(json.clone()).unwrap();
        push.check().unwrap();
        push
    }

    fn rendered(push: &Value) -> Value {
        serde_json::from_slice(&render(&read(push), "job")).unwrap()
    }

    #[test]
    fn a_push_becomes_a_declarative_message() {
        let whole = json!({
            "title": "Hello", "body": "World", "badge": 3, "image": "https://example.com/a.png",
            "url": "https://example.com/orders/42", "collapse_key": "order 42", "data": { "order": "42" },
            "sound": "default",
        });
        assert_eq!(
            rendered(&whole),
            json!({
                "web_push": 8030,
                "notification": {
                    "title": "Hello", "body": "World", "navigate": "https://example.com/orders/42",
                    "image": "https://example.com/a.png", "tag": "order 42", "data": { "order": "42" },
                },
                "app_badge": 3,
            })
        );
        let alone = json!({ "web_push": 8030, "notification": { "title": "Hello", "tag": "job" } });
        assert_eq!(rendered(&json!({ "title": "Hello" })), alone);
        assert_eq!(
            rendered(&json!({ "title": "", "body": "Hello" })),
            alone,
            "the text of a message without title is its title"
        );
    }

    #[test]
    fn a_push_that_shows_nothing_gives_the_service_worker_its_data() {
        let data = json!({ "order": "42" });
        assert_eq!(
            rendered(&json!({ "silent": true, "badge": 1, "data": data })),
            json!({ "data": data })
        );
        assert_eq!(
            rendered(&json!({ "badge": 1, "data": data })),
            json!({ "app_badge": 1, "data": data })
        );
        let over = json!({ "payload": { "notification": { "title": "x" }, "app_badge": 1, "sync": true } });
        assert_eq!(
            rendered(&json!({ "silent": true, "web_push": over })),
            json!({ "sync": true })
        );
    }

    #[test]
    fn an_override_is_laid_over_the_message() {
        let over = json!({ "payload": {
            "mutable": true,
            "notification": { "title": "Own", "actions": [{ "action": "a", "title": "A", "navigate": "https://example.com/a" }] },
        } });
        assert_eq!(
            rendered(&json!({ "body": "Hello", "web_push": over })),
            json!({
                "web_push": 8030,
                "mutable": true,
                "notification": {
                    "title": "Own", "body": "Hello", "tag": "job",
                    "actions": [{ "action": "a", "title": "A", "navigate": "https://example.com/a" }],
                },
            })
        );
        let alone = rendered(&json!({ "web_push": { "payload": { "notification": { "title": "Own" } } } }));
        assert_eq!(
            alone,
            json!({ "web_push": 8030, "notification": { "title": "Own", "tag": "job" } })
        );
    }

    #[test]
    fn urgency_follows_priority_unless_chosen() {
        for (push, expected) in [
            (json!({ "title": "x" }), Urgency::High),
            (json!({ "title": "x", "priority": "normal" }), Urgency::Normal),
            (
                json!({ "title": "x", "web_push": { "urgency": "very-low" } }),
                Urgency::VeryLow,
            ),
        ] {
            assert_eq!(urgency(&read(&push)), expected);
        }
    }

    #[test]
    fn a_push_has_something_if_it_shows_or_runs_anything() {
        for (push, something) in [
            (json!({ "title": "x" }), true),
            (json!({ "title": "" }), false),
            (json!({ "badge": 1 }), false),
            (json!({ "badge": 1, "data": { "a": "b" } }), true),
            (json!({ "silent": true }), true),
            (json!({ "web_push": { "payload": { "app_badge": 1 } } }), true),
            (
                json!({ "badge": 1, "web_push": { "payload": { "notification": {} } } }),
                false,
            ),
            (json!({ "title": "x", "apns": { "push_type": "voip" } }), false),
            (
                json!({ "title": "x", "apns": { "push_type": "voip" }, "web_push": { "urgency": "low" } }),
                true,
            ),
        ] {
            assert_eq!(has_something(&read(&push)), something, "{push}");
        }
    }
}
