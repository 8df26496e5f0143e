//! The push service as a [`Simulation`].

use std::path::Path;

use serde_json::{Value, json};
use shared::provider::{Provider, web_push};

use super::WebPush;
use crate::providers::log::RecordedPush;
use crate::providers::reachable;
use crate::providers::simulator::Simulation;

impl WebPush {
    /// The credential with which Peal can send through this simulator.
    pub fn credential(&self) -> web_push::Credential {
        web_push::Credential {
            subject: "mailto:operators@example.com".into(),
            private_key: self.key().pem.clone().into(),
        }
    }
}

impl Simulation for WebPush {
    fn provider(&self) -> Provider {
        Provider::WebPush
    }

    fn name(&self) -> &'static str {
        "web push"
    }

    fn worker_settings(&self, endpoint: &str) -> String {
        let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
        format!("services = [\"{host}\"]\n")
    }

    /// The tag of the notification.
    fn job_of(&self, push: &RecordedPush) -> Option<String> {
        let payload: Value = serde_json::from_slice(&push.payload).ok()?;
        Some(payload.pointer("/notification/tag")?.as_str()?.to_owned())
    }

    fn connection_details(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("web_push_port", self.addr().port().into()),
            ("web_push_key", self.key().public.clone().into()),
        ]
    }

    fn files(&self, _: i64) -> anyhow::Result<Vec<(&'static str, String)>> {
        let subscription = self.subscribe()?;
        let json = json!({
            "endpoint": subscription.endpoint,
            "keys": { "p256dh": subscription.p256dh, "auth": subscription.auth },
        });
        Ok(vec![
            ("web-push.pem", self.key().pem.clone()),
            ("web-push-subscription.json", format!("{json:#}\n")),
        ])
    }

    fn summary(&self, dir: &Path) -> String {
        let (at, dir) = (reachable(self.addr()), dir.display());
        format!(
            "web    https://{at}/push/…  VAPID key {dir}/web-push.pem, subscription {dir}/web-push-subscription.json"
        )
    }

    fn example(&self, dir: &Path) -> String {
        let dir = dir.display();
        format!(
            "echo '{{\"title\":\"ding\"}}' >{dir}/push.json\n\
             testbed web-push --ca {dir}/ca.pem --key {dir}/web-push.pem --push {dir}/push.json \\\n  \
             --subscription {dir}/web-push-subscription.json\n"
        )
    }
}
