//! Signed references: a message that is sent carries one, and what is reported about the message brings it back.
//!
//! A reference says all that is needed to record a report, so that no gateway has to look anything up, whatever region takes
//! the report. Providers and recipients see it, so it holds ids alone. Its HMAC covers the app and the region in whose streams
//! the delivery is; they are not in the text, because the reader knows the app and there are few regions. The key is that of ids,
//! which is never replaced, so a link in a mail works as long as the mail exists. A mesh that version 0.1 provisioned has no such
//! key, and makes no references.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    channel::Channel,
    id::{AddressId, AppId, Category, DeliveryId, JobId, NotificationId, RecipientId, Region},
    id_key::{IdKey, MAC_BYTES, MAC_BYTES_MIN},
};

/// The header of a mail that has its reference.
pub const HEADER: &str = "X-Peal-Reference";

/// The member of what a provider keeps with a message, and of a query, that has its reference.
pub const MEMBER: &str = "peal_reference";

/// The first byte of every reference: the version of its layout.
const LAYOUT: u8 = 1;

/// Bytes of what is signed, without a category: layout, channel, three ids and the time of sending.
const FIXED_BYTES: usize = 2 + 3 * 16 + 4;

/// Bytes of what is signed in a bounce address: two ids.
const SHORT_BYTES: usize = 2 * 16;

/// Characters of a reference in a bounce address. With `bounces+` before them they fill the 64 that such a part may have.
const SHORT_CHARS: usize = (SHORT_BYTES + MAC_BYTES_MIN) / 3 * 4;

/// Whether `text` has the form of a reference in a bounce address.
pub fn is_short(text: &str) -> bool {
    text.len() == SHORT_CHARS && URL_SAFE_NO_PAD.decode(text).is_ok()
}

/// Most bytes of a category.
const CATEGORY_BYTES_MAX: usize = 64;

/// Most bytes of the id of a recipient.
const RECIPIENT_BYTES_MAX: usize = 128;

/// What a reference is for. One for a purpose is none for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Report,
    /// The same in a bounce address.
    Bounce,
    Unsubscription,
    Preferences,
}

impl Purpose {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Bounce => "bounce",
            Self::Unsubscription => "unsubscription",
            Self::Preferences => "preferences",
        }
    }
}

/// One attempt at a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// Its channel.
    pub channel: Channel,
    /// Its notification.
    pub notification: NotificationId,
    /// Its job; absent in a bounce address.
    pub job: Option<JobId>,
    /// The address that it was sent to.
    pub address: AddressId,
    /// When it was sent, to the second; absent in a bounce address.
    pub sent_at: Option<Timestamp>,
}

/// The right to unsubscribe an address, from a link in a message that was sent to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscription {
    /// The message with the link.
    pub reference: Reference,
    /// The category of its notification, which alone is unsubscribed from if there is one.
    pub category: Option<Category>,
}

impl Reference {
    /// The delivery, if the job is known.
    pub fn delivery(&self) -> Option<DeliveryId> {
        self.job.map(|job| DeliveryId::of(job, self.address))
    }

