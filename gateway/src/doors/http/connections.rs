//! Which connections may stay open. Whoever has shown no valid API key has seconds, and makes room when there is none.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, io,
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// A new connection must have sent the head of a request within this time. hyper waits for the first bytes without limit
/// (hyperium/hyper#3962).
const FIRST_HEAD_WITHIN: Duration = Duration::from_secs(5);

/// The head of a request must arrive within this time after its first byte.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

/// How long a connection may be idle that has shown no valid API key, such as that of a load balancer's check.
const IDLE_WITHOUT_KEY: Duration = Duration::from_secs(10);

/// How long a connection may be idle that has shown a valid API key. Longer than common clients and load balancers keep
/// idle connections open, so that they close them, and not this end while a request is on its way.
const IDLE: Duration = Duration::from_secs(75);

/// How often a connection with a request in progress is looked at.
const BUSY_CHECKED_EVERY: Duration = Duration::from_secs(5);

/// Files that a gateway needs besides the connections of callers: NATS, alerts, metrics, the listener.
const OTHER_FILES: usize = 96;

/// The fewest connections, however few files the process may open.
const CONNECTIONS_MIN: usize = 16;

/// All open connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    most: usize,
    most_by_address: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    next: u64,
    count: usize,
    by_address: HashMap<IpAddr, OfAddress>,
    /// Connections that have shown no valid key, the oldest first.
    without_key: BTreeMap<u64, Arc<Connection>>,
}

#[derive(Debug, Default)]
struct OfAddress {
    count: usize,
    without_key: BTreeSet<u64>,
}

/// One connection. It counts until this is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Connection>);

/// What is known about a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    number: u64,
    open: Arc<Mutex<Open>>,
    address: IpAddr,
    /// Cancelled to make room for another.
    evicted: CancellationToken,
    has_key: AtomicBool,
    is_http2: AtomicBool,
    requests: AtomicUsize,
    times: Mutex<Times>,
}

#[derive(Debug)]
struct Times {
    accepted: Instant,
    /// When the last request was answered.
    answered: Option<Instant>,
    /// When the first byte came after the last head.
    began: Option<Instant>,
}

impl Connections {
    /// At most `most` connections, `most_by_address` of them from one address, and no more than the process may open
    /// files.
    pub(crate) fn new(most: usize, most_by_address: usize) -> Self {
        let files = usize::try_from(files_max()).unwrap_or(usize::MAX);
        let most = most.min(files.saturating_sub(OTHER_FILES).max(CONNECTIONS_MIN));
        Self {
            most,
            most_by_address: most_by_address.min(most),
            open: Arc::default(),
        }
    }

    /// A place for a connection from `address`. If there is none, the oldest connection without a key makes room; `None`
    /// if there is no such connection either.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Place> {
        let address = group(address);
        let mut open = self.lock();
        let of_address = open.by_address.entry(address).or_default();
        if of_address.count >= self.most_by_address {
            let oldest = of_address.without_key.first().copied()?;
            open.evict(oldest);
        } else if open.count >= self.most {
            let oldest = open.without_key.first_key_value().map(|(number, _)| *number);
            let Some(oldest) = oldest else {
                open.forget_if_empty(address);
                return None;
            };
            open.evict(oldest);
        }
        Some(Place(open.add(address, &self.open)))
    }

    /// Makes room when the process can open no more files.
    pub(super) fn evict_one(&self) {
        let mut open = self.lock();
        if let Some(oldest) = open.without_key.first_key_value().map(|(number, _)| *number) {
            open.evict(oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of files that this process may open, after raising it as far as is allowed.
fn files_max() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return u64::MAX;
    };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        hard
    } else {
        soft
    }
}

/// An IPv6 network of 64 bits counts as one address: it belongs to one subscriber.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

// Connections refer to it, so it does not show them.
impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Open {
    fn add(&mut self, address: IpAddr, open: &Arc<Mutex<Self>>) -> Arc<Connection> {
        let number = self.next;
        self.next += 1;
        self.count += 1;
        let connection = Arc::new(Connection::new(number, address, Arc::clone(open)));
        self.without_key.insert(number, Arc::clone(&connection));
        let of_address = self.by_address.entry(address).or_default();
        of_address.count += 1;
        of_address.without_key.insert(number);
        connection
    }

    /// Closes a connection, and counts it no longer.
    fn evict(&mut self, number: u64) {
        if let Some(connection) = self.without_key.get(&number).cloned() {
            connection.evicted.cancel();
            self.leave(&connection);
        }
    }

    fn leave(&mut self, connection: &Connection) {
        self.count -= 1;
        self.note_key(connection);
        if let Some(of_address) = self.by_address.get_mut(&connection.address) {
            of_address.count -= 1;
        }
        self.forget_if_empty(connection.address);
    }

    /// From now on this connection makes room for no other.
    fn note_key(&mut self, connection: &Connection) {
        self.without_key.remove(&connection.number);
        if let Some(of_address) = self.by_address.get_mut(&connection.address) {
            of_address.without_key.remove(&connection.number);
        }
    }

    fn forget_if_empty(&mut self, address: IpAddr) {
        if self
            .by_address
            .get(&address)
            .is_some_and(|of_address| of_address.count == 0)
        {
            self.by_address.remove(&address);
        }
    }
}

