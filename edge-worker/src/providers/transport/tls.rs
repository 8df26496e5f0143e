//! TLS to providers, and the certificates it trusts.

use std::{path::Path, sync::Arc};

use rustls_platform_verifier::BuilderVerifierExt;
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::BadSettings;

/// The certificates in `ca_file`, PEM; at least one.
pub(in crate::providers) fn read_ca(ca_file: &Path) -> Result<Vec<CertificateDer<'static>>, BadSettings> {
    let bad = || BadSettings::CaFile(ca_file.to_owned());
    let all = CertificateDer::pem_file_iter(ca_file).map_err(|_| bad())?;
    let all = all.collect::<Result<Vec<_>, _>>().map_err(|_| bad())?;
    if all.is_empty() { Err(bad()) } else { Ok(all) }
}

/// TLS 1.2 and 1.3 with HTTP/2 only. It trusts the certificates in `ca_file`, or else the operating system's.
pub(in crate::providers) fn http2_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, BadSettings> {
    let mut config = config(ca_file)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// TLS 1.2 and 1.3. It trusts the certificates in `ca_file`, or else the operating system's.
pub(in crate::providers) fn config(ca_file: Option<&Path>) -> Result<ClientConfig, BadSettings> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(BadSettings::Platform)?;
    Ok(match ca_file {
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in read_ca(file)? {
                roots
                    .add(certificate)
                    .map_err(|_| BadSettings::CaFile(file.to_owned()))?;
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        None => builder
            .with_platform_verifier()
            .map_err(BadSettings::Platform)?
            .with_no_client_auth(),
    })
}
