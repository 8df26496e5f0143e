//! Tries the private keys of credentials before they serve: a key that parses and signs here signs in every worker.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use serde::Deserialize;

use crate::{invalid::Invalid, secret::Secret};

/// What is signed to try a key.
const TRIED: &[u8] = b"peal";

/// Tries a P-256 key: PKCS#8 in PEM, as Apple issues it.
pub(super) fn p256(key: &Secret) -> Result<(), Invalid> {
    let signs = || {
        let PrivateKeyDer::Pkcs8(der) = PrivateKeyDer::from_pem_slice(key.reveal().as_bytes()).ok()? else {
            return None;
        };
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der()).ok()?;
        pair.sign(&SystemRandom::new(), TRIED).ok()
    };
    match signs() {
        Some(_) => Ok(()),
        None => Err(Invalid::new("", "must be a P-256 private key, PKCS#8 in PEM")),
    }
}

/// Tries the RSA key of a service account of Google, whose file holds it.
pub(super) fn service_account(account: &Secret) -> Result<(), Invalid> {
    #[derive(Deserialize)]
    struct Account {
        private_key: Secret,
    }
    let account: Option<Account> = serde_json::from_str(account.reveal()).ok();
    let signs = account.and_then(|account| rsa(account.private_key.reveal()));
    match signs {
        Some(()) => Ok(()),
        None => Err(Invalid::new(
            "service_account",
            "must be the JSON of a service account whose private_key is an RSA key in PEM",
        )),
    }
}

/// Tries a key that signs mail (RFC 6376, RFC 8463).
pub(super) fn dkim(key: &Secret) -> Result<(), Invalid> {
    let ed25519 = || {
        let PrivateKeyDer::Pkcs8(der) = PrivateKeyDer::from_pem_slice(key.reveal().as_bytes()).ok()? else {
            return None;
        };
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
            .ok()
            .map(drop)
    };
    match rsa(key.reveal()).or_else(ed25519) {
        Some(()) => Ok(()),
        None => Err(Invalid::new("", "must be an RSA or Ed25519 private key in PEM")),
    }
}

fn rsa(pem: &str) -> Option<()> {
    let pair = match PrivateKeyDer::from_pem_slice(pem.as_bytes()).ok()? {
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
        _ => return None,
    };
    let pair = pair.ok()?;
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), TRIED, &mut signature)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const P256: &str = include_str!("../../../edge-worker/src/providers/testdata/p256.pem");
    const RSA: &str = include_str!("../../../edge-worker/src/providers/testdata/rsa2048.pem");

    #[test]
    fn a_key_signs_where_it_belongs_and_nowhere_else() {
        let secret = |text: &str| Secret::from(text.to_owned());
        let account =
            |key: &str| secret(&serde_json::json!({ "private_key": key, "type": "service_account" }).to_string());
        p256(&secret(P256)).unwrap();
        service_account(&account(RSA)).unwrap();
        dkim(&secret(RSA)).unwrap();
        for bad in [RSA, "", "PEM", &P256[..P256.len() / 2]] {
            p256(&secret(bad)).unwrap_err();
        }
        for bad in [account(P256), account("x"), secret("{}"), secret(RSA)] {
            assert_eq!(service_account(&bad).unwrap_err().field, "service_account");
        }
        for bad in [P256, "x"] {
            let error = dkim(&secret(bad)).unwrap_err().to_string();
            assert!(!error.contains("PRIVATE"), "{error}");
        }
    }
}
