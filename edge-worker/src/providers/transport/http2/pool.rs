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

/// The last connection of a pool is kept so many times as long as the others: a provider may take it for an attack when
/// connections come and go (Apple says so), and the next push is to find one.
const LAST_KEPT: u32 = 12;

/// For how long the narrowness of a fresh connection is no reason to open another.
const FRESH: Duration = Duration::from_secs(1);

/// Connections to one environment, opened as they are needed and closed when they are not.
///
/// Every request needs a [`Lease`], so that no more are under way on a connection than its peer lets run at once.
/// The rest wait here, first come first served, instead of inside h2, where no one could take them to a connection
/// opened later.
#[derive(Debug)]
pub(in crate::providers) struct Pool {
    network: Arc<Network>,
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
}

#[derive(Debug)]
struct Slot {
    connection: Arc<Connection>,
    under_way: usize,
    limit: usize,
    /// Whether another is being opened in its place.
    moving: bool,
}

impl Slot {
    /// A slot of `pool`, whose lock is held.
    fn of(connection: Arc<Connection>, pool: &Arc<Pool>) -> Self {
        let limit = connection.belongs_to(pool);
        Self {
            connection,
            under_way: 0,
            limit,
            moving: false,
        }
    }

    /// What it carries, as far as it matters who gets the next request: nothing while it is less than half full, so that
    /// those opened last have nothing to do when there is little to do, and can be closed.
    fn load(&self) -> usize {
        if self.under_way * 2 < self.limit {
            0
        } else {
            self.under_way
        }
    }

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
pub(in crate::providers) struct Lease {
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
        let began = Instant::now();
        self.due_since = Some(began);
        let answer = self.connection.send(request, began).await;
        self.due_since = None;
        answer
    }

    /// Sends nothing more on its connection.
    pub(in crate::providers) fn leave_connection(&self) {
        self.pool.retire(self.connection.id);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        // Who waited long for nothing leaves the connection to nobody.
        let late = self.due_since.filter(|since| since.elapsed() >= self.pool.patience);
        if late.is_some_and(|since| self.connection.gave_up(since)) {
            self.pool.retire(self.connection.id);
        } else {
            self.pool.give_back(self.connection.id);
        }
    }
}

impl Pool {
    pub(in crate::providers) fn new(network: Arc<Network>, most: usize, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            network,
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
        let load = |slot: &&mut Slot| (Some(slot.connection.id) == avoid, slot.load());
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
                    // Who gave up does not mind.
                    drop(waiting.send(Err(unreachable.clone())));
                }
            }
            // Those who wait get their turn on the connections that are open.
            Err(_) => {}
        }
    }

    /// Closes the connection `id` if it has not been needed for long enough; returns whether it is gone.
    pub(super) fn close_if_idle(self: &Arc<Self>, id: u64) -> bool {
        let idle = self.network.endpoints.settings.idle();
        let mut state = self.lock();
        let kept = if state.open.len() > 1 { idle } else { idle * LAST_KEPT };
        let idle =
            |slot: &Slot| slot.connection.id == id && slot.under_way == 0 && slot.connection.unused_for() >= kept;
        state.open.retain(|slot| !idle(slot));
        !state.open.iter().any(|slot| slot.connection.id == id)
    }

    /// Begins to replace the connection `id` by one to where connections should lead now.
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
        // What is under way on the old one goes on; it closes with the last.
        if let Ok(connection) = dialled {
            *slot = Slot::of(connection, &self);
            self.serve(&mut state);
        }
    }

    pub(super) fn limit(self: &Arc<Self>, id: u64, limit: usize) {
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
