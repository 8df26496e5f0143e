//! The SMTP simulator as a [`Simulation`].

use std::path::Path;

use serde_json::{Value, json};
use shared::provider::{
    Provider,
    smtp::{self, Tls},
};

use super::{Encryption, Smtp};
use crate::providers::{RecordedPush, reachable, simulator::Simulation};

impl Smtp {
    /// The credential with which Peal can send through this simulator.
    ///
    /// # Panics
    /// Never: a port that something listens on is not 0.
    pub fn credential(&self) -> smtp::Credential {
        let host = reachable(self.addr());
        let (host, _) = host.rsplit_once(':').unwrap_or((&host, ""));
        smtp::Credential {
            host: host.to_owned(),
            port: Some(self.addr().port().try_into().expect("a port")),
            tls: match self.server.manners().encryption {
                Encryption::Implicit => Tls::Implicit,
                Encryption::StartTls | Encryption::Never => Tls::StartTls,
            },
            user: Some(self.server.user.clone()),
            password: Some(self.server.password.clone().into()),
            bounces: None,
            verp: false,
            sns_topic: None,
            dkim: Vec::new(),
            connections: None,
            hello: None,
        }
    }
}

impl Simulation for Smtp {
    fn provider(&self) -> Provider {
        Provider::Smtp
    }

    fn name(&self) -> &'static str {
        "SMTP"
    }

    /// The server's address is part of an app's credential.
    fn worker_settings(&self, _endpoint: &str) -> String {
        String::new()
    }

    /// It is in the `Message-ID`.
    fn delivery_of<'a>(&self, push: &'a RecordedPush) -> Option<&'a str> {
        let (delivery, _) = push.id.strip_prefix('<')?.split_once('@')?;
        Some(delivery)
    }

    fn keeps_ids(&self) -> bool {
        true
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("smtp_port", self.addr().port().into()),
            ("smtp_user", json!(self.server.user)),
            ("smtp_password", json!(self.server.password)),
        ]
    }

    fn summary(&self, dir: &Path) -> String {
        let (port, dir) = (self.addr().port(), dir.display());
        format!("SMTP   localhost:{port}, STARTTLS  ({dir}/simulators.json has user and password)")
    }

    fn example(&self, dir: &Path) -> String {
        let (port, dir) = (self.addr().port(), dir.display());
        format!(
            "printf 'Subject: ding\\r\\n\\r\\nHello\\r\\n' | curl --ssl-reqd --cacert {dir}/ca.pem \\\n  \
             --user \"$SMTP_USER:$SMTP_PASSWORD\" --mail-from shop@example.com --mail-rcpt ann@example.com \\\n  \
             --upload-file - smtp://localhost:{port}\n"
        )
    }
}
