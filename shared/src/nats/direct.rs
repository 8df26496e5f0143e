//! Reads many messages of a stream with one request (JetStream batched direct get, NATS ADR-31). The client has no call
//! for it.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    envelope,
    refusal::{is_same, unless_refused},
    topology::Domain,
};

/// How long to wait for a stream's complete answer.
pub(super) const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// The most messages of one answer when a stream is read in pages.
const MESSAGES_PER_PAGE: usize = 512;

/// The answer to one request.
enum Answers {
    All(Vec<Found>),
    /// More subjects match than one answer holds.
    TooMany,
}

/// Why a stream could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The server did not answer within two seconds, or its answer was malformed.
    #[error("the stream does not answer")]
    Silent,
    /// The server does not permit this process to read the stream.
    #[error("the server does not permit to read the stream")]
    Forbidden,
}

/// Takes the message with this subject out of `found`.
pub(super) fn take(found: &mut Vec<Found>, subject: &str) -> Option<Found> {
    let at = found.iter().position(|found| found.subject == subject)?;
    Some(found.swap_remove(at))
}

/// A message as stored.
#[derive(Debug, Clone)]
pub struct Found {
    /// The subject under which it was published.
    pub subject: String,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When the stream stored it.
    pub stored_at: Timestamp,
    /// Its headers, including those that the server adds (`Nats-Subject`, `Nats-Sequence`, `Nats-Time-Stamp`).
    pub headers: HeaderMap,
    /// Its body, unchanged.
    pub payload: Bytes,
}

impl Found {
    /// Whether it marks its key as removed.
    pub fn is_removal(&self) -> bool {
        envelope::header(&self.headers, "KV-Operation").is_some()
    }
}

/// The newest message of each subject that matches one of `filters`. If they match more than 1024 subjects, which one
/// answer does not hold, the stream must keep one message for each subject.
///
/// # Errors
/// [`NoAnswer`], within two seconds for each page.
pub async fn last_of(
    js: &jetstream::Context,
    domain: &Domain<'_>,
    stream: &str,
    filters: &[String],
) -> Result<Vec<Found>, NoAnswer> {
    if let Answers::All(found) = get(js, domain, stream, &json!({ "multi_last": filters })).await? {
        return Ok(found);
    }
    // A message that is replaced meanwhile is found again later in the stream.
    let mut newest = BTreeMap::new();
    for filter in filters {
        let mut next = Some(1);
        while let Some(begin) = next {
            let page = from(js, domain, stream, filter, begin, MESSAGES_PER_PAGE).await?;
            next = next_page(&page, MESSAGES_PER_PAGE);
            newest.extend(page.into_iter().map(|found| (found.subject.clone(), found)));
        }
    }
    Ok(newest.into_values().collect())
}

/// Number of messages whose subject matches `filter`.
///
/// # Errors
/// [`NoAnswer`], within two seconds.
pub async fn count(js: &jetstream::Context, domain: &Domain<'_>, stream: &str, filter: &str) -> Result<u64, NoAnswer> {
    let first = from(js, domain, stream, filter, 1, 1).await?;
    let Some(first) = first.first() else { return Ok(0) };
    let behind = first.headers.get_all("Nats-Num-Pending").last();
    let behind = behind.and_then(|text| text.as_str().parse::<u64>().ok());
    behind.map(|behind| behind + 1).ok_or(NoAnswer::Silent)
}

/// Where the page behind `page` begins, which was read with [`from`] and `count_max`; `None` if there is none.
pub fn next_page(page: &[Found], count_max: usize) -> Option<u64> {
    let last = page.last().filter(|_| page.len() == count_max)?;
    Some(last.sequence + 1)
}

/// Up to `count_max` messages whose subject matches `filter`, from the sequence `from` on, oldest first.
///
/// # Errors
/// [`NoAnswer`], within two seconds.
pub async fn from(
    js: &jetstream::Context,
    domain: &Domain<'_>,
    stream: &str,
    filter: &str,
    from: u64,
    count_max: usize,
) -> Result<Vec<Found>, NoAnswer> {
    let request = json!({ "seq": from.max(1), "next_by_subj": filter, "batch": count_max });
    match get(js, domain, stream, &request).await? {
        Answers::All(found) => Ok(found),
        Answers::TooMany => Err(NoAnswer::Silent),
    }
}

async fn get(js: &jetstream::Context, domain: &Domain<'_>, stream: &str, request: &Value) -> Result<Answers, NoAnswer> {
    let subject = format!("{}.DIRECT.GET.{stream}", domain.api());
    let asking = answers(js, &subject, request);
    let client = js.client();
    let asking = unless_refused(&client, |refused| is_same(refused, &subject), asking);
    match tokio::time::timeout(ANSWERED_WITHIN, asking).await {
        Ok(Ok(answers)) => answers,
        Ok(Err(_)) => Err(NoAnswer::Forbidden),
        Err(_) => Err(NoAnswer::Silent),
    }
}

async fn answers(js: &jetstream::Context, subject: &str, request: &Value) -> Result<Answers, NoAnswer> {
    let client = js.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|_| NoAnswer::Silent)?;
    client
        .publish_with_reply(subject.to_owned(), inbox, request.to_string().into())
        .await
        .map_err(|_| NoAnswer::Silent)?;
    let mut found = Vec::new();
    while let Some(message) = answers.next().await {
        match message.status.map(|status| status.as_u16()) {
            // End of the batch; nothing found.
            Some(204 | 404) => return Ok(Answers::All(found)),
            Some(413) => return Ok(Answers::TooMany),
            Some(_) => return Err(NoAnswer::Silent),
            None => {}
        }
        let headers = message.headers.unwrap_or_default();
        // The server adds its own behind those of the message, whose publisher may have used the same names.
        let of_server = |name: &str| headers.get_all(name).last().map(async_nats::HeaderValue::as_str);
        let subject = of_server("Nats-Subject").unwrap_or_default().to_owned();
        let sequence = of_server("Nats-Sequence").and_then(|text| text.parse().ok());
        let stored_at = of_server("Nats-Time-Stamp").and_then(|text| text.parse().ok());
        found.push(Found {
            subject,
            sequence: sequence.ok_or(NoAnswer::Silent)?,
            stored_at: stored_at.ok_or(NoAnswer::Silent)?,
            headers,
            payload: message.payload,
        });
    }
    Err(NoAnswer::Silent)
}
