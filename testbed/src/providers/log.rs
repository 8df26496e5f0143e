//! The requests that reached a simulator, and its answers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use shared::reference::Reference;

use super::clock::now_us;

/// How much a simulator records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogMode {
    /// Complete pushes, at most this number; the oldest are discarded.
    Full(usize),
    /// Only counters and the ids of delivered pushes, for benchmarks.
    Counting,
}

impl Default for LogMode {
    fn default() -> Self {
        Self::Full(100_000)
    }
}

/// The delivery that a message's reference is about; `reference` itself if it is none, but the delivery's id.
pub(crate) fn delivery_of(reference: &str) -> String {
    let delivery = Reference::claimed(reference).and_then(|claimed| claimed.delivery());
    delivery.map_or_else(|| reference.to_owned(), |delivery| delivery.to_string())
}

/// A recorded request to send a push.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RecordedPush {
    /// When it had arrived completely, milliseconds since the epoch.
    pub at_ms: i64,
    /// `apns` or `fcm`.
    pub provider: &'static str,
    /// The number of its connection, counted from 1.
    pub connection: u64,
    /// The device token; at FCM also a topic, condition or installation id.
    pub token: String,
    /// The `apns-id`, or the message name that FCM assigned.
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
    /// Whether the push reached the device, which does not follow from the status: see [`Answer::delivered`].
    ///
    /// [`Answer::delivered`]: super::script::Answer::delivered
    pub delivered: bool,
    /// The HTTP status of the answer, even if a reset, GOAWAY, close or black hole prevented the answer.
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
    /// Requests to send a push, whether or not they were answered.
    pub requests: u64,
    /// Pushes that reached a device.
    pub delivered: u64,
    /// Delivered pushes whose identity was delivered before. The identity is `apns-id` at APNs, and the project with the
    /// message at FCM.
    pub duplicates: u64,
    /// The number of requests for each of the provider's errors.
    pub reasons: BTreeMap<String, u64>,
    /// Connections accepted since the start (TLS handshake completed).
    pub connections: u64,
    /// Connections that are open.
    pub open_connections: u64,
    /// Streams refused because no valid provider token had arrived on the connection.
    pub refused_streams: u64,
    /// OAuth access tokens issued (FCM only).
    pub access_tokens: u64,
}

/// The log of one simulator.
#[derive(Debug)]
pub struct Log {
    capacity: usize,
    keeps_pushes: AtomicBool,
    pushes: Mutex<VecDeque<RecordedPush>>,
    requests: AtomicU64,
    delivered: AtomicU64,
    last_delivered_us: AtomicI64,
    reasons: Mutex<BTreeMap<String, u64>>,
    /// Identities of delivered pushes, in shards so that connections do not wait for each other.
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

    /// All recorded requests, the oldest first.
    pub fn pushes(&self) -> Vec<RecordedPush> {
        lock(&self.pushes).iter().cloned().collect()
    }

    /// The recorded pushes that reached a device, the oldest first.
    pub fn delivered(&self) -> Vec<RecordedPush> {
        self.filtered(|push| push.delivered)
    }

    /// The recorded pushes that reached this device, the oldest first.
    pub fn delivered_to(&self, token: &str) -> Vec<RecordedPush> {
        self.filtered(|push| push.delivered && push.token == token)
    }

    /// The recorded requests for this device, delivered or not.
    pub fn requests_for(&self, token: &str) -> Vec<RecordedPush> {
        self.filtered(|push| push.token == token)
    }

    fn filtered(&self, wanted: impl Fn(&RecordedPush) -> bool) -> Vec<RecordedPush> {
        lock(&self.pushes).iter().filter(|push| wanted(push)).cloned().collect()
    }

    /// The number of requests to send a push.
    pub fn request_count(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The number of pushes that reached a device.
    pub fn delivered_count(&self) -> u64 {
        self.delivered.load(Ordering::Acquire)
    }

    /// When the latest push reached a device, microseconds since the epoch; 0 if none has.
    pub fn last_delivered_us(&self) -> i64 {
        self.last_delivered_us.load(Ordering::Relaxed)
    }

    /// Waits until this number of pushes have reached a device. Returns `false` if they do not `within` this time.
    pub async fn wait_delivered(&self, count: u64, within: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + within;
        while self.delivered_count() < count {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        true
    }

    /// The totals. Not for a hot loop: counting duplicates sorts all identities.
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

    /// Discards everything except the counts of connections.
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

    /// Records a request. `delivered` is the identity of the push if it reached the device: two deliveries with the same
    /// identity are duplicates. `push` is called only if complete pushes are recorded.
    pub(crate) fn record(
        &self,
        connection: u64,
        delivered: Option<u128>,
        reason: Option<&str>,
        push: impl FnOnce() -> RecordedPush,
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
        // The counts are updated last, so that a caller that waits for a count finds the push.
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
