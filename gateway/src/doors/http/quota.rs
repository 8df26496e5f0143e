//! What each API key may do: requests a second, and requests at one time. The answer tells what is left
//! (draft-ietf-httpapi-ratelimit-headers).

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    doors::seconds_up,
    intake::{
        budget::{AppBudget, Quota, TooMany},
        meter::{Left, Meter},
    },
};

const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// When to repeat what was refused because too many requests of the key are in progress.
const IN_FLIGHT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What all keys use of their quotas.
#[derive(Debug, Default)]
pub(crate) struct Keys(RwLock<HashMap<String, Arc<KeyUse>>>);

/// What one key uses of its quota.
#[derive(Debug)]
pub(crate) struct KeyUse {
    quota: Quota,
    requests: Meter,
    /// As many permits as requests may be in progress.
    places: Arc<Semaphore>,
    /// The header that states the quota.
    policy: HeaderValue,
}

impl Keys {
    /// The use of the key with this id, which is valid and whose app has `quota`. Entries of keys that are not `known` any
    /// more are removed when another is made.
    pub(super) fn of(&self, key_id: &str, quota: Quota, known: impl Fn(&str) -> bool) -> Arc<KeyUse> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(key_use) = keys.get(key_id).filter(|key_use| key_use.quota == quota) {
            return Arc::clone(key_use);
        }
        drop(keys);
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|key_id, _| known(key_id));
        let new = Arc::new(KeyUse::new(quota));
        keys.insert(key_id.to_owned(), Arc::clone(&new));
        new
    }
}

impl KeyUse {
    fn new(quota: Quota) -> Self {
        let policy = format!(
            "\"key\";q={};w=1, \"app\";q={};w=1",
            quota.requests_per_s, quota.jobs_per_s
        );
        Self {
            quota,
            requests: Meter::new(quota.requests_per_s, quota.requests_per_s),
            places: Arc::new(Semaphore::new(quota.in_flight as usize)),
            policy: HeaderValue::try_from(policy).expect("numbers are ASCII"),
        }
    }

    /// Takes a place for one request, which lasts as long as the permit.
    pub(super) fn enter(&self) -> Result<OwnedSemaphorePermit, TooMany> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| TooMany {
            limit: "in_flight",
            retry_after: IN_FLIGHT_RETRY_AFTER,
        })?;
        match self.requests.take(1) {
            Ok(_) => Ok(place),
            Err(retry_after) => Err(TooMany {
                limit: "requests_per_s",
                retry_after,
            }),
        }
    }
}

/// Whose quota a request used. The layer around the request makes it, and authentication fills it in.
#[derive(Debug, Clone, Default)]
pub(super) struct Used(Arc<OnceLock<(Arc<KeyUse>, Arc<AppBudget>)>>);

impl Used {
    pub(super) fn set(&self, key: Arc<KeyUse>, app: Arc<AppBudget>) {
        self.0.get_or_init(|| (key, app));
    }

    /// Adds the headers that tell the quota and what is left of it.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        if let Some((key, app)) = self.0.get() {
            headers.insert(RATE_LIMIT_POLICY, key.policy.clone());
            let (requests, jobs) = (key.requests.left(), app.jobs_left());
            let left = format!(
                "\"key\";r={};t={}, \"app\";r={};t={}",
                requests.units,
                whole_in(requests),
                jobs.units,
                whole_in(jobs)
            );
            headers.insert(RATE_LIMIT, HeaderValue::try_from(left).expect("numbers are ASCII"));
        }
    }
}

/// Seconds until the whole quota may be used.
fn whole_in(left: Left) -> u64 {
    seconds_up(left.whole_in)
}
