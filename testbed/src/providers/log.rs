//! What reached a simulator, and what it answered.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::clock::now_us;

/// How much a simulator remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogMode {
    /// Whole pushes, the newest this many.
    Full(usize),
    /// Counters and the ids of delivered pushes only: what a benchmark can afford.
    Counting,
}

impl Default for LogMode {
    fn default() -> Self {
        Self::Full(100_000)
    }
}

/// One request to send a push.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Push {
    /// When it had arrived whole, milliseconds since the epoch.
    pub at_ms: i64,
    /// `apns` or `fcm`.
    pub provider: &'static str,
    /// Which connection brought it; they count from 1.
    pub connection: u64,
    /// The device token; at FCM also a topic, condition or installation id.
    pub token: String,
    /// The `apns-id`, or the message name FCM gave it.
    pub id: String,
    /// `apns-collapse-id`, or FCM's Android collapse key.
    pub collapse_id: Option<String>,
    /// `apns-topic`; at FCM the project.
    pub topic: Option<String>,
    /// `apns-push-type`.
    pub push_type: Option<String>,
    /// `apns-priority`, or FCM's Android priority.
    pub priority: Option<String>,
    /// `apns-expiration` (seconds since the epoch), or FCM's Android `ttl` as sent (`3.5s`).
    pub expiration: Option<String>,
    /// The W3C `traceparent` header.
    pub traceparent: Option<String>,
    /// The body as sent: APNs payload, or FCM's whole request.
    #[serde(serialize_with = "as_text")]
    pub payload: Bytes,
    /// Whether the push reached the device. Not the same as the status: see [`Answer::delivered`].
    ///
    /// [`Answer::delivered`]: super::script::Answer::delivered
    pub delivered: bool,
    /// The status answered; what a reset, GOAWAY, close or black hole kept from being answered is here too.
    pub status: u16,
    /// The provider's error, if any.
    pub reason: Option<String>,
}

fn as_text<S: serde::Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(bytes))
}

/// Totals since the start, or since [`Log::clear`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests to send a push, answered or not.
    pub requests: u64,
    /// Pushes that reached a device.
    pub delivered: u64,
    /// Delivered pushes whose identity had been delivered before: `apns-id` at APNs, target and message at FCM.
    pub duplicates: u64,
    /// Requests by the provider's error.
    pub reasons: BTreeMap<String, u64>,
    /// Connections ever accepted (TLS completed).
    pub connections: u64,
    /// Connections open now.
    pub open_connections: u64,
    /// Streams refused because the connection had not yet shown a valid provider token.
    pub refused_streams: u64,
    /// OAuth access tokens handed out (FCM only).
    pub access_tokens: u64,
}

/// The record of one simulator.
#[derive(Debug)]
pub struct Log {
    capacity: usize,
    keeps_pushes: AtomicBool,
    pushes: Mutex<VecDeque<Push>>,
    requests: AtomicU64,
    delivered: AtomicU64,
    last_delivered_us: AtomicI64,
    reasons: Mutex<BTreeMap<String, u64>>,
    /// Identities of delivered pushes, spread so that connections do not wait for each other.
    identities: [Mutex<Vec<u128>>; 16],
    connections: AtomicU64,
    open_connections: AtomicU64,
    refused_streams: AtomicU64,
    access_tokens: AtomicU64,
}

impl Log {
    pub(crate) fn new(mode: LogMode) -> Self {
        let (keeps, capacity) = match mode {
            LogMode::Full(capacity) => (true, capacity),
            LogMode::Counting => (false, 0),
        };
        Self {
            capacity,
            keeps_pushes: AtomicBool::new(keeps),
            pushes: Mutex::default(),
            requests: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            last_delivered_us: AtomicI64::new(0),
            reasons: Mutex::default(),
            identities: std::array::from_fn(|_| Mutex::default()),
            connections: AtomicU64::new(0),
            open_connections: AtomicU64::new(0),
            refused_streams: AtomicU64::new(0),
            access_tokens: AtomicU64::new(0),
        }
    }

    /// All remembered requests, the oldest first.
    pub fn pushes(&self) -> Vec<Push> {
        lock(&self.pushes).iter().cloned().collect()
    }

