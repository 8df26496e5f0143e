//! The connections of one credential to one environment.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use h2::RecvStream;
use http::{Request, Response};
use tokio::{sync::oneshot, time::Instant};

use super::{
    connection::{Connection, NoAnswer},
    dial::Unreachable,
    network::Network,
};

/// The last connection of a pool may be idle for this many times `idle_ms`: Apple treats connections that are opened
/// and closed often as an attack, and the next push needs no new connection.
const LAST_IDLE_FACTOR: u32 = 12;

/// A new connection allows a single stream until the peer announces its limit. No further connection is opened before
/// this time has passed.
const AWAIT_STREAM_LIMIT_FOR: Duration = Duration::from_secs(1);

/// Connections to one environment, opened as they are needed and closed when they are not.
///
/// Every request needs a [`Lease`], so that a connection never has more requests in flight than its peer allows. The
/// others wait here, first come, first served. Inside h2 they could not move to a connection that is opened later.
#[derive(Debug)]
pub(in crate::providers) struct Pool {
    network: Arc<Network>,
    max_connections: usize,
    /// How long a connection may be silent while an answer is awaited.
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Vec<Slot>,
    waiting: VecDeque<oneshot::Sender<Result<Lease, Unreachable>>>,
    connecting: bool,
}

#[derive(Debug)]
struct Slot {
    connection: Arc<Connection>,
    in_flight: usize,
    limit: usize,
    /// Whether its replacement is being opened.
    moving: bool,
}

impl Slot {
    /// A slot of `pool`, whose lock is held.
    fn of(connection: Arc<Connection>, pool: &Arc<Pool>) -> Self {
        let limit = connection.assign_to(pool);
        Self {
            connection,
            in_flight: 0,
            limit,
            moving: false,
        }
    }

    /// The load that decides which connection gets the next request. Zero while less than half full, so that at low
    /// traffic the connections opened last stay idle and can be closed.
    fn load(&self) -> usize {
        if self.in_flight * 2 < self.limit {
            0
        } else {
            self.in_flight
        }
    }

    fn has_room(&self) -> bool {
        self.in_flight < self.limit && !self.connection.is_closed()
    }

    /// Whether its peer has yet to announce its stream limit.
    fn is_narrow(&self) -> bool {
        self.limit <= 1 && self.connection.opened.elapsed() < AWAIT_STREAM_LIMIT_FOR
    }
}

/// The right to one request on one connection.
#[derive(Debug)]
pub(in crate::providers) struct Lease {
    connection: Arc<Connection>,
    pool: Arc<Pool>,
    /// Whether the slot still counts this lease.
    counted: bool,
    /// When the request was sent whose answer is awaited.
    due_since: Option<Instant>,
}

impl Lease {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Sends `request` and waits for the head of the answer.
    pub(super) async fn send(&mut self, request: Request<Bytes>) -> Result<Response<RecvStream>, NoAnswer> {
        let began = Instant::now();
        self.due_since = Some(began);
        let answer = self.connection.send(request, began).await;
        self.due_since = None;
        answer
    }

    /// Closes its connection to new requests.
    pub(in crate::providers) fn leave_connection(&self) {
        self.pool.retire(self.connection.id);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        // A request that timed out without any answer retires the connection.
        let late = self.due_since.filter(|since| since.elapsed() >= self.pool.patience);
        if late.is_some_and(|since| self.connection.abandoned(since)) {
            self.pool.retire(self.connection.id);
        } else {
            self.pool.give_back(self.connection.id);
        }
    }
}

