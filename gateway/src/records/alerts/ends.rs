//! API keys that end soon: a metric for each app, and an alert.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use shared::{
    api_key::ApiKey,
    id::AppId,
    nats::{config::Tenants, nonce},
};
use tokio::time::sleep;

use super::{Alerts, TRIES_MAX};

/// How long before its end a key is reported.
const REPORTED_BEFORE: SignedDuration = SignedDuration::from_hours(14 * 24);

/// After this time it is reported once more.
const REPORTED_AGAIN_AFTER: Duration = Duration::from_hours(48);

/// How often the ends of keys are looked at.
const LOOK_EVERY: Duration = Duration::from_mins(10);

/// The data of an alert.
#[derive(Debug, Serialize)]
struct Expiring<'a> {
    app: &'a AppId,
    /// What ends: `api_key`.
    credential: &'static str,
    key_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    expires_at: Timestamp,
}

impl Alerts {
    /// Records when the first key of each app ends, and reports keys that end soon, until the process ends.
    pub(super) async fn report_ends(self: &Arc<Self>) {
        // It cannot be closed: its sender lives as long as the configuration.
        drop(self.context.config.changes().wait_for(|changes| *changes > 0).await);
        loop {
            let tenants = self.context.config.tenants();
            let now = self.context.clock.now();
            for (app, seconds) in first_ends(&tenants, now) {
                self.context.telemetry.metrics.expires_in(Some(app), seconds);
            }
            for (app, keys) in ending(&tenants, now) {
                tokio::spawn(Arc::clone(self).report_keys(app.clone(), keys));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Reports each of `keys` of an app, unless a gateway of any region did so within two days.
    async fn report_keys(self: Arc<Self>, app: AppId, keys: Vec<Arc<ApiKey>>) {
        for key in keys {
            let context = &self.context;
            let taking = nonce::take(
                &context.js,
                &context.border,
                &context.here,
                &app,
                &key.key_id,
                "expiring",
                REPORTED_AGAIN_AFTER,
            );
            match taking.await {
                Ok(true) => self.report_key(&app, &key).await,
                Ok(false) => {}
                Err(error) => tracing::debug!(%app, %error, "it is not known whether the end of a key was reported"),
            }
        }
    }

    async fn report_key(&self, app: &AppId, key: &ApiKey) {
        let id = format!("expiring-{}-{}", key.key_id, self.context.clock.now().as_second());
        for _ in 0..TRIES_MAX {
            while let Some(wait) = self.wait_for(app) {
                sleep(wait).await;
            }
            let Ok(_place) = self.places.acquire().await else {
                return;
            };
            let tenants = self.context.config.tenants();
            let (Some(known), Some(expires_at)) = (tenants.apps.get(app), key.expires_at) else {
                return;
            };
            let data = Expiring {
                app,
                credential: "api_key",
                key_id: &key.key_id,
                name: key.name.as_deref(),
                expires_at,
            };
            let posted = self.post(known, "credential.expiring", &id, data).await;
            if let Err(error) = &posted {
                tracing::warn!(%app, key_id = key.key_id, error, "alert was not accepted");
            }
            if self.note(app, posted.is_ok()).is_none() {
                return;
            }
        }
    }
}

/// Seconds until the first key of each app ends that has not ended yet; infinite without an end.
fn first_ends(tenants: &Tenants, now: Timestamp) -> BTreeMap<&AppId, f64> {
    let mut first: BTreeMap<_, _> = tenants.apps.keys().map(|app| (app, f64::INFINITY)).collect();
    for key in tenants.keys.values().filter(|key| key.is_live(now)) {
        if let (Some(end), Some(first)) = (key.expires_at, first.get_mut(&key.app)) {
            *first = first.min(end.duration_since(now).as_secs_f64());
        }
    }
    first
}

/// The keys to report, of apps that have a webhook for alerts.
fn ending(tenants: &Tenants, now: Timestamp) -> BTreeMap<&AppId, Vec<Arc<ApiKey>>> {
    let is_alerted = |app: &AppId| tenants.apps.get(app).is_some_and(|app| app.alerts.is_some());
    let is_ending = |end: Timestamp| end > now && end.duration_since(now) <= REPORTED_BEFORE;
    let mut ending: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for key in tenants.keys.values() {
        if key.expires_at.is_some_and(is_ending) && is_alerted(&key.app) {
            ending.entry(&key.app).or_default().push(Arc::clone(key));
        }
    }
    ending
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use shared::app::App;

    use super::*;

    #[test]
    fn a_key_counts_from_two_weeks_before_its_end_until_it_has_ended() {
        let mut tenants = Tenants::default();
        let now = Timestamp::from_second(100_000_000).unwrap();
        for (id, alerts) in [
            ("shop", json!({ "url": "https://x", "secret": "" })),
            ("bank", json!(null)),
        ] {
            let app = json!({ "id": id, "default_region": "eu", "alerts": alerts });
            let app: App = serde_json::from_value(app).unwrap();
            tenants.apps.insert(app.id.clone(), app.into());
        }
        let days = |days: i64| (now + SignedDuration::from_hours(days * 24)).to_string();
        for (key_id, app, end) in [
            ("never", "shop", None),
            ("far", "shop", Some(days(15))),
            ("soon", "shop", Some(days(14))),
            ("now", "shop", Some(days(0))),
            ("past", "shop", Some(days(-1))),
            ("untold", "bank", Some(days(1))),
        ] {
            let key = json!({ "key_id": key_id, "app": app, "hmac": "", "scopes": [], "expires_at": end });
            let key: ApiKey = serde_json::from_value(key).unwrap();
            tenants.keys.insert(key_id.to_owned(), key.into());
        }
        let ending = ending(&tenants, now);
        let told = ending
            .iter()
            .map(|(app, keys)| (app.as_str(), keys[0].key_id.as_str(), keys.len()));
        assert_eq!(told.collect::<Vec<_>>(), [("shop", "soon", 1)]);
        let day = 86_400.0;
        let first = |tenants: &Tenants| -> Vec<(String, f64)> {
            let first = first_ends(tenants, now).into_iter();
            first.map(|(app, seconds)| (app.to_string(), seconds / day)).collect()
        };
        assert_eq!(first(&tenants), [("bank".into(), 1.0), ("shop".into(), 14.0)]);
        tenants.keys.clear();
        assert!(first(&tenants).iter().all(|(_, days)| days.is_infinite()));
    }
}
