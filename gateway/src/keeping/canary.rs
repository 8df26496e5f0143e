//! Whether `JetStream` stores. A server whose disk was full may take connections and answer requests, and yet refuse
//! every write until it is started again; the only way to know is to write.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use shared::{
    id::Region,
    nats::{publish, subject},
};
use tokio::time::{sleep, timeout};

/// More than what may be left of the last block of a file when the disk is full.
static BLOCK: [u8; 4096] = [0; 4096];

/// A load balancer asks about as often.
const EVERY: Duration = Duration::from_secs(2);

/// A server that works answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// After a failure it is tried again soon, so that a server that came back gets its requests back.
const AGAIN: Duration = Duration::from_millis(250);

/// Writes for ever, and keeps in `stores` whether the last write was stored.
pub(crate) async fn run(js: jetstream::Context, here: Region, stores: Arc<AtomicBool>) {
    loop {
        let storing = publish::store(
            &js,
            subject::canary(&here),
            HeaderMap::new(),
            Bytes::from_static(&BLOCK),
        );
        let error = match timeout(PATIENCE, storing).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer".to_owned()),
        };
        if let Some(error) = &error
            && stores.load(Ordering::Relaxed)
        {
            tracing::error!(error, "JetStream does not store; not ready until it does");
        }
        stores.store(error.is_none(), Ordering::Relaxed);
        sleep(if error.is_none() { EVERY } else { AGAIN }).await;
    }
}