impl Place {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.0.open);
        // An evicted connection was counted out then.
        if !self.0.evicted.is_cancelled() {
            open.leave(&self.0);
        }
    }
}

impl Connection {
    fn new(number: u64, address: IpAddr, open: Arc<Mutex<Open>>) -> Self {
        Self {
            number,
            open,
            address,
            evicted: CancellationToken::new(),
            has_key: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            times: Mutex::new(Times {
                accepted: Instant::now(),
                answered: None,
                began: None,
            }),
        }
    }

    /// A request with a valid API key came over this connection.
    pub(crate) fn set_key(&self) {
        if !self.has_key.swap(true, Ordering::Relaxed) {
            lock(&self.open).note_key(self);
        }
    }

    fn has_key(&self) -> bool {
        self.has_key.load(Ordering::Relaxed)
    }

    /// Ends when this connection must make room for another.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// A request began.
    pub(super) fn begin(self: &Arc<Self>, is_http2: bool) -> InProgress {
        self.is_http2.store(is_http2, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.times().began = None;
        InProgress(Arc::clone(self))
    }

    /// The request that is being answered continues after its answer has begun.
    pub(super) fn continues(self: &Arc<Self>) -> InProgress {
        self.requests.fetch_add(1, Ordering::Relaxed);
        InProgress(Arc::clone(self))
    }

    /// When this connection has been idle for too long, or has not sent a head in time, as of now.
    pub(super) fn deadline(&self) -> Instant {
        if self.requests.load(Ordering::Relaxed) > 0 {
            return Instant::now() + BUSY_CHECKED_EVERY;
        }
        let times = self.times();
        let Some(answered) = times.answered else {
            return times.accepted + FIRST_HEAD_WITHIN;
        };
        let idle = answered + if self.has_key() { IDLE } else { IDLE_WITHOUT_KEY };
        match times.began {
            // Over HTTP/2 there are also bytes that belong to no request, such as answers to pings.
            Some(began) if !self.is_http2.load(Ordering::Relaxed) => idle.min(began + HEAD_WITHIN),
            _ => idle,
        }
    }

    fn note_bytes(&self) {
        if self.requests.load(Ordering::Relaxed) == 0 {
            self.times().began.get_or_insert_with(Instant::now);
        }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in progress on a connection.
#[derive(Debug)]
pub(super) struct InProgress(Arc<Connection>);

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.times().answered = Some(Instant::now());
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that notes when bytes arrive.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) stream: TcpStream,
    pub(super) connection: Arc<Connection>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if buf.filled().len() > before {
            self.connection.note_bytes();
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn is_closed(place: &Place) -> bool {
        place.0.evicted.is_cancelled()
    }

    #[tokio::test]
    async fn the_oldest_connection_without_a_key_makes_room() {
        let connections = Connections::new(3, 2);
        let (first, second) = (
            connections.enter(address(1)).unwrap(),
            connections.enter(address(1)).unwrap(),
        );
        first.0.set_key();
        let third = connections.enter(address(1)).unwrap();
        assert!(!is_closed(&first) && is_closed(&second) && !is_closed(&third));
        let other = connections.enter(address(2)).unwrap();
        let more = connections.enter(address(3)).unwrap();
        assert!(is_closed(&third) && !is_closed(&other) && !is_closed(&more));
        for place in [&other, &more] {
            place.0.set_key();
        }
        assert!(connections.enter(address(4)).is_none());
        drop((first, second, third, other, more));
        let open = connections.lock();
        assert_eq!((open.count, open.by_address.len(), open.without_key.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_must_come_in_time() {
        let place = Connections::new(8, 8).enter(address(1)).unwrap();
        let connection = &place.0;
        let left = || connection.deadline().duration_since(Instant::now());
        assert_eq!(left(), FIRST_HEAD_WITHIN);
        drop(connection.begin(false));
        assert_eq!(left(), IDLE_WITHOUT_KEY);
        connection.set_key();
        assert_eq!(left(), IDLE);
        advance(Duration::from_mins(1)).await;
        connection.note_bytes();
        advance(Duration::from_secs(1)).await;
        connection.note_bytes();
        assert_eq!(left(), HEAD_WITHIN.saturating_sub(Duration::from_secs(1)));
        let request = connection.begin(true);
        connection.note_bytes();
        assert_eq!(left(), BUSY_CHECKED_EVERY);
        drop(request);
        connection.note_bytes();
        assert_eq!(left(), IDLE);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let group = |address: &str| group(address.parse().unwrap());
        assert_eq!(group("2001:db8::1"), group("2001:db8::ffff:1"));
        assert_ne!(group("2001:db8:0:1::1"), group("2001:db8::1"));
        assert_eq!(group("::ffff:192.0.2.1"), address(1));
    }
}
