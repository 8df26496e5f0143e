//! The connections of one team and key to one environment.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, RecvStream};
use http::{Request, Response};
use tokio::{
    select,
    sync::oneshot,
    time::{Instant, interval_at, sleep, timeout},
};
use tokio_rustls::rustls::ClientConfig;

use super::{
    connection::{Connection, NoAnswer},
    dial::{Driver, Host, Unreachable, dial},
};
use crate::providers::endpoints::Endpoints;

/// Counted as the peer's limit if it names none. Apple names 1000 (and asks not to rely on it).
const MOST_STREAMS: usize = 1000;

/// How often a connection is looked at that allows a single stream: Apple's until it has seen a valid token.
const NARROW_CHECKED_EVERY: Duration = Duration::from_millis(100);

/// How often a connection that could not be had to a preferred endpoint looks whether it can be now.
const PREFERRED_TRIED_EVERY: Duration = Duration::from_mins(1);

/// A connection is pinged this often, and given up when no answer comes within [`PING_TIMEOUT`]. Without it a connection
/// whose peer vanished lives until the kernel gives up, some fifteen minutes.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// For how long the narrowness of a fresh connection is no reason to open another.
const FRESH: Duration = Duration::from_secs(1);

/// Connections to one environment, opened as they are needed.
///
/// Every request needs a [`Lease`], so that no more are under way on a connection than its peer lets run at once.
/// The rest wait here, first come first served, instead of inside h2, where no one could take them to a connection
/// opened later.
#[derive(Debug)]
pub(super) struct Pool {
    endpoints: Arc<Endpoints<Arc<Host>>>,
    tls: Arc<ClientConfig>,
    most: usize,
    /// How long a connection may be silent while an answer is due.
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Vec<Slot>,
    waiting: VecDeque<oneshot::Sender<Result<Lease, Unreachable>>>,
    connecting: bool,
    opened: u64,
}

#[derive(Debug)]
struct Slot {
    connection: Arc<Connection>,
    under_way: usize,
    limit: usize,
}

impl Slot {
    fn has_room(&self) -> bool {
        self.under_way < self.limit && !self.connection.is_closed()
    }

    /// Whether this connection is still finding out how much it may carry.
    fn is_narrow(&self) -> bool {
        self.limit <= 1 && self.connection.opened.elapsed() < FRESH
    }
}

/// The right to one request on one connection.
#[derive(Debug)]
pub(super) struct Lease {
    connection: Arc<Connection>,
    pool: Arc<Pool>,
    /// Whether the slot still counts this lease.
    counted: bool,
    /// Since when an answer is due.
    due_since: Option<Instant>,
}

impl Lease {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Sends `request` and waits for the head of the answer.
    pub(super) async fn send(&mut self, request: Request<Bytes>) -> Result<Response<RecvStream>, NoAnswer> {
        self.due_since = Some(Instant::now());
        let answer = self.connection.send(request).await;
        self.due_since = None;
        answer
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        // Who waited long for nothing leaves the connection to nobody: the peer may be gone without a word, which
        // pings find out later than we do.
        let silent = |since: Instant| since.elapsed() >= self.pool.patience && self.connection.silent_since(since);
        if self.due_since.is_some_and(silent) {
            self.pool.retire(self.connection.id);
        } else {
            self.pool.give_back(self.connection.id);
        }
    }
}

