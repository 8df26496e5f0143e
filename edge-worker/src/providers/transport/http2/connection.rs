//! One HTTP/2 connection, and the results of its requests.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use h2::{Ping, PingPong, RecvStream};
use http::{Request, Response};
use tokio::{
    select,
    sync::Notify,
    time::{Instant, interval, sleep, timeout},
};

use super::{
    dial::{Driver, SendRequest},
    pool::Pool,
};
use crate::providers::transport::endpoints::{Endpoints, Route, micros};

/// The peer may change its stream limit at any time; it is read again after this many answers.
const CHECK_LIMIT_EVERY_ANSWERS: u64 = 64;

/// The limit for a peer that announces none or more. Apple announces 1000 (and asks not to rely on it), Google 100.
const MAX_STREAMS: usize = 1000;

/// How often the limit is read while it is one stream: Apple allows one until it has seen a valid token.
const CHECK_SINGLE_STREAM_EVERY: Duration = Duration::from_millis(100);

/// A connection is closed when a ping is not answered within this time. Without pings, a connection whose peer vanished
/// stays open until the kernel gives up, after some fifteen minutes.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// An open connection. It closes when its last reference is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) route: Arc<Route>,
    pub(super) opened: Instant,
    /// The pool that uses it; unset while it is spare.
    owner: OnceLock<Weak<Pool>>,
    /// Notified at every answered ping.
    pub(super) pinged: Arc<Notify>,
    endpoints: Arc<Endpoints>,
    sender: SendRequest,
    closed: AtomicBool,
    /// How many requests may be in flight.
    limit: AtomicUsize,
    /// Asks the driver to read the peer's limit.
    recheck: Arc<Notify>,
    answers: AtomicU64,
    /// Microseconds after `opened`; zero before the first answer.
    last_answer: AtomicU64,
}

/// Why no answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The peer refused the stream, so it did not process the request (RFC 9113, section 8.7).
    Refused,
    /// The connection ended before the request was processed: never sent, or above the last stream of a GOAWAY
    /// (RFC 9113, section 6.8).
    Unsent,
    /// The connection or the stream broke after sending.
    Broken,
}