impl Pool {
    pub(in crate::providers) fn new(network: Arc<Network>, max_connections: usize, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            network,
            max_connections: max_connections.max(1),
            patience,
            state: Mutex::default(),
        })
    }

    /// Waits for a free stream, if possible on another connection than `avoid`; opens a connection if necessary.
    ///
    /// # Errors
    /// If no connection is open and no endpoint can be reached.
    pub(super) async fn lease(self: &Arc<Self>, avoid: Option<u64>) -> Result<Lease, Unreachable> {
        let turn = {
            let mut state = self.lock();
            if state.waiting.is_empty()
                && let Some(lease) = self.take(&mut state, avoid)
            {
                return Ok(lease);
            }
            if state.waiting.len() == state.waiting.capacity() {
                // Removes abandoned requests before the queue grows.
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

    /// Closes the connection `id` to new requests. It ends after its last request in flight.
    pub(super) fn retire(self: &Arc<Self>, id: u64) {
        let mut state = self.lock();
        state.open.retain(|slot| slot.connection.id != id);
        self.serve(&mut state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream of the least loaded connection, if any has a free one.
    fn take(self: &Arc<Self>, state: &mut State, avoid: Option<u64>) -> Option<Lease> {
        let has_room = |slot: &&mut Slot| slot.has_room();
        let load = |slot: &&mut Slot| (Some(slot.connection.id) == avoid, slot.load());
        let slot = state.open.iter_mut().filter(has_room).min_by_key(load)?;
        slot.in_flight += 1;
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
            slot.in_flight -= 1;
        }
        self.serve(&mut state);
    }

    /// Gives free streams to the waiting requests, and opens another connection if they are not enough.
    fn serve(self: &Arc<Self>, state: &mut State) {
        while !state.waiting.is_empty() {
            let Some(lease) = self.take(state, None) else { break };
            let id = lease.connection.id;
            let waiting = state.waiting.pop_front().map(|waiting| waiting.send(Ok(lease)));
            if let Some(Err(Ok(mut unwanted))) = waiting {
                // Returned here, because its drop would take the lock again.
                unwanted.counted = false;
                if let Some(slot) = state.open.iter_mut().find(|slot| slot.connection.id == id) {
                    slot.in_flight -= 1;
                }
            }
        }
        self.grow(state);
    }

    /// Opens a connection if requests wait, all connections are full, and another is allowed.
    fn grow(self: &Arc<Self>, state: &mut State) {
        state.open.retain(|slot| !slot.connection.is_closed());
        let wanted = !state.waiting.is_empty()
            && !state.connecting
            && state.open.len() < self.max_connections
            && !state.open.iter().any(Slot::is_narrow);
        if wanted {
            state.connecting = true;
            tokio::spawn(self.clone().open(state.open.len()));
        }
    }

    /// Opens the connection number `nth`.
    async fn open(self: Arc<Self>, nth: usize) {
        let dialled = self.network.dial(nth).await;
        let mut state = self.lock();
        state.connecting = false;
        match dialled {
            Ok(connection) => {
                state.open.push(Slot::of(connection, &self));
                self.serve(&mut state);
            }
            Err(unreachable) if state.open.is_empty() => {
                for waiting in state.waiting.drain(..) {
                    // The receiver of an abandoned request is gone, which is no error.
                    drop(waiting.send(Err(unreachable.clone())));
                }
            }
            // The waiting requests use the connections that are open.
            Err(_) => {}
        }
    }

    /// Closes the connection `id` if it has been idle for long enough; returns whether it is gone.
    pub(super) fn close_if_idle(self: &Arc<Self>, id: u64) -> bool {
        let idle = self.network.endpoints.settings.idle();
        let mut state = self.lock();
        let kept = if state.open.len() > 1 {
            idle
        } else {
            idle * LAST_IDLE_FACTOR
        };
        let idle =
            |slot: &Slot| slot.connection.id == id && slot.in_flight == 0 && slot.connection.unused_for() >= kept;
        state.open.retain(|slot| !idle(slot));
        !state.open.iter().any(|slot| slot.connection.id == id)
    }

    /// Starts to replace the connection `id` with one to the best address.
    pub(super) fn move_away(self: &Arc<Self>, id: u64) {
        let mut state = self.lock();
        if let Some(nth) = state
            .open
            .iter()
            .position(|slot| slot.connection.id == id && !slot.moving)
        {
            state.open[nth].moving = true;
            tokio::spawn(self.clone().replace(id, nth));
        }
    }

    async fn replace(self: Arc<Self>, old: u64, nth: usize) {
        let dialled = self.network.dial(nth).await;
        let mut state = self.lock();
        let Some(slot) = state.open.iter_mut().find(|slot| slot.connection.id == old) else {
            return;
        };
        slot.moving = false;
        // The old connection ends after its last request in flight.
        if let Ok(connection) = dialled {
            *slot = Slot::of(connection, &self);
            self.serve(&mut state);
        }
    }

    /// Sets how many requests may be in flight on the connection `id`.
    pub(super) fn set_limit(self: &Arc<Self>, id: u64, limit: usize) {
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