    /// The remembered pushes that reached a device, the oldest first.
    pub fn delivered(&self) -> Vec<Push> {
        self.filtered(|push| push.delivered)
    }

    /// The remembered pushes that reached this device.
    pub fn delivered_to(&self, token: &str) -> Vec<Push> {
        self.filtered(|push| push.delivered && push.token == token)
    }

    /// The remembered requests for this device, whatever became of them.
    pub fn requests_for(&self, token: &str) -> Vec<Push> {
        self.filtered(|push| push.token == token)
    }

    fn filtered(&self, wanted: impl Fn(&Push) -> bool) -> Vec<Push> {
        lock(&self.pushes).iter().filter(|push| wanted(push)).cloned().collect()
    }

    /// How many requests to send a push have come.
    pub fn request_count(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How many pushes reached a device.
    pub fn delivered_count(&self) -> u64 {
        self.delivered.load(Ordering::Acquire)
    }

    /// When the newest push reached a device, microseconds since the epoch; 0 if none has.
    pub fn last_delivered_us(&self) -> i64 {
        self.last_delivered_us.load(Ordering::Relaxed)
    }

    /// Waits until this many pushes have reached a device; `false` when that took longer than `patience`.
    pub async fn wait_delivered(&self, count: u64, patience: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + patience;
        while self.delivered_count() < count {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        true
    }

    /// The totals. Counting duplicates sorts all identities: not for a hot loop.
    pub fn stats(&self) -> Stats {
        Stats {
            requests: self.request_count(),
            delivered: self.delivered_count(),
            duplicates: self.duplicates(),
            reasons: lock(&self.reasons).clone(),
            connections: self.connections.load(Ordering::Relaxed),
            open_connections: self.open_connections.load(Ordering::Relaxed),
            refused_streams: self.refused_streams.load(Ordering::Relaxed),
            access_tokens: self.access_tokens.load(Ordering::Relaxed),
        }
    }

    fn duplicates(&self) -> u64 {
        let mut all = Vec::new();
        for shard in &self.identities {
            all.extend_from_slice(&lock(shard));
        }
        all.sort_unstable();
        let repeats = all.windows(2).filter(|pair| pair[0] == pair[1]).count();
        u64::try_from(repeats).unwrap_or(u64::MAX)
    }

    /// Forgets everything but the connections.
    pub fn clear(&self) {
        lock(&self.pushes).clear();
        lock(&self.reasons).clear();
        for shard in &self.identities {
            lock(shard).clear();
        }
        self.requests.store(0, Ordering::Relaxed);
        self.delivered.store(0, Ordering::Relaxed);
        self.last_delivered_us.store(0, Ordering::Relaxed);
        self.refused_streams.store(0, Ordering::Relaxed);
        self.access_tokens.store(0, Ordering::Relaxed);
    }

    /// Records a request. `identity` is what makes two deliveries the same one; `push` is called only when whole
    /// pushes are kept.
    pub(crate) fn record(
        &self,
        connection: u64,
        delivered: Option<u128>,
        reason: Option<&str>,
        push: impl FnOnce() -> Push,
    ) {
        if self.keeps_pushes.load(Ordering::Relaxed) {
            let push = push();
            let mut pushes = lock(&self.pushes);
            if pushes.len() >= self.capacity {
                pushes.pop_front();
            }
            pushes.push_back(push);
        }
        if let Some(reason) = reason {
            self.count_reason(reason);
        }
        // The counts follow the push: who waited for a count finds the push.
        self.requests.fetch_add(1, Ordering::Release);
        if let Some(identity) = delivered {
            let shard = usize::try_from(connection % 16).unwrap_or(0);
            lock(&self.identities[shard]).push(identity);
            self.last_delivered_us.fetch_max(now_us(), Ordering::Relaxed);
            self.delivered.fetch_add(1, Ordering::Release);
        }
    }

    fn count_reason(&self, reason: &str) {
        let mut reasons = lock(&self.reasons);
        if let Some(count) = reasons.get_mut(reason) {
            *count += 1;
        } else {
            reasons.insert(reason.to_owned(), 1);
        }
    }

    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open_connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn disconnected(&self) {
        self.open_connections.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn refused_stream(&self) {
        self.refused_streams.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn access_token(&self) {
        self.access_tokens.fetch_add(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
