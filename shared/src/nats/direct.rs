//! Many messages of a stream with one request (JetStream batched direct get, NATS ADR-31). The client has no call for it.

use std::time::Duration;

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{envelope, topology::Domain};

/// The server did not answer within two seconds, or not as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream does not answer")]
pub struct NoAnswer;

/// A message as stored.
#[derive(Debug, Clone)]
pub struct Found {
    /// Where it was published.
    pub subject: String,
    /// Its place in the stream.
    pub sequence: u64,
    /// When the stream stored it.
    pub stored_at: Timestamp,
    /// Its headers, with the server's own among them.
    pub headers: HeaderMap,
    /// Its body.
    pub payload: Bytes,
}

impl Found {
    /// Whether it says that the key it stands for was removed.
    pub fn is_removal(&self) -> bool {
        envelope::header(&self.headers, "KV-Operation").is_some()
    }
}

/// The newest message of each subject that `filters` name; at most 1024.
///
/// # Errors
/// [`NoAnswer`].
pub async fn last_of(
    js: &jetstream::Context,
    domain: &Domain<'_>,
    stream: &str,
    filters: &[String],
) -> Result<Vec<Found>, NoAnswer> {
    get(js, domain, stream, &json!({ "multi_last": filters })).await
}

/// At most `most` messages of `filter` from the sequence `from` on, oldest first.
///
/// # Errors
/// [`NoAnswer`].
pub async fn from(
    js: &jetstream::Context,
    domain: &Domain<'_>,
    stream: &str,
    filter: &str,
    from: u64,
    most: usize,
) -> Result<Vec<Found>, NoAnswer> {
    let request = json!({ "seq": from.max(1), "next_by_subj": filter, "batch": most });
    get(js, domain, stream, &request).await
}

async fn get(
    js: &jetstream::Context,
    domain: &Domain<'_>,
    stream: &str,
    request: &Value,
) -> Result<Vec<Found>, NoAnswer> {
    tokio::time::timeout(Duration::from_secs(2), answers(js, domain, stream, request))
        .await
        .unwrap_or(Err(NoAnswer))
}

async fn answers(
    js: &jetstream::Context,
    domain: &Domain<'_>,
    stream: &str,
    request: &Value,
) -> Result<Vec<Found>, NoAnswer> {
    let client = js.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|_| NoAnswer)?;
    let subject = format!("{}.DIRECT.GET.{stream}", domain.api());
    client
        .publish_with_reply(subject, inbox, request.to_string().into())
        .await
        .map_err(|_| NoAnswer)?;
    let mut found = Vec::new();
    while let Some(message) = answers.next().await {
        match message.status.map(|status| status.as_u16()) {
            // End of the batch; nothing found.
            Some(204 | 404) => return Ok(found),
            Some(_) => return Err(NoAnswer),
            None => {}
        }
        let headers = message.headers.unwrap_or_default();
        let subject = envelope::header(&headers, "Nats-Subject")
            .unwrap_or_default()
            .to_owned();
        let sequence = envelope::header(&headers, "Nats-Sequence").and_then(|text| text.parse().ok());
        let stored_at = envelope::header(&headers, "Nats-Time-Stamp").and_then(|text| text.parse().ok());
        found.push(Found {
            subject,
            sequence: sequence.ok_or(NoAnswer)?,
            stored_at: stored_at.ok_or(NoAnswer)?,
            headers,
            payload: message.payload,
        });
    }
    Err(NoAnswer)
}
