//! Whether `JetStream` stores. A server whose disk was full may take connections and answer requests, and yet refuse
//! every write until it is started again; the only way to know is to write.

use std::{sync::Arc, time::Duration};

use async_nats::HeaderMap;
use bytes::Bytes;
use shared::nats::{publish, subject};
use tokio::time::{sleep, timeout};

use super::readiness::Readiness;
use crate::context::Context;

/// More than what may be left of the last block of a file when the disk is full.
static PROBE: [u8; 4096] = [0; 4096];

/// A load balancer asks about as often.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// A server that works answers within milliseconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// After a failure it is tried again soon, so that a server that came back gets its requests back.
const RETRY_FAILED_AFTER: Duration = Duration::from_millis(250);

/// Writes until the process ends, and notes each time whether JetStream stored.
pub(crate) async fn run(context: Arc<Context>, readiness: Readiness) {
    loop {
        let storing = publish::store(
            &context.js,
            subject::canary(&context.here),
            HeaderMap::new(),
            Bytes::from_static(&PROBE),
        );
        let error = match timeout(PROBE_TIMEOUT, storing).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer".to_owned()),
        };
        let stored_before = readiness.set_stores(error.is_none());
        if let Some(error) = &error
            && stored_before
        {
            tracing::error!(error, "JetStream does not store; not ready until it does");
        }
        sleep(if error.is_none() {
            PROBE_INTERVAL
        } else {
            RETRY_FAILED_AFTER
        })
        .await;
    }
}
