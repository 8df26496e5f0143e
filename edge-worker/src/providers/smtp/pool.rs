//! The connections to one server with one credential.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};

use super::connection::{Connection, Server, Trouble};

/// How long an attempt waits for a free connection. After that it is tried again later, and its place is free meanwhile.
const FREE_WITHIN: Duration = Duration::from_secs(5);

/// Limits of a pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections at one time.
    pub(super) connections: usize,
    /// Mails over one connection, before it is closed.
    pub(super) mails: u32,
    /// How long a connection is kept without use.
    pub(super) idle: Duration,
}

/// A pool.
pub(super) struct Pool {
    pub(super) server: Server,
    limits: Limits,
    permits: Arc<Semaphore>,
    /// The one that was used last is at the end, and is used first.
    idle: Mutex<Vec<(Connection, Instant)>>,
    /// Whether a task closes what is idle for too long.
    sweeping: AtomicBool,
}

/// The place of one mail among those that are sent at one time.
#[derive(Debug)]
pub(super) struct Place {
    /// Returned when it is dropped.
    _permit: OwnedSemaphorePermit,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({})", self.server.endpoint())
    }
}

impl Pool {
    pub(super) fn new(server: Server, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            server,
            limits,
            permits: Arc::new(Semaphore::new(limits.connections)),
            idle: Mutex::default(),
            sweeping: AtomicBool::new(false),
        })
    }

    /// Waits for a place; `None` if all are taken for too long.
    pub(super) async fn place(&self) -> Option<Place> {
        let permit = timeout(FREE_WITHIN, self.permits.clone().acquire_owned()).await;
        permit.ok()?.ok().map(|permit| Place { _permit: permit })
    }

    /// A connection that was used before, as long as it seems alive.
    pub(super) fn idle(&self, _: &Place) -> Option<Connection> {
        loop {
            let (connection, since) = self.idle_ones().pop()?;
            if since.elapsed() < self.limits.idle && connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// A new connection.
    pub(super) async fn connect(&self, _: &Place) -> Result<Connection, Trouble> {
        self.server.connect().await
    }

    /// Keeps a connection for the next mail. It must be ready for one.
    pub(super) fn keep(self: &Arc<Self>, connection: Connection) {
        if connection.mails >= self.limits.mails {
            connection.quit();
            return;
        }
        self.idle_ones().push((connection, Instant::now()));
        if !self.sweeping.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::downgrade(self), self.limits.idle));
        }
    }

    fn idle_ones(&self) -> std::sync::MutexGuard<'_, Vec<(Connection, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out what has been idle for too long.
    fn stale(&self) -> Vec<(Connection, Instant)> {
        let mut idle = self.idle_ones();
        let fresh = idle.partition_point(|(_, since)| since.elapsed() >= self.limits.idle);
        let stale = idle.drain(..fresh).collect();
        if idle.is_empty() {
            self.sweeping.store(false, Ordering::Relaxed);
        }
        stale
    }
}

/// Closes connections that are idle for too long, until none is left.
async fn sweep(pool: Weak<Pool>, idle: Duration) {
    loop {
        sleep(idle / 2).await;
        let Some(pool) = pool.upgrade() else { return };
        for (connection, _) in pool.stale() {
            connection.quit();
        }
        if !pool.sweeping.load(Ordering::Relaxed) {
            return;
        }
    }
}
