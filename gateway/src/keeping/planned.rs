//! Keeps a consumer of what is due for each app, and removes what is planned of apps that are gone.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use async_nats::jetstream;
use shared::{
    id::{AppId, Region},
    nats::{config::Config, topology},
};
use tokio::{
    sync::watch,
    time::{Instant, interval},
};

/// How often consumers are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long an app is gone before what is planned of it is removed. Another gateway may have read of a new app before this one.
const REMOVED_AFTER: Duration = Duration::from_secs(5);

/// Keeps the consumers of the region `here` until the process ends, and says in `served` which apps have one.
pub(crate) async fn run(js: jetstream::Context, config: Config, here: Region, served: watch::Sender<BTreeSet<AppId>>) {
    let (mut news, mut check) = (config.changes(), interval(CHECK_INTERVAL));
    let mut gone: HashMap<AppId, Instant> = HashMap::new();
    loop {
        tokio::select! {
            _ = check.tick() => {}
            changed = news.changed() => if changed.is_err() { return },
        }
        // While the configuration is being read, apps that are not read yet must lose nothing.
        if !config.is_loaded() {
            continue;
        }
        let tenants = config.tenants();
        let found = match topology::planned(&js).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "cannot list what is due; retrying");
                continue;
            }
        };
        let apps = tenants.apps.values();
        let lives_here = apps.filter(|app| app.residency.as_ref().is_none_or(|region| *region == here));
        let wanted: BTreeSet<AppId> = lives_here.map(|app| app.id.clone()).collect();
        let made = make_missing(&js, &wanted, &found).await;
        gone.retain(|app, _| found.contains(app) && !tenants.apps.contains_key(app));
        for app in found.into_iter().filter(|app| !tenants.apps.contains_key(app)) {
            if gone.entry(app.clone()).or_insert_with(Instant::now).elapsed() >= REMOVED_AFTER {
                match topology::retire_planned(&js, &app).await {
                    Ok(0) => {}
                    Ok(messages) => tracing::warn!(%app, messages, "removed what was planned of an app that is gone"),
                    Err(error) => {
                        tracing::warn!(%app, %error, "cannot remove what is planned of an app that is gone; retrying")
                    }
                }
            }
        }
        served.send_if_modified(|known| {
            let differs = *known != made;
            *known = made;
            differs
        });
    }
}

/// Makes the consumers that are missing. Returns the apps that have one now.
async fn make_missing(js: &jetstream::Context, wanted: &BTreeSet<AppId>, found: &HashSet<AppId>) -> BTreeSet<AppId> {
    let mut made = BTreeSet::new();
    for app in wanted {
        if found.contains(app) {
            made.insert(app.clone());
            continue;
        }
        match topology::apply_planned(js, app).await {
            Ok(()) => drop(made.insert(app.clone())),
            Err(error) => tracing::warn!(%app, %error, "cannot make the consumer of what is due; retrying"),
        }
    }
    made
}
