//! A temporary certificate authority for the simulators.

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

/// The names for which the leaf certificate is valid: loopback and the providers' hosts. A client whose host cannot be
/// configured can be redirected to a simulator by its resolver.
const NAMES: [&str; 6] = [
    "localhost",
    "127.0.0.1",
    "api.push.apple.com",
    "api.sandbox.push.apple.com",
    "fcm.googleapis.com",
    "oauth2.googleapis.com",
];

/// A certificate authority and one leaf certificate. The authority's key is discarded after it has signed the leaf.
///
/// Clones share the same authority, so that one client can trust several simulators, and a simulator that is restarted.
#[derive(Clone, Debug)]
pub struct Authority {
    pem: Arc<str>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    leaf_pem: Arc<str>,
    key_pem: Arc<str>,
}

impl Authority {
    /// Generates an authority, and a leaf for `localhost`, `127.0.0.1`, every address in a [`network::Network`] and the
    /// providers' host names.
    pub fn generate() -> anyhow::Result<Self> {
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "Peal simulators");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)
            .context("generating the simulators' certificate authority")?;

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

    /// The authority's certificate, which clients must trust, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The leaf certificate, valid for servers and clients, PEM.
    pub fn leaf_pem(&self) -> &str {
        &self.leaf_pem
    }

    /// The private key of [`Self::leaf_pem`], PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// A server configuration for TLS 1.2 and 1.3 that offers these ALPN protocols, the preferred one first.
    pub fn server_config(&self, alpn: &[&[u8]]) -> anyhow::Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }
}
