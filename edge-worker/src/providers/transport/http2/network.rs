//! Opens connections to the endpoints of one provider and environment: for pools, for measurements, and a spare one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use rand::Rng;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::ClientConfig;

use super::{
    connection::Connection,
    dial::{CONNECT_TIMEOUT, Unreachable, connect, resolve},
};
use crate::providers::transport::endpoints::{EndpointState, Endpoints, RESOLVE_EVERY, Route};

/// When no known address is healthy, a host is resolved again after this time instead of [`RESOLVE_EVERY`].
const RESOLVE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The endpoints of one provider and environment, and how to connect to them.
#[derive(Debug)]
pub(in crate::providers) struct Network {
    pub(super) endpoints: Arc<Endpoints>,
    tls: Arc<ClientConfig>,
    /// An open, unused connection to another endpoint than the chosen one. It belongs to no credential yet.
    spare: Mutex<Option<Arc<Connection>>>,
}

impl Network {
    pub(in crate::providers) fn new(endpoints: Arc<Endpoints>, tls: Arc<ClientConfig>) -> Arc<Self> {
        Arc::new(Self {
            endpoints,
            tls,
            spare: Mutex::default(),
        })
    }

    /// Connects to the best reachable address, as connection number `nth` of a pool.
    pub(super) async fn dial(&self, nth: usize) -> Result<Arc<Connection>, Unreachable> {
        self.endpoints.mark_used();
        if !self.endpoints.any_healthy() {
            self.resolve(RESOLVE_AGAIN_AFTER).await;
        }
        let mut failure = None;
        for route in self.endpoints.in_order(nth) {
            if let Some(spare) = self.take_spare(&route) {
                return Ok(spare);
            }
            match self.connect(&route).await {
                Ok(connection) => return Ok(connection),
                Err(unreachable) => failure = Some(unreachable),
            }
        }
        Err(failure.unwrap_or_else(|| Unreachable::nowhere(&self.endpoints.report(None))))
    }

    /// Whether the next attempt uses another endpoint after one failed at endpoint `name`.
    pub(in crate::providers) fn has_another(&self, name: &str) -> bool {
        self.endpoints.has_another(name)
    }

    /// The state of every address.
    pub(in crate::providers) fn report(&self) -> Vec<EndpointState> {
        let spare = self.spare().clone();
        self.endpoints.report(spare.as_deref().map(|spare| &*spare.route))
    }

    /// Measures, chooses and keeps a spare connection while the endpoints are in use. Does not end.
    pub(in crate::providers) async fn watch(self: Arc<Self>) {
        let pace = self.endpoints.settings.probe() / 10;
        loop {
            // Spreads the measurements of workers that were started together.
            let jitter = rand::rng().random_range(0.8..1.2);
            sleep(pace.mul_f64(jitter)).await;
            if !self.endpoints.is_in_use() {
                *self.spare() = None;
                continue;
            }
            self.resolve(RESOLVE_EVERY).await;
            if let Some(route) = self.endpoints.next_probe() {
                self.probe(&route).await;
            }
            self.endpoints.review();
            self.keep_spare().await;
        }
    }

    /// Resolves the hosts that were not resolved for `age`.
    async fn resolve(&self, age: Duration) {
        let unresolved = self.endpoints.unresolved(age);
        join_all(unresolved.into_iter().map(async |(index, host)| {
            self.endpoints.resolved(index, &resolve(&host).await);
        }))
        .await;
    }

    async fn connect(&self, route: &Arc<Route>) -> Result<Arc<Connection>, Unreachable> {
        match connect(route, &self.tls).await {
            Ok((sender, driver, took)) => {
                route.connected(took);
                Ok(Connection::start(route.clone(), self.endpoints.clone(), sender, driver))
            }
            Err(unreachable) => {
                self.endpoints.failed(route, unreachable.reason);
                Err(unreachable)
            }
        }
    }

    /// Measures `route` by connecting; keeps the connection if a spare one is needed.
    async fn probe(&self, route: &Arc<Route>) {
        let Ok(connection) = self.connect(route).await else {
            return;
        };
        let pinged = timeout(CONNECT_TIMEOUT, connection.pinged.notified()).await;
        let mut spare = self.spare();
        if pinged.is_ok() && spare.is_none() && self.endpoints.can_be_spare(route) {
            *spare = Some(connection);
        }
    }

    async fn keep_spare(&self) {
        {
            let mut spare = self.spare();
            let fits = |spare: &mut Arc<Connection>| !spare.is_closed() && self.endpoints.can_be_spare(&spare.route);
            if spare.as_mut().is_some_and(fits) {
                return;
            }
            *spare = None;
        }
        if let Some(route) = self.endpoints.spare_route()
            && let Ok(connection) = self.connect(&route).await
        {
            *self.spare() = Some(connection);
        }
    }

    fn take_spare(&self, route: &Route) -> Option<Arc<Connection>> {
        let fits = |spare: &mut Arc<Connection>| std::ptr::eq(&raw const *spare.route, route) && !spare.is_closed();
        self.spare().take_if(fits)
    }

    fn spare(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
