//! A throw-away certificate authority for the simulators.

use std::sync::Arc;

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::network;

/// The names the leaf certificate is valid for: loopback, and the providers' own, so that a client which cannot be
/// given another host can be sent here by its resolver.
const NAMES: [&str; 6] = [
    "localhost",
    "127.0.0.1",
    "api.push.apple.com",
    "api.sandbox.push.apple.com",
    "fcm.googleapis.com",
    "oauth2.googleapis.com",
];

/// A certificate authority and one leaf certificate, made when asked and never stored with their keys.
///
/// Clones share the same authority: several simulators, and a simulator that is stopped and started again, can stay
/// trusted by one client.
#[derive(Clone, Debug)]
pub struct Authority {
    pem: Arc<str>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    leaf_pem: Arc<str>,
    key_pem: Arc<str>,
}

impl Authority {
    /// Makes an authority and a leaf for `localhost`, `127.0.0.1`, every address in a [`network::Network`] and the providers' host names.
    pub fn generate() -> anyhow::Result<Self> {
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "Peal simulators");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)
            .context("making the simulators' certificate authority")?;

        let names = NAMES.map(String::from).into_iter();
        let addresses = network::addresses().map(|address| address.to_string());
        let mut leaf = CertificateParams::new(names.chain(addresses).collect::<Vec<_>>())?;
        leaf.distinguished_name.push(DnType::CommonName, "localhost");
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        leaf.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let leaf = leaf
            .signed_by(&key, &ca)
            .context("signing the simulators' certificate")?;

        Ok(Self {
            pem: ca.pem().into(),
            chain: vec![leaf.der().clone()],
            key: Arc::new(PrivatePkcs8KeyDer::from(key.serialize_der()).into()),
            leaf_pem: leaf.pem().into(),
            key_pem: key.serialize_pem().into(),
        })
    }

    /// The certificate clients must trust, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The leaf certificate, good for servers and clients, PEM.
    pub fn leaf_pem(&self) -> &str {
        &self.leaf_pem
    }

    /// The private key of [`Self::leaf_pem`], PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// TLS 1.2 and 1.3 server settings that offer these ALPN protocols, the preferred one first.
    pub fn server_config(&self, alpn: &[&[u8]]) -> anyhow::Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }
}
