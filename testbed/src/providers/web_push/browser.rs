//! Browsers: the other end of the encryption (RFC 8291, RFC 8188).

use anyhow::{Context, ensure};
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// The private key of the browser of RFC 8291, appendix A. [`shared::testing`] has its public half, so that tests need no key
/// of their own.
const PRIVATE_KEY_OF_RFC: &str = "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94";

/// The bytes before the key id in a body: the salt, the record size and the length of the key id.
const FIXED_HEADER_BYTES: usize = 16 + 4 + 1;

/// The keys of one subscription.
#[derive(Debug)]
pub(crate) struct Browser {
    private: PrivateKey,
    public: [u8; 65],
    auth: [u8; 16],
}

/// What a site gets from `PushSubscription.toJSON()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The URL to which pushes are posted.
    pub endpoint: String,
    /// The public key, base64url.
    pub p256dh: String,
    /// The authentication secret, base64url.
    pub auth: String,
}

impl Browser {
    pub(crate) fn generate() -> anyhow::Result<Self> {
        let mut auth = [0; 16];
        aws_lc_rs::rand::fill(&mut auth)?;
        Self::new(PrivateKey::generate(&ECDH_P256)?, auth)
    }

    /// The browser of RFC 8291, appendix A.
    pub(crate) fn of_rfc() -> anyhow::Result<Self> {
        let private = BASE64_URL_SAFE_NO_PAD.decode(PRIVATE_KEY_OF_RFC)?;
        let auth = BASE64_URL_SAFE_NO_PAD.decode(shared::testing::WEB_PUSH_AUTH)?;
        let auth = auth.try_into().ok().context("16 bytes")?;
        Self::new(PrivateKey::from_private_key(&ECDH_P256, &private)?, auth)
    }

    fn new(private: PrivateKey, auth: [u8; 16]) -> anyhow::Result<Self> {
        let public = private.compute_public_key()?.as_ref().try_into()?;
        Ok(Self { private, public, auth })
    }

    pub(crate) fn subscription(&self, endpoint: String) -> Subscription {
        Subscription {
            endpoint,
            p256dh: BASE64_URL_SAFE_NO_PAD.encode(self.public),
            auth: BASE64_URL_SAFE_NO_PAD.encode(self.auth),
        }
    }

    /// Decrypts a body of one record.
    ///
    /// # Errors
    /// When the body breaks a rule of the RFCs, or is for another browser.
    pub(crate) fn decrypt(&self, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        let (fixed, rest) = body.split_at_checked(FIXED_HEADER_BYTES).context("the header is cut")?;
        let (salt, sizes) = fixed.split_at(16);
        let record_size = u32::from_be_bytes(sizes[..4].try_into()?);
        let (sender, record) = rest.split_at_checked(sizes[4].into()).context("the key id is cut")?;
        ensure!(
            sender.len() == 65 && sender[0] == 4,
            "the key id is no public key on P-256"
        );
        ensure!(record_size >= 18, "the record size is below the minimum of RFC 8188");
        ensure!(record.len() <= record_size as usize, "RFC 8291 allows one record only");
        let mut content = record.to_vec();
        let (key, nonce) = self.keys(sender, salt).ok().context("keys cannot be derived")?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key)?);
        let opened = key
            .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut content)
            .ok()
            .context("the record is not for this browser")?;
        let end = opened
            .iter()
            .rposition(|byte| *byte != 0)
            .context("there is no delimiter")?;
        ensure!(opened[end] == 2, "the last record ends with the delimiter 2");
        Ok(opened[..end].to_vec())
    }

    fn keys(&self, sender: &[u8], salt: &[u8]) -> Result<([u8; 16], [u8; 12]), Unspecified> {
        let peer = UnparsedPublicKey::new(&ECDH_P256, sender);
        let material: [u8; 32] = agree(&self.private, peer, Unspecified, |secret| {
            let info = [b"WebPush: info\0".as_slice(), &self.public, sender];
            expand(&self.auth, secret, &info)
        })?;
        let key = expand(salt, &material, &[b"Content-Encoding: aes128gcm\0"])?;
        let nonce = expand(salt, &material, &[b"Content-Encoding: nonce\0"])?;
        Ok((key, nonce))
    }
}

/// HKDF with SHA-256 (RFC 5869), both steps.
fn expand<const N: usize>(salt: &[u8], material: &[u8], info: &[&[u8]]) -> Result<[u8; N], Unspecified> {
    let mut out = [0; N];
    let extracted = Salt::new(HKDF_SHA256, salt).extract(material);
    extracted.expand(info, Bytes(N))?.fill(&mut out)?;
    Ok(out)
}

/// A number of bytes.
#[derive(Clone, Copy)]
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8291, section 5.
    #[test]
    fn the_browser_of_the_rfc_decrypts_its_example() {
        let body = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl\
                    7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN";
        let body = BASE64_URL_SAFE_NO_PAD.decode(body).unwrap();
        let browser = Browser::of_rfc().unwrap();
        assert_eq!(
            browser.subscription(String::new()).p256dh,
            shared::testing::WEB_PUSH_P256DH
        );
        assert_eq!(
            browser.decrypt(&body).unwrap(),
            b"When I grow up, I want to be a watermelon"
        );
        assert!(Browser::generate().unwrap().decrypt(&body).is_err());
        for cut in [0, 20, 50, 85, 90, body.len() - 1] {
            assert!(browser.decrypt(&body[..cut]).is_err(), "{cut}");
        }
        let mut changed = body;
        *changed.last_mut().unwrap() ^= 1;
        assert!(browser.decrypt(&changed).is_err());
    }
}
