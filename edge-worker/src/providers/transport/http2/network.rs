//! New connections to the endpoints of one provider and environment: for those who need them, to measure, and to spare.

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
use crate::providers::transport::endpoints::{EndpointState, Endpoints, RESOLVED_EVERY, Route};

/// Names are not asked for more often than this when none of the known addresses can be used.
const FRESH: Duration = Duration::from_secs(1);

/// The endpoints of one provider and environment, and how to connect to them.
#[derive(Debug)]
pub(in crate::providers) struct Network {
    pub(super) endpoints: Arc<Endpoints>,
    tls: Arc<ClientConfig>,
    /// Open and without use, to another endpoint than the chosen one. It belongs to no credential yet.
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

    /// A connection to the best address that can be reached; `nth` counts the connections of a pool.
    pub(super) async fn dial(&self, nth: usize) -> Result<Arc<Connection>, Unreachable> {
        self.endpoints.want();
        if !self.endpoints.any_healthy() {
            self.resolve(FRESH).await;
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

    /// Whether the next attempt goes elsewhere after one at the endpoint called `name` failed.
    pub(in crate::providers) fn has_another(&self, name: &str) -> bool {
        self.endpoints.has_another(name)
    }

    /// All that is known of the endpoints.
    pub(in crate::providers) fn report(&self) -> Vec<EndpointState> {
        let spare = self.spare().clone();
        self.endpoints.report(spare.as_deref().map(|spare| &*spare.route))
    }

    /// Measures, chooses and keeps a spare connection, as long as somebody uses the endpoints. Does not end.
    pub(in crate::providers) async fn watch(self: Arc<Self>) {
        let pace = self.endpoints.settings.probe() / 10;
        loop {
            // Workers that were started together are not to ask together.
            let jitter = rand::rng().random_range(0.8..1.2);
            sleep(pace.mul_f64(jitter)).await;
            if !self.endpoints.is_wanted() {
                *self.spare() = None;
                continue;
            }
            self.resolve(RESOLVED_EVERY).await;
            if let Some(route) = self.endpoints.due() {
                self.probe(&route).await;
            }
            self.endpoints.review();
            self.keep_spare().await;
        }
    }

    /// Asks for the addresses of the names that were not resolved for `age`.
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

    /// Connects to `route`, which measures it.
    async fn probe(&self, route: &Arc<Route>) {
        let Ok(connection) = self.connect(route).await else {
            return;
        };
        let pinged = timeout(CONNECT_TIMEOUT, connection.pinged.notified()).await;
        let mut spare = self.spare();
        if pinged.is_ok() && spare.is_none() && self.endpoints.may_be_spare(route) {
            *spare = Some(connection);
        }
    }

    async fn keep_spare(&self) {
        {
            let mut spare = self.spare();
            let fit = |spare: &mut Arc<Connection>| !spare.is_closed() && self.endpoints.may_be_spare(&spare.route);
            if spare.as_mut().is_some_and(fit) {
                return;
            }
            *spare = None;
        }
        if let Some(route) = self.endpoints.spare()
            && let Ok(connection) = self.connect(&route).await
        {
            *self.spare() = Some(connection);
        }
    }

    fn take_spare(&self, route: &Route) -> Option<Arc<Connection>> {
        let fit = |spare: &mut Arc<Connection>| std::ptr::eq(&raw const *spare.route, route) && !spare.is_closed();
        self.spare().take_if(fit)
    }

    fn spare(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
