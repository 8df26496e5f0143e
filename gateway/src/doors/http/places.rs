//! Places for requests that last, such as imports: a gateway has few, and each app at most one of them.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::header;
use shared::{id::AppId, lifecycle::Lifecycle};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{OVERLOADED, Problem};
use crate::intake::budget::TooMany;

/// Requests of one kind in progress at a gateway.
const PLACES_MAX: usize = 2;

/// When to ask for a place again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The places for one kind of request.
#[derive(Debug)]
pub(crate) struct Places {
    /// What takes them, in the plural.
    name: &'static str,
    of_all: Arc<Semaphore>,
    apps: Arc<Mutex<HashSet<AppId>>>,
    pub(super) lifecycle: Lifecycle,
}

/// A place for one request, until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _of_all: OwnedSemaphorePermit,
    app: AppId,
    apps: Arc<Mutex<HashSet<AppId>>>,
}

impl Places {
    pub(crate) fn new(name: &'static str, lifecycle: Lifecycle) -> Self {
        Self {
            name,
            of_all: Arc::new(Semaphore::new(PLACES_MAX)),
            apps: Arc::default(),
            lifecycle,
        }
    }

    /// A place for a request of `app`, which has at most one.
    pub(super) fn enter(&self, app: &AppId) -> Result<Place, Problem> {
        let mut apps = lock(&self.apps);
        if apps.contains(app) {
            let too_many = TooMany {
                limit: self.name,
                retry_after: RETRY_AFTER,
            };
            return Err(too_many.into());
        }
        let of_all = Arc::clone(&self.of_all).try_acquire_owned();
        let of_all = of_all.map_err(|_| {
            let detail = format!(
                "Other {} are in progress. Repeat after the time in Retry-After.",
                self.name
            );
            Problem::new(OVERLOADED, detail).header(header::RETRY_AFTER, RETRY_AFTER.as_secs().into())
        })?;
        apps.insert(app.clone());
        Ok(Place {
            _of_all: of_all,
            app: app.clone(),
            apps: Arc::clone(&self.apps),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.apps).remove(&self.app);
    }
}

fn lock(apps: &Mutex<HashSet<AppId>>) -> MutexGuard<'_, HashSet<AppId>> {
    apps.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_has_one_place_and_all_have_few() {
        let imports = Places::new("imports", Lifecycle::default());
        let enter = |app: &str| imports.enter(&app.parse().unwrap());
        let code = |app: &str| enter(app).unwrap_err().kind().code;
        let (shop, _bank) = (enter("shop").unwrap(), enter("bank").unwrap());
        assert_eq!((code("shop"), code("club")), ("rate_limited", "overloaded"));
        drop(shop);
        drop(enter("shop").unwrap());
        let _club = enter("club").unwrap();
        assert_eq!(code("shop"), "overloaded");
    }
}
