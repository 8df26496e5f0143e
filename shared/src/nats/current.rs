//! Reads of this region's streams that miss nothing that was acknowledged before. With three copies any of them answers a
//! direct get, and it may lag; only the stream's leader knows the newest message.

use std::time::Duration;

use async_nats::jetstream::{self, stream::LastRawMessageErrorKind};
use futures::future::try_join_all;
use tokio::time::{Instant, sleep, timeout};

use super::{
    direct::{self, ANSWERED_WITHIN, Found, NoAnswer},
    follow,
    refusal::{is_about, unless_refused},
    topology::Domain,
};

/// The pause before a copy that lags is asked again.
const RETRY_COPY_AFTER: Duration = Duration::from_millis(5);

/// The newest message whose subject is, or matches, `subject`.
///
/// # Errors
/// [`NoAnswer`], within two seconds; also when the stream has no leader.
pub async fn last(js: &jetstream::Context, stream: &str, subject: &str) -> Result<Option<Found>, NoAnswer> {
    let asking = async {
        let stream = js.get_stream_no_info(stream).await.map_err(|_| NoAnswer::Silent)?;
        match stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(Found {
                subject: message.subject.to_string(),
                sequence: message.sequence,
                stored_at: follow::timestamp(message.time.unix_timestamp_nanos()),
                headers: message.headers,
                payload: message.payload,
            })),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(_) => Err(NoAnswer::Silent),
        }
    };
    let client = js.client();
    let concerns = |refused: &str| is_about(refused, "MSG") && is_about(refused, stream);
    match timeout(ANSWERED_WITHIN, unless_refused(&client, concerns, asking)).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => Err(NoAnswer::Forbidden),
        Err(_) => Err(NoAnswer::Silent),
    }
}

/// The newest message of each subject that matches one of `filters`; at most 1024.
///
/// # Errors
/// [`NoAnswer`], within some seconds.
pub async fn last_of(js: &jetstream::Context, stream: &str, filters: &[String]) -> Result<Vec<Found>, NoAnswer> {
    let newest = try_join_all(filters.iter().map(|filter| last(js, stream, filter))).await?;
    let needed = newest.iter().flatten().map(|found| found.sequence).max();
    if needed.is_none() {
        return Ok(Vec::new());
    }
    let asked_until = Instant::now() + ANSWERED_WITHIN;
    loop {
        let found = direct::last_of(js, &Domain::Here, stream, filters).await?;
        if found.iter().map(|found| found.sequence).max() >= needed {
            return Ok(found);
        }
        if Instant::now() >= asked_until {
            return Err(NoAnswer::Silent);
        }
        sleep(RETRY_COPY_AFTER).await;
    }
}