impl Connection {
    /// Wraps a new connection to `route`, and spawns the task that drives it.
    pub(super) fn start(
        route: Arc<Route>,
        endpoints: Arc<Endpoints>,
        sender: SendRequest,
        driver: Driver,
    ) -> Arc<Self> {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        route.connections.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Self {
            id: OPENED.fetch_add(1, Ordering::Relaxed),
            route,
            opened: Instant::now(),
            owner: OnceLock::new(),
            pinged: Arc::default(),
            endpoints,
            sender,
            closed: AtomicBool::new(false),
            limit: AtomicUsize::new(1),
            recheck: Arc::default(),
            answers: AtomicU64::new(0),
            last_answer: AtomicU64::new(0),
        });
        tokio::spawn(drive(Arc::downgrade(&connection), driver));
        connection
    }

    /// Assigns it to `pool`, whose lock the caller holds. Returns how many requests may be in flight; the pool is
    /// notified of later changes.
    pub(super) fn assign_to(&self, pool: &Arc<Pool>) -> usize {
        let _once = self.owner.set(Arc::downgrade(pool));
        self.limit.load(Ordering::SeqCst)
    }

    fn owner(&self) -> Option<Arc<Pool>> {
        self.owner.get()?.upgrade()
    }

    /// Sends `request` and waits for the head of the answer; the answer time counts from `began`.
    pub(super) async fn send(&self, request: Request<Bytes>, began: Instant) -> Result<Response<RecvStream>, NoAnswer> {
        let answered = self.exchange(request).await;
        let health_changed = match &answered {
            Ok(answer) => {
                let now = Instant::now();
                self.last_answer.store(self.age_us(now), Ordering::Relaxed);
                let answers = self.answers.fetch_add(1, Ordering::Relaxed);
                // The peer raises its limit with the first answers; see `initial_max_send_streams`.
                if answers < 4 || answers.is_multiple_of(CHECK_LIMIT_EVERY_ANSWERS) {
                    self.recheck.notify_one();
                }
                self.route.answered(now, now - began, answer.status().is_server_error())
            }
            Err(NoAnswer::Refused) => {
                self.recheck.notify_one();
                false
            }
            Err(NoAnswer::Unsent) => false,
            Err(NoAnswer::Broken) => self.route.finished(true),
        };
        if health_changed {
            self.endpoints.assess(&self.route);
        }
        answered
    }

    /// Records that a request sent at `since` was abandoned. Returns whether no answer at all has arrived since then.
    pub(super) fn abandoned(&self, since: Instant) -> bool {
        let is_silent = self.silent_since(since);
        if is_silent {
            // The peer may have vanished, which pings would detect later.
            self.endpoints.failed(&self.route, "silent");
        } else if self.route.finished(true) {
            self.endpoints.assess(&self.route);
        }
        is_silent
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<RecvStream>, NoAnswer> {
        let mut sender = self.sender.clone();
        let (head, body) = request.into_parts();
        let sent = match poll_fn(|context| sender.poll_ready(context)).await {
            Ok(()) => sender.send_request(Request::from_parts(head, ()), false),
            Err(error) => Err(error),
        };
        // h2 does not send a request that it refuses: the connection has ended, or the peer has announced its end.
        let (answer, mut stream) = sent.map_err(|_| {
            self.close();
            NoAnswer::Unsent
        })?;
        // If the stream has already ended, its answer has the reason.
        let (Ok(()) | Err(_)) = stream.send_data(body, true);
        answer.await.map_err(|error| classify(&error))
    }

    /// Marks it as closed to new requests.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether it is closed to new requests.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn silent_since(&self, then: Instant) -> bool {
        self.last_answer.load(Ordering::Relaxed) <= self.age_us(then)
    }

    /// The time since the last answer, or since it was opened.
    pub(super) fn unused_for(&self) -> Duration {
        let last = Duration::from_micros(self.last_answer.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(last)
    }

    fn age_us(&self, now: Instant) -> u64 {
        micros(now.duration_since(self.opened))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.route.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Drives a connection until it ends: pings it, reports its stream limit to its pool, and asks the pool to close it
/// when it is idle and to replace it when a better address was chosen. Holds no reference to the connection or the
/// pool, because the connection must close when its last user is gone.
async fn drive(connection: Weak<Connection>, mut driver: Driver) {
    let Some(this) = connection.upgrade() else { return };
    let (id, route, endpoints) = (this.id, this.route.clone(), this.endpoints.clone());
    let (recheck, pinged) = (this.recheck.clone(), this.pinged.clone());
    drop(this);
    let owner = || connection.upgrade().and_then(|this| this.owner());
    let every = endpoints.settings.probe();
    let answered = |took| {
        endpoints.pinged(&route, took);
        pinged.notify_one();
        // The peer's SETTINGS arrived before the answer to the ping.
        recheck.notify_one();
    };
    let mut silence = pin!(until_silent(driver.ping_pong(), every, answered));
    let mut checks = interval(every.min(endpoints.settings.idle()));
    let mut changes = endpoints.changes();
    let mut limit = 1;
    loop {
        let mut check = false;
        select! {
            biased;
            _ = &mut driver => break,
            () = recheck.notified() => {}
            () = sleep(CHECK_SINGLE_STREAM_EVERY), if limit == 1 => {}
            _ = changes.changed() => check = true,
            _ = checks.tick() => check = true,
            () = &mut silence => {
                endpoints.failed(&route, "silent");
                break;
            }
        }
        if check && let Some(pool) = owner() {
            endpoints.mark_used();
            if !pool.close_if_idle(id) && !endpoints.should_keep(&route) {
                pool.move_away(id);
            }
        }
        let allowed = driver.max_concurrent_send_streams().min(MAX_STREAMS);
        // A tenth stays unused, because the peer may lower its limit while requests are on their way.
        let now = (allowed * 9 / 10).max(1);
        if now != limit {
            limit = now;
            if let Some(connection) = connection.upgrade() {
                connection.limit.store(now, Ordering::SeqCst);
            }
            if let Some(pool) = owner() {
                pool.set_limit(id, now);
            }
        }
    }
    let pool = owner();
    if let Some(connection) = connection.upgrade() {
        connection.close();
    }
    if let Some(pool) = pool {
        pool.retire(id);
    }
}

/// Pings at once and then at the interval `every`; ends when a ping is not answered in time.
async fn until_silent(pings: Option<PingPong>, every: Duration, answered: impl Fn(Duration)) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        let began = Instant::now();
        match timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => answered(began.elapsed()),
            // The connection has ended; its driver reports that.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
        sleep(every).await;
    }
}

fn classify(error: &h2::Error) -> NoAnswer {
    if error.is_go_away() && error.is_remote() {
        // h2 reports the peer's GOAWAY as the error of exactly the streams above its last stream.
        NoAnswer::Unsent
    } else if error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM) {
        NoAnswer::Refused
    } else {
        NoAnswer::Broken
    }
}

/// The body of an answer; `None` if it ends early or has more than `limit` bytes.
pub(in crate::providers) async fn read(mut body: RecvStream, limit: usize) -> Option<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece.ok()?;
        body.flow_control().release_capacity(piece.len()).ok()?;
        if whole.len() + piece.len() > limit {
            return None;
        }
        whole.extend_from_slice(&piece);
    }
    Some(whole.freeze())
}
