//! Encryption of a payload to one subscription: RFC 8291 over RFC 8188 (`aes128gcm`), as a single record.

use aws_lc_rs::{
    aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree},
    error::Unspecified,
    hkdf::{HKDF_SHA256, KeyType, Prk, Salt},
};
use shared::provider::web_push::Target;

/// Length in bytes of the salt (RFC 8188, section 2.1).
const SALT_BYTES: usize = 16;

/// The record size that the header states. It is the limit of push services for a whole body, so that one record holds
/// every payload.
const RECORD_BYTES: u32 = 4096;

/// Bytes that encryption adds to a payload: the header (salt, record size, length of the key, key), the delimiter and the
/// authentication tag.
const ADDED_BYTES: usize = SALT_BYTES + 4 + 1 + 65 + 1 + 16;

/// The delimiter after the content of the last record (RFC 8188, section 2).
const LAST_RECORD: u8 = 2;

/// The body that only the browser of `target` can read. Each has a key pair and a salt of its own, so that two bodies never
/// share a key.
///
/// # Errors
/// If the subscription's key is no point of the curve, or no random bytes can be had.
pub(super) fn encrypt(target: &Target, payload: &[u8]) -> Result<Vec<u8>, Unspecified> {
    let mut salt = [0; SALT_BYTES];
    aws_lc_rs::rand::fill(&mut salt)?;
    encrypt_with(&PrivateKey::generate(&ECDH_P256)?, salt, target, payload)
}

fn encrypt_with(
    own: &PrivateKey,
    salt: [u8; SALT_BYTES],
    target: &Target,
    payload: &[u8],
) -> Result<Vec<u8>, Unspecified> {
    let own_public = own.compute_public_key()?;
    let (own_public, browser_public) = (own_public.as_ref(), target.p256dh.reveal());
    let key_material = agree(
        own,
        UnparsedPublicKey::new(&ECDH_P256, browser_public),
        Unspecified,
        |secret| {
            let shared = Salt::new(HKDF_SHA256, target.auth.reveal()).extract(secret);
            derive::<32>(&shared, &[b"WebPush: info\0", browser_public, own_public])
        },
    )?;
    let keys = Salt::new(HKDF_SHA256, &salt).extract(&key_material);
    let key = derive::<16>(&keys, &[b"Content-Encoding: aes128gcm\0"])?;
    let nonce = derive::<12>(&keys, &[b"Content-Encoding: nonce\0"])?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key)?);
    let mut record = Vec::with_capacity(payload.len() + 1);
    record.extend_from_slice(payload);
    record.push(LAST_RECORD);
    let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut record)?;

    let mut body = Vec::with_capacity(payload.len() + ADDED_BYTES);
    body.extend_from_slice(&salt);
    body.extend_from_slice(&RECORD_BYTES.to_be_bytes());
    body.push(u8::try_from(own_public.len()).map_err(|_| Unspecified)?);
    body.extend_from_slice(own_public);
    body.extend_from_slice(&record);
    body.extend_from_slice(tag.as_ref());
    Ok(body)
}

/// HKDF's second step, to `N` bytes.
fn derive<const N: usize>(keys: &Prk, info: &[&[u8]]) -> Result<[u8; N], Unspecified> {
    let mut derived = [0; N];
    keys.expand(info, Length(N))?.fill(&mut derived)?;
    Ok(derived)
}

/// A number of bytes, for HKDF.
#[derive(Clone, Copy)]
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    use shared::provider::web_push::MAX_PAYLOAD;

    use super::*;

    fn decode(text: &str) -> Vec<u8> {
        BASE64_URL_SAFE_NO_PAD.decode(text).unwrap()
    }

    fn target(p256dh: &str, auth: &str) -> Target {
        let endpoint = "https://push.example.net/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV";
        Target::new(endpoint, p256dh.parse().unwrap(), auth.parse().unwrap()).unwrap()
    }

    /// RFC 8291, section 5 and appendix A.
    #[test]
    fn the_example_of_the_rfc_comes_out_byte_for_byte() {
        let own =
            PrivateKey::from_private_key(&ECDH_P256, &decode("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw")).unwrap();
        let salt = decode("DGv6ra1nlYgDCS1FRnbzlw").try_into().unwrap();
        let target = target(
            "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
            "BTBZMqHH6r4Tts7J_aSIgg",
        );
        let body = encrypt_with(&own, salt, &target, b"When I grow up, I want to be a watermelon").unwrap();
        assert_eq!(
            BASE64_URL_SAFE_NO_PAD.encode(body),
            "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl\
             7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
        );
    }

    #[test]
    fn the_longest_payload_fills_the_longest_body_and_no_two_bodies_share_a_key() {
        let browser = PrivateKey::generate(&ECDH_P256).unwrap();
        let p256dh = BASE64_URL_SAFE_NO_PAD.encode(browser.compute_public_key().unwrap());
        let target = target(&p256dh, "BTBZMqHH6r4Tts7J_aSIgg");
        let [one, other] = [(); 2].map(|()| encrypt(&target, &[b'x'; MAX_PAYLOAD]).unwrap());
        assert_eq!(one.len(), 4096);
        assert_ne!(one[..SALT_BYTES], other[..SALT_BYTES]);
        assert_ne!(one[21..86], other[21..86]);
        assert_eq!(encrypt(&target, b"").unwrap().len(), ADDED_BYTES);
    }
}
