//! Tests whether `JetStream` stores messages. A server whose disk was full may accept connections and answer requests,
//! and yet refuse every write until it is restarted. Only a write shows that.

use std::{sync::Arc, time::Duration};

use async_nats::HeaderMap;
use bytes::Bytes;
use shared::nats::{publish, subject};
use tokio::time::{sleep, timeout};

use super::readiness::Readiness;
use crate::context::Context;

/// One block of a file system, so that it does not fit into what remains of a file's last block on a full disk.
static PROBE: [u8; 4096] = [0; 4096];

/// About as often as a load balancer asks for `/readyz`.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// A healthy server answers within milliseconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A failed probe is repeated soon, so that the gateway serves again as soon as the server has recovered.
const RETRY_FAILED_AFTER: Duration = Duration::from_millis(250);

/// Writes probes until the process ends, and records after each whether JetStream stored it.
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
            tracing::error!(
                error,
                "JetStream does not store messages; this gateway is not ready until it does"
            );
        }
        sleep(if error.is_none() {
            PROBE_INTERVAL
        } else {
            RETRY_FAILED_AFTER
        })
        .await;
    }
}
