//! When the certificate ends with which this process connects to its servers.

use std::{fs, path::Path, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;
use x509_parser::pem::Pem;

use super::connect::Nats;
use crate::{clock::Clock, telemetry::Telemetry};

/// How often the file is read: a new certificate takes its place before the former ends.
const READ_EVERY: Duration = Duration::from_hours(1);

/// How long before its end the certificate is named in the log.
const WARNED_BEFORE: SignedDuration = SignedDuration::from_hours(14 * 24);

/// Records until the process ends how long the certificate of `nats` still lasts, if there is one.
pub fn watch(nats: &Nats, clock: &Clock, telemetry: &Telemetry) -> impl Future<Output = ()> + Send + use<> {
    let (file, clock, metrics) = (nats.cert_file.clone(), clock.clone(), telemetry.metrics.clone());
    async move {
        loop {
            if let Some(end) = file.as_deref().and_then(ends_at) {
                let left = end.duration_since(clock.now());
                metrics.expires_in(None, left.as_secs_f64());
                if left < WARNED_BEFORE {
                    tracing::warn!(%end, "the certificate in nats.cert_file ends soon");
                }
            }
            sleep(READ_EVERY).await;
        }
    }
}

/// When the first of the certificates in the PEM `file` ends; `None` if there is none.
fn ends_at(file: &Path) -> Option<Timestamp> {
    let pem = fs::read(file).ok()?;
    let ends = Pem::iter_from_buffer(&pem).filter_map(|part| {
        let part = part.ok().filter(|part| part.label == "CERTIFICATE")?;
        let end = part.parse_x509().ok()?.validity().not_after.timestamp();
        Timestamp::from_second(end).ok()
    });
    ends.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Self-signed, valid through the year 2026.
    const CERTIFICATE: &str = include_str!("testdata/certificate.pem");

    #[test]
    fn the_first_end_of_a_file_is_read() {
        let folder = std::env::temp_dir().join(format!("peal-certificate-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("cert.pem");
        for (text, end) in [
            (CERTIFICATE.to_owned(), Some("2027-01-01T00:00:00Z".parse().unwrap())),
            (CERTIFICATE.repeat(2), Some("2027-01-01T00:00:00Z".parse().unwrap())),
            ("no certificate".to_owned(), None),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(ends_at(&file), end);
        }
        assert_eq!(ends_at(&folder.join("none")), None);
        fs::remove_dir_all(folder).unwrap();
    }
}
