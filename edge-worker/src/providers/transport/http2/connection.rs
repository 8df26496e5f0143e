//! One HTTP/2 connection, and what became of a request on it.

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

/// Ask for the peer's limit anew after this many answers; it may change at any time.
const LIMIT_CHECKED_EVERY: u64 = 64;

/// Counted as the peer's limit if it names none. Apple names 1000 (and asks not to rely on it), Google 100.
const MOST_STREAMS: usize = 1000;

/// How often a connection is looked at that allows a single stream: Apple's until it has seen a valid token.
const NARROW_CHECKED_EVERY: Duration = Duration::from_millis(100);

/// A connection is given up when a ping is not answered for so long. Without pings a connection whose peer vanished
/// lives until the kernel gives up, some fifteen minutes.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// An open connection. It closes when the last who may use it is gone.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) route: Arc<Route>,
    pub(super) opened: Instant,
    /// The pool that uses it; none as long as it is spare.
    owner: OnceLock<Weak<Pool>>,
    /// Told at every answered ping.
    pub(super) pinged: Arc<Notify>,
    endpoints: Arc<Endpoints>,
    sender: SendRequest,
    closed: AtomicBool,
    /// Requests that may be under way at once.
    limit: AtomicUsize,
    /// Tells the driver to look at the peer's limit.
    recheck: Arc<Notify>,
    answers: AtomicU64,
    /// Microseconds after `opened`.
    last_answer: AtomicU64,
}

/// Why no answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The peer refused the stream, so did not look at it (RFC 9113, section 8.7).
    Refused,
    /// The connection ended before the request was processed: never sent, or above the last stream of a GOAWAY
    /// (RFC 9113, section 6.8).
    Unsent,
    /// The connection or the stream broke after sending.
    Broken,
}

impl Connection {
    /// Runs a fresh connection to `route`.
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

    /// Gives it to `pool`; returns how many requests may be under way. Later changes are told to the pool, whose lock the
    /// caller holds.
    pub(super) fn belongs_to(&self, pool: &Arc<Pool>) -> usize {
        let _once = self.owner.set(Arc::downgrade(pool));
        self.limit.load(Ordering::SeqCst)
    }

    fn owner(&self) -> Option<Arc<Pool>> {
        self.owner.get()?.upgrade()
    }

    /// Sends `request`, whose answer is due from `began` on, and waits for the head of the answer.
    pub(super) async fn send(&self, request: Request<Bytes>, began: Instant) -> Result<Response<RecvStream>, NoAnswer> {
        let answered = self.exchange(request).await;
        let undecided = match &answered {
            Ok(answer) => {
                let now = Instant::now();
                self.last_answer.store(self.age_us(now), Ordering::Relaxed);
                let answers = self.answers.fetch_add(1, Ordering::Relaxed);
                // The first answers open the connection up; see `initial_max_send_streams`.
                if answers < 4 || answers.is_multiple_of(LIMIT_CHECKED_EVERY) {
                    self.recheck.notify_one();
                }
                self.route.answered(now, now - began, answer.status().is_server_error())
            }
            Err(NoAnswer::Refused) => {
                self.recheck.notify_one();
                false
            }
            Err(NoAnswer::Unsent) => false,
            Err(NoAnswer::Broken) => self.route.went(true),
        };
        if undecided {
            self.endpoints.judge(&self.route);
        }
        answered
    }

    /// An answer that was due since `since` was not waited for any longer. Returns whether nothing at all came since.
    pub(super) fn gave_up(&self, since: Instant) -> bool {
        let is_silent = self.silent_since(since);
        if is_silent {
            // The peer may be gone without a word, which pings find out later than we do.
            self.endpoints.failed(&self.route, "silent");
        } else if self.route.went(true) {
            self.endpoints.judge(&self.route);
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
        // What h2 does not take, it does not send: the connection has ended, or the peer has said that it will.
        let (answer, mut stream) = sent.map_err(|_| {
            self.close();
            NoAnswer::Unsent
        })?;
        // If the stream has ended meanwhile, its answer says why.
        let (Ok(()) | Err(_)) = stream.send_data(body, true);
        answer.await.map_err(|error| classify(&error))
    }

    /// Says that new requests cannot be sent any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether new requests cannot be sent any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn silent_since(&self, then: Instant) -> bool {
        self.last_answer.load(Ordering::Relaxed) <= self.age_us(then)
    }

    /// How long ago the last answer came, or it was opened.
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

/// Runs a connection, measures it, and tells its pool how much it may carry and when it has ended, is not needed or
/// leads to where nothing should go any more. Holds neither of them, because the connection closes when the last who may
/// use it is gone.
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
        // The peer's SETTINGS came before.
        recheck.notify_one();
    };
    let mut silence = pin!(until_silent(driver.ping_pong(), every, answered));
    let mut looks = interval(every.min(endpoints.settings.idle()));
    let mut changes = endpoints.changes();
    let mut limit = 1;
    loop {
        let mut look = false;
        select! {
            biased;
            _ = &mut driver => break,
            () = recheck.notified() => {}
            () = sleep(NARROW_CHECKED_EVERY), if limit == 1 => {}
            _ = changes.changed() => look = true,
            _ = looks.tick() => look = true,
            () = &mut silence => {
                endpoints.failed(&route, "silent");
                break;
            }
        }
        if look && let Some(pool) = owner() {
            endpoints.want();
            if !pool.close_if_idle(id) && !endpoints.serves(&route) {
                pool.move_away(id);
            }
        }
        let allowed = driver.max_concurrent_send_streams().min(MOST_STREAMS);
        // A tenth is left, because the peer may lower its limit while requests are on their way.
        let now = (allowed * 9 / 10).max(1);
        if now != limit {
            limit = now;
            if let Some(connection) = connection.upgrade() {
                connection.limit.store(now, Ordering::SeqCst);
            }
            if let Some(pool) = owner() {
                pool.limit(id, now);
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

/// Pings at once and then so often; ends when a ping is not answered.
async fn until_silent(pings: Option<PingPong>, every: Duration, answered: impl Fn(Duration)) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        let began = Instant::now();
        match timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => answered(began.elapsed()),
            // The connection has ended, which its driver says.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
        sleep(every).await;
    }
}

fn classify(error: &h2::Error) -> NoAnswer {
    if error.is_go_away() && error.is_remote() {
        // h2 gives the peer's GOAWAY as the error of exactly those streams that lie above its last stream.
        NoAnswer::Unsent
    } else if error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM) {
        NoAnswer::Refused
    } else {
        NoAnswer::Broken
    }
}

/// The body of an answer; `None` if it breaks off or has more than `most` bytes.
pub(in crate::providers) async fn read(mut body: RecvStream, most: usize) -> Option<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece.ok()?;
        body.flow_control().release_capacity(piece.len()).ok()?;
        if whole.len() + piece.len() > most {
            return None;
        }
        whole.extend_from_slice(&piece);
    }
    Some(whole.freeze())
}