    /// The reference as text for a delivery of `app` that `home` works on: 94 characters of base64url. `None` if the mesh has no key
    /// of ids.
    pub fn sign(&self, ids: &IdKey, app: &AppId, home: &Region) -> Option<String> {
        let mut bytes = self.bytes();
        let mac = mac(ids, Purpose::Report, app, home, &bytes)?;
        bytes.extend_from_slice(&mac);
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The reference of a mail for its bounce address, without the job and the time: 56 characters of base64url. `None` if the mesh has
    /// no key of ids.
    pub fn sign_short(&self, ids: &IdKey, app: &AppId, home: &Region) -> Option<String> {
        let mut bytes = [*self.notification.0.as_bytes(), *self.address.0.as_bytes()].concat();
        let mac = mac(ids, Purpose::Bounce, app, home, &bytes)?;
        bytes.extend_from_slice(&mac[..MAC_BYTES_MIN]);
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a reference of `app`, of either form, and finds its region among `regions`. `None` if this mesh did not sign it for the app.
    pub fn open<'a>(
        ids: &IdKey,
        app: &AppId,
        regions: impl IntoIterator<Item = &'a Region>,
        text: &str,
    ) -> Option<(Self, &'a Region)> {
        if text.len() == SHORT_CHARS {
            let (signed, home) = open(ids, Purpose::Bounce, MAC_BYTES_MIN, app, regions, text)?;
            return Some((Self::read_short(&signed)?, home));
        }
        let (signed, home) = open(ids, Purpose::Report, MAC_BYTES, app, regions, text)?;
        (signed.len() == FIXED_BYTES).then_some((Self::read(&signed)?, home))
    }

    fn read_short(bytes: &[u8]) -> Option<Self> {
        let (notification, address) = bytes.split_at_checked(16)?;
        Some(Self {
            channel: Channel::Email,
            notification: NotificationId(Uuid::from_slice(notification).ok()?),
            job: None,
            address: AddressId(Uuid::from_slice(address).ok()?),
            sent_at: None,
        })
    }

    /// What a text says that looks like a reference that is not short, whoever made it.
    pub fn claimed(text: &str) -> Option<Self> {
        Self::read(&URL_SAFE_NO_PAD.decode(text).ok()?)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_BYTES + MAC_BYTES);
        let channel = Channel::ALL.iter().position(|channel| *channel == self.channel);
        bytes.push(LAYOUT);
        bytes.push(u8::try_from(channel.unwrap_or_default()).unwrap_or_default());
        for id in [
            self.notification.0,
            self.job.map_or(Uuid::nil(), |job| job.0),
            self.address.0,
        ] {
            bytes.extend_from_slice(id.as_bytes());
        }
        let seconds = self.sent_at.map_or(0, Timestamp::as_second);
        let seconds = u32::try_from(seconds).unwrap_or_default();
        bytes.extend_from_slice(&seconds.to_be_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (LAYOUT, rest) = bytes.split_first().map(|(layout, rest)| (*layout, rest))? else {
            return None;
        };
        let (channel, rest) = rest.split_first()?;
        let (ids, rest) = rest.split_at_checked(3 * 16)?;
        let (seconds, _) = rest.split_first_chunk::<4>()?;
        let id = |at: usize| Uuid::from_slice(&ids[16 * at..][..16]).ok();
        Some(Self {
            channel: *Channel::ALL.get(usize::from(*channel))?,
            notification: NotificationId(id(0)?),
            job: Some(JobId(id(1)?)),
            address: AddressId(id(2)?),
            sent_at: Some(Timestamp::from_second(u32::from_be_bytes(*seconds).into()).ok()?),
        })
    }
}

impl Unsubscription {
    /// The token of the link, for a delivery of `app` that `home` works on: the app, a dot, and base64url. `None` if the mesh has no
    /// key of ids.
    pub fn sign(&self, ids: &IdKey, app: &AppId, home: &Region) -> Option<String> {
        let mut bytes = self.reference.bytes();
        if let Some(category) = &self.category {
            bytes.extend_from_slice(category.as_str().as_bytes());
        }
        let mac = mac(ids, Purpose::Unsubscription, app, home, &bytes)?;
        bytes.extend_from_slice(&mac);
        Some(format!("{app}.{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Reads the token of a link, and finds its app, and its region among `regions`. `None` if this mesh did not sign it.
    pub fn open<'a>(
        ids: &IdKey,
        regions: impl IntoIterator<Item = &'a Region>,
        token: &str,
    ) -> Option<(AppId, Self, &'a Region)> {
        let (app, text) = token.split_once('.')?;
        let app: AppId = app.parse().ok()?;
        let (signed, home) = open(ids, Purpose::Unsubscription, MAC_BYTES, &app, regions, text)?;
        let (fixed, category) = signed.split_at_checked(FIXED_BYTES)?;
        let category = match category {
            [] => None,
            name => Some(std::str::from_utf8(name).ok()?.parse().ok()?),
        };
        let reference = Reference::read(fixed)?;
        Some((app, Self { reference, category }, home))
    }
}

/// The right to see and change the preferences of a recipient, from a link that its app gave away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceLink {
    /// The recipient, of the app of the link.
    pub recipient: RecipientId,
    /// When the right ends, to the second.
    pub expires_at: Timestamp,
}

impl PreferenceLink {
    /// The token of the link, for a recipient of `app` in whatever region: the app, a dot, and base64url. `None` if the mesh has no
    /// key of ids.
    pub fn sign(&self, ids: &IdKey, app: &AppId) -> Option<String> {
        let seconds = u32::try_from(self.expires_at.as_second()).unwrap_or_default();
        let mut bytes = vec![LAYOUT];
        bytes.extend_from_slice(&seconds.to_be_bytes());
        bytes.extend_from_slice(self.recipient.as_str().as_bytes());
        let mac = ids.mac(&parts(Purpose::Preferences, app, "", &bytes))?;
        bytes.extend_from_slice(&mac);
        Some(format!("{app}.{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Reads the token of a link, and finds its app. `None` if this mesh did not sign it. Whether it has ended is for the caller to
    /// say.
    pub fn open(ids: &IdKey, token: &str) -> Option<(AppId, Self)> {
        const LONGEST: usize = 5 + RECIPIENT_BYTES_MAX + MAC_BYTES;
        let (app, text) = token.split_once('.')?;
        let app: AppId = app.parse().ok()?;
        if text.len() > LONGEST.div_ceil(3) * 4 {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (signed, mac) = bytes.split_last_chunk::<MAC_BYTES>()?;
        if !ids.verifies(&parts(Purpose::Preferences, &app, "", signed), mac) {
            return None;
        }
        let (LAYOUT, rest) = signed.split_first().map(|(layout, rest)| (*layout, rest))? else {
            return None;
        };
        let (seconds, recipient) = rest.split_first_chunk::<4>()?;
        let link = Self {
            recipient: std::str::from_utf8(recipient).ok()?.parse().ok()?,
            expires_at: Timestamp::from_second(u32::from_be_bytes(*seconds).into()).ok()?,
        };
        Some((app, link))
    }
}

/// What was signed in `text`, and the region that it was signed for.
fn open<'a>(
    ids: &IdKey,
    purpose: Purpose,
    mac_bytes: usize,
    app: &AppId,
    regions: impl IntoIterator<Item = &'a Region>,
    text: &str,
) -> Option<(Vec<u8>, &'a Region)> {
    const LONGEST: usize = FIXED_BYTES + CATEGORY_BYTES_MAX + MAC_BYTES;
    if text.len() > LONGEST.div_ceil(3) * 4 {
        return None;
    }
    let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let mac_at = bytes.len().checked_sub(mac_bytes)?;
    let given = bytes.split_off(mac_at);
    let home = regions.into_iter().find(|home| {
        let parts = parts(purpose, app, home.as_str(), &bytes);
        ids.verifies(&parts, &given)
    })?;
    Some((bytes, home))
}

fn mac(ids: &IdKey, purpose: Purpose, app: &AppId, home: &Region, signed: &[u8]) -> Option<[u8; MAC_BYTES]> {
    ids.mac(&parts(purpose, app, home.as_str(), signed))
}

/// What an HMAC covers. A link that is good in every region has no `home`, and no region has that name.
fn parts<'a>(purpose: Purpose, app: &'a AppId, home: &'a str, signed: &'a [u8]) -> [&'a [u8]; 5] {
    [
        b"reference",
        purpose.as_str().as_bytes(),
        app.as_str().as_bytes(),
        home.as_bytes(),
        signed,
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::id_key;

    fn region(name: &str) -> Region {
        name.parse().unwrap()
    }

    fn app(name: &str) -> AppId {
        name.parse().unwrap()
    }

    fn reference(seed: u128) -> Reference {
        let id = |offset| Uuid::from_u128(seed.wrapping_add(offset));
        Reference {
            channel: Channel::Email,
            notification: NotificationId(id(1)),
            job: Some(JobId(id(2))),
            address: AddressId(id(3)),
            sent_at: Some(Timestamp::from_second(1_764_000_000).unwrap()),
        }
    }

    proptest! {
        #[test]
        fn a_reference_is_read_as_it_was_signed(seed: u128, channel in 0usize..4, seconds: u32) {
            let signed = Reference {
                channel: Channel::ALL[channel],
                sent_at: Some(Timestamp::from_second(seconds.into()).unwrap()),
                ..reference(seed)
            };
            let regions = [region("eu"), region("us")];
            let text = signed.sign(&id_key(7), &app("shop"), &regions[1]).unwrap();
            prop_assert_eq!(text.len(), 94);
            let opened = Reference::open(&id_key(7), &app("shop"), &regions, &text);
            prop_assert_eq!(opened, Some((signed, &regions[1])));
            let short = signed.sign_short(&id_key(7), &app("shop"), &regions[1]).unwrap();
            prop_assert!(is_short(&short) && !is_short(&text));
            let (opened, home) = Reference::open(&id_key(7), &app("shop"), &regions, &short).unwrap();
            prop_assert_eq!((opened.notification, opened.address, home), (signed.notification, signed.address, &regions[1]));
            prop_assert_eq!((opened.delivery(), opened.channel), (None, Channel::Email));
            prop_assert_eq!(Reference::open(&id_key(7), &app("bank"), &regions, &short), None);
            prop_assert_eq!(Reference::open(&id_key(8), &app("shop"), &regions, &short), None);
        }

        #[test]
        fn no_changed_byte_is_accepted(at in 0usize..94, at_of_short in 0usize..56, by in 1u8..64) {
            const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let eu = [region("eu")];
            let long = reference(1).sign(&id_key(7), &app("shop"), &eu[0]).unwrap();
            let short = reference(1).sign_short(&id_key(7), &app("shop"), &eu[0]).unwrap();
            for (text, at) in [(long, at), (short, at_of_short)] {
                let mut text = text.into_bytes();
                let old = ALPHABET.iter().position(|byte| *byte == text[at]).unwrap();
                text[at] = ALPHABET[(old + usize::from(by)) % 64];
                let text = String::from_utf8(text).unwrap();
                prop_assert_eq!(Reference::open(&id_key(7), &app("shop"), &eu, &text), None);
            }
        }

        #[test]
        fn reading_never_panics(text in "\\PC{0,220}") {
            let eu = [region("eu")];
            prop_assert_eq!(Reference::open(&id_key(7), &app("shop"), &eu, &text), None);
            prop_assert_eq!(Unsubscription::open(&id_key(7), &eu, &text), None);
            prop_assert_eq!(PreferenceLink::open(&id_key(7), &text), None);
        }

        #[test]
        fn a_link_to_preferences_is_read_as_it_was_signed(recipient in "[^\\s\\x00-\\x1f\\x7f-\\x9f]{1,32}", seconds: u32, at: prop::sample::Index) {
            let link = PreferenceLink {
                recipient: recipient.parse().unwrap(),
                expires_at: Timestamp::from_second(seconds.into()).unwrap(),
            };
            let token = link.sign(&id_key(7), &app("shop")).unwrap();
            prop_assert_eq!(PreferenceLink::open(&id_key(7), &token), Some((app("shop"), link)));
            prop_assert_eq!(PreferenceLink::open(&id_key(8), &token), None);
            prop_assert_eq!(PreferenceLink::open(&id_key(7), &token.replace("shop.", "bank.")), None);
            let mut changed = token.clone().into_bytes();
            let at = at.index(changed.len());
            changed[at] = if changed[at] == b'a' { b'b' } else { b'a' };
            prop_assert_eq!(PreferenceLink::open(&id_key(7), std::str::from_utf8(&changed).unwrap()), None);
        }
    }

    #[test]
    fn a_link_to_preferences_opens_nothing_else_and_nothing_else_opens_them() {
        let (eu, ids) = ([region("eu")], id_key(7));
        let link = |recipient: &str| PreferenceLink {
            recipient: recipient.parse().unwrap(),
            expires_at: Timestamp::from_second(1_764_000_000).unwrap(),
        };
        // As long as the bytes of an unsubscription.
        let token = link(&"a".repeat(FIXED_BYTES - 5)).sign(&ids, &app("shop")).unwrap();
        assert_eq!(Unsubscription::open(&ids, &eu, &token), None);
        assert!(Reference::open(&ids, &app("shop"), &eu, token.split_once('.').unwrap().1).is_none());
        let unsubscription = Unsubscription {
            reference: reference(1),
            category: None,
        };
        let foreign = unsubscription.sign(&ids, &app("shop"), &eu[0]).unwrap();
        assert_eq!(PreferenceLink::open(&ids, &foreign), None);
        let longest = link(&"a".repeat(RECIPIENT_BYTES_MAX));
        let token = longest.sign(&ids, &app("shop")).unwrap();
        assert_eq!(PreferenceLink::open(&ids, &token), Some((app("shop"), longest)));
        assert_eq!(link("ann").sign(&IdKey::unkeyed(), &app("shop")), None);
        assert_eq!(PreferenceLink::open(&IdKey::unkeyed(), &token), None);
    }

    #[test]
    fn a_reference_holds_for_its_app_its_mesh_and_its_purpose_alone() {
        let regions = [region("eu"), region("us")];
        let text = reference(1).sign(&id_key(7), &app("shop"), &regions[0]).unwrap();
        let opens = |key: &IdKey, name: &str, regions: &[Region], text: &str| {
            Reference::open(key, &app(name), regions, text).is_some()
        };
        assert!(opens(&id_key(7), "shop", &regions, &text));
        assert!(!opens(&id_key(7), "bank", &regions, &text), "another app");
        assert!(!opens(&id_key(8), "shop", &regions, &text), "another mesh");
        assert!(
            !opens(&id_key(7), "shop", &regions[1..], &text),
            "a region that is gone"
        );
        assert!(!opens(&IdKey::unkeyed(), "shop", &regions, &text));
        assert!(
            reference(1)
                .sign(&IdKey::unkeyed(), &app("shop"), &regions[0])
                .is_none()
        );
        let unsubscription = Unsubscription {
            reference: reference(1),
            category: None,
        };
        let token = unsubscription.sign(&id_key(7), &app("shop"), &regions[0]).unwrap();
        let (_, text_of_token) = token.split_once('.').unwrap();
        assert!(!opens(&id_key(7), "shop", &regions, text_of_token), "another purpose");
        let as_token = format!("shop.{text}");
        assert!(Unsubscription::open(&id_key(7), &regions, &as_token).is_none());
    }

    #[test]
    fn a_link_unsubscribes_from_its_category_at_its_app_alone() {
        let regions = [region("eu"), region("us")];
        for category in [None, Some("news".parse().unwrap())] {
            let signed = Unsubscription {
                reference: reference(9),
                category,
            };
            let token = signed.sign(&id_key(7), &app("shop"), &regions[1]).unwrap();
            let opened = Unsubscription::open(&id_key(7), &regions, &token);
            assert_eq!(opened, Some((app("shop"), signed, &regions[1])));
            let stolen = token.replace("shop.", "bank.");
            assert_eq!(Unsubscription::open(&id_key(7), &regions, &stolen), None);
        }
    }
}