impl Pool {
    pub(super) fn new(
        endpoints: Arc<Endpoints<Arc<Host>>>,
        tls: Arc<ClientConfig>,
        most: usize,
        patience: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            endpoints,
            tls,
            most: most.max(1),
            patience,
            state: Mutex::default(),
        })
    }

    /// Waits for room on a connection, if possible another than `avoid`; opens one if need be.
    ///
    /// # Errors
    /// When no connection is open and none of the endpoints can be reached.
    pub(super) async fn lease(self: &Arc<Self>, avoid: Option<u64>) -> Result<Lease, Unreachable> {
        let turn = {
            let mut state = self.lock();
            if state.waiting.is_empty()
                && let Some(lease) = self.take(&mut state, avoid)
            {
                return Ok(lease);
            }
            if state.waiting.len() == state.waiting.capacity() {
                // Those who gave up are forgotten before the queue grows for them.
                state.waiting.retain(|waiting| !waiting.is_closed());
            }
            let (give, turn) = oneshot::channel();
            state.waiting.push_back(give);
            self.grow(&mut state);
            turn
        };
        turn.await.unwrap_or_else(|_| {
            Err(Unreachable {
                endpoint: "".into(),
                reason: "closed",
            })
        })
    }

    /// Sends nothing more on the connection `id`. What is under way on it goes on; it closes with the last.
    pub(super) fn retire(self: &Arc<Self>, id: u64) {
        let mut state = self.lock();
        state.open.retain(|slot| slot.connection.id != id);
        self.serve(&mut state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room on the connection that has most, if there is any.
    fn take(self: &Arc<Self>, state: &mut State, avoid: Option<u64>) -> Option<Lease> {
        let room = |slot: &&mut Slot| slot.has_room();
        let load = |slot: &&mut Slot| (Some(slot.connection.id) == avoid, slot.under_way);
        let slot = state.open.iter_mut().filter(room).min_by_key(load)?;
        slot.under_way += 1;
        Some(Lease {
            connection: slot.connection.clone(),
            pool: self.clone(),
            counted: true,
            due_since: None,
        })
    }

    fn give_back(self: &Arc<Self>, id: u64) {
        let mut state = self.lock();
        if let Some(slot) = state.open.iter_mut().find(|slot| slot.connection.id == id) {
            slot.under_way -= 1;
        }
        self.serve(&mut state);
    }

    /// Gives what room there is to those who wait, and opens another connection if that is not enough.
    fn serve(self: &Arc<Self>, state: &mut State) {
        while !state.waiting.is_empty() {
            let Some(lease) = self.take(state, None) else { break };
            let id = lease.connection.id;
            let waiting = state.waiting.pop_front().map(|waiting| waiting.send(Ok(lease)));
            if let Some(Err(Ok(mut unwanted))) = waiting {
                // Not by its drop, which would take the lock again.
                unwanted.counted = false;
                if let Some(slot) = state.open.iter_mut().find(|slot| slot.connection.id == id) {
                    slot.under_way -= 1;
                }
            }
        }
        self.grow(state);
    }

    /// Opens a connection if someone waits, all are full and there may be more.
    fn grow(self: &Arc<Self>, state: &mut State) {
        state.open.retain(|slot| !slot.connection.is_closed());
        let wanted = !state.waiting.is_empty()
            && !state.connecting
            && state.open.len() < self.most
            && !state.open.iter().any(Slot::is_narrow);
        if wanted {
            state.connecting = true;
            state.opened += 1;
            tokio::spawn(self.clone().open(state.opened));
        }
    }

    /// Connects to the first endpoint that answers.
    async fn open(self: Arc<Self>, id: u64) {
        let dialled = self.dial(id, usize::MAX).await;
        let mut state = self.lock();
        state.connecting = false;
        match dialled {
            Ok(connection) => {
                state.open.push(Slot {
                    connection,
                    under_way: 0,
                    limit: 1,
                });
                self.serve(&mut state);
            }
            Err(unreachable) if state.open.is_empty() => {
                for waiting in state.waiting.drain(..) {
                    // Who gave up does not mind.
                    drop(waiting.send(Err(unreachable.clone())));
                }
            }
            // Those who wait get their turn on the connections that are open.
            Err(_) => {}
        }
    }

    /// Begins to replace the connection `old`, which leads to the endpoint at `index`.
    fn look_for_preferred(self: Arc<Self>, old: u64, index: usize) {
        tokio::spawn(self.prefer(old, index));
    }

    /// Replaces the connection `old` by one to an endpoint before `index`, if that can be had.
    async fn prefer(self: Arc<Self>, old: u64, index: usize) {
        let id = {
            let mut state = self.lock();
            state.opened += 1;
            state.opened
        };
        let Ok(connection) = self.dial(id, index).await else {
            return;
        };
        let mut state = self.lock();
        if let Some(slot) = state.open.iter_mut().find(|slot| slot.connection.id == old) {
            *slot = Slot {
                connection,
                under_way: 0,
                limit: 1,
            };
            self.serve(&mut state);
        }
    }

    /// Connects to the first endpoint before `end` that can be reached.
    async fn dial(self: &Arc<Self>, id: u64, end: usize) -> Result<Arc<Connection>, Unreachable> {
        let mut failure = Unreachable {
            endpoint: "".into(),
            reason: "no_endpoint",
        };
        for (index, host) in self.endpoints.in_order().filter(|(index, _)| *index < end) {
            match dial(host, &self.tls, usize::try_from(id).unwrap_or(0)).await {
                Ok((sender, driver)) => {
                    self.endpoints.worked(index);
                    let connection = Arc::new(Connection::new(id, host.clone(), sender));
                    tokio::spawn(drive(Arc::downgrade(self), index, Arc::downgrade(&connection), driver));
                    return Ok(connection);
                }
                Err(unreachable) => {
                    tracing::warn!(endpoint = %unreachable.endpoint, reason = unreachable.reason, "cannot connect to APNs");
                    self.endpoints.failed(index);
                    failure = unreachable;
                }
            }
        }
        Err(failure)
    }

    fn limit(self: &Arc<Self>, id: u64, limit: usize) {
        let mut state = self.lock();
        if let Some(slot) = state
            .open
            .iter_mut()
            .find(|slot| slot.connection.id == id && slot.limit != limit)
        {
            slot.limit = limit;
            self.serve(&mut state);
        }
    }
}

/// Runs a connection, and tells the pool how much it may carry and when it has ended. Holds neither of them, because
/// the connection closes when the last who may use it is gone.
async fn drive(pool: Weak<Pool>, index: usize, connection: Weak<Connection>, mut driver: Driver) {
    let Some((id, recheck)) = connection.upgrade().map(|this| (this.id, this.recheck.clone())) else {
        return;
    };
    let mut limit = 1;
    let mut preferred = interval_at(Instant::now() + PREFERRED_TRIED_EVERY, PREFERRED_TRIED_EVERY);
    let mut silence = pin!(until_silent(driver.ping_pong()));
    loop {
        select! {
            biased;
            _ = &mut driver => break,
            () = recheck.notified() => {}
            () = sleep(NARROW_CHECKED_EVERY), if limit == 1 => {}
            _ = preferred.tick(), if index > 0 => {
                if let Some(pool) = pool.upgrade() {
                    pool.look_for_preferred(id, index);
                }
            }
            () = &mut silence => break,
        }
        let allowed = driver.max_concurrent_send_streams().min(MOST_STREAMS);
        // A tenth is left, because the peer may lower its limit while requests are on their way.
        let now = (allowed * 9 / 10).max(1);
        if now != limit {
            limit = now;
            if let Some(pool) = pool.upgrade() {
                pool.limit(id, now);
            }
        }
    }
    if let Some(connection) = connection.upgrade() {
        connection.close();
    }
    if let Some(pool) = pool.upgrade() {
        pool.retire(id);
    }
}

/// Ends when a ping is not answered.
async fn until_silent(pings: Option<PingPong>) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        sleep(PING_EVERY).await;
        if !matches!(timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}
