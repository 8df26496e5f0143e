//! Trims finished work: NOTIFY keeps its messages after they were acknowledged, for the streams that source from it and for
//! replays.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::PullConsumer,
    stream::{ConsumerErrorKind, Stream},
};
use jiff::{SignedDuration, Timestamp};
use shared::{
    clock::Clock,
    id::Region,
    nats::{follow, topology},
    telemetry::metric::Metrics,
};

use tokio::sync::watch;

use crate::ledger::Ledger;

/// How often stream and ledger are trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(30);

/// After this time at the same place the trimming of a stream stands still: the stream grows until it is full, for all
/// apps. Work that cannot be done leaves its lane much sooner.
const STANDSTILL_AFTER: Duration = Duration::from_mins(5);

/// Trims NOTIFY and the ledger of one region.
#[derive(Debug)]
pub struct Janitor {
    /// The region's `JetStream`.
    pub js: jetstream::Context,
    /// The region whose stream is trimmed.
    pub region: Region,
    /// The time against which ages are measured.
    pub clock: Clock,
    /// The ledger to prune.
    pub ledger: Ledger,
    /// How long work stays in the stream at least, finished or not.
    pub keep: Duration,
    /// How long the ledger keeps a record.
    pub remember: Duration,
    /// It reports how long trimming has stood still.
    pub metrics: Metrics,
    /// Whether trimming advances.
    pub trims: watch::Sender<bool>,
}

/// Since when one unfinished message has held up the trimming of a stream.
#[derive(Debug)]
struct Standstill {
    /// The sequence before that message.
    at: Option<u64>,
    since: Timestamp,
}

impl Standstill {
    /// How long trimming has stood still. `at` is the last sequence that is finished if an older message than trimming
    /// keeps comes next, and `None` if none is held up.
    fn lasts(&mut self, at: Option<u64>, now: Timestamp) -> Duration {
        if at.is_none() || at != self.at {
            (self.at, self.since) = (at, now);
        }
        now.duration_since(self.since).try_into().unwrap_or_default()
    }
}

impl Janitor {
    /// Trims until the process ends. Several workers may do so at the same time.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(TRIM_EVERY);
        let mut standstill = Standstill {
            at: None,
            since: self.clock.now(),
        };
        loop {
            ticks.tick().await;
            let held = self.trim().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "finished work could not be trimmed");
                standstill.at.or(Some(0))
            });
            let lasts = standstill.lasts(held, self.clock.now());
            self.metrics.standstill(&self.region, lasts);
            let advances = lasts < STANDSTILL_AFTER;
            if !advances {
                let after = held.unwrap_or_default();
                tracing::error!(region = %self.region, after, minutes = lasts.as_secs() / 60, "finished work is not trimmed: a message after this sequence is not finished");
            }
            self.trims.send_replace(advances);
            let (ledger, cutoff) = (self.ledger.clone(), self.ago(self.remember).as_millisecond());
            match tokio::task::spawn_blocking(move || ledger.prune(cutoff)).await {
                Ok(Ok(0)) => {}
                Ok(Ok(records)) => tracing::info!(records, "ledger pruned"),
                Ok(Err(error)) => tracing::error!(%error, "ledger could not be pruned"),
                Err(error) => tracing::error!(%error, "ledger could not be pruned"),
            }
        }
    }

    /// Removes what every consumer has acknowledged, but never the newest minutes: a stream that is emptied forgets its
    /// positions in the streams that it sources. Returns the last finished sequence if the message after it is no longer to
    /// be kept, but is not finished.
    async fn trim(&self) -> Result<Option<u64>, async_nats::Error> {
        let stream = self.js.get_stream(topology::NOTIFY).await?;
        let (first, mut done) = (
            stream.cached_info().state.first_sequence,
            stream.cached_info().state.last_sequence,
        );
        for (_, config) in topology::workers_consumers(&self.region)
            .into_iter()
            .filter(|(stream, _)| *stream == topology::NOTIFY)
        {
            let durable = config.durable_name.clone().unwrap_or_default();
            let consumer: Result<PullConsumer, _> = self.js.get_consumer_from_stream(durable, topology::NOTIFY).await;
            let consumer = match consumer {
                Ok(consumer) => consumer,
                // A gateway of the version before makes no overflow, and a consumer that was deleted comes back soon. None
                // of its work may be trimmed meanwhile.
                Err(error) if matches!(error.kind(), ConsumerErrorKind::JetStream(error) if error.code() == 404) => {
                    if let Ok(waits) = stream
                        .direct_get_next_for_subject(&config.filter_subject, Some(first))
                        .await
                    {
                        done = done.min(waits.sequence.saturating_sub(1));
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let info = consumer.cached_info();
            // A consumer with nothing left has finished all that the stream held when its state was read.
            if info.num_pending > 0 || info.num_ack_pending > 0 {
                done = done.min(info.ack_floor.stream_sequence);
            }
        }
        let cutoff = self.ago(self.keep);
        // Times grow with sequences, so a binary search finds the first message that is too young.
        let (mut low, mut high) = (first, done + 1);
        while low < high {
            let middle = low.midpoint(high);
            if stored_at(&stream, middle).await.is_some_and(|at| at < cutoff) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low > first {
            let purged = stream.purge().sequence(low).await?.purged;
            tracing::info!(purged, "finished work trimmed");
        }
        let is_held = low > done && stored_at(&stream, low).await.is_some_and(|at| at < cutoff);
        Ok(is_held.then_some(done))
    }

    fn ago(&self, duration: Duration) -> Timestamp {
        let back = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        self.clock.now().checked_sub(back).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// When the first message at or after `sequence` was stored; `None` if there is none or the server does not answer.
async fn stored_at(stream: &Stream, sequence: u64) -> Option<Timestamp> {
    let message = stream.direct_get_next_for_subject(">", Some(sequence)).await.ok()?;
    Some(follow::timestamp(message.time.unix_timestamp_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trimming_stands_still_while_the_same_message_holds_it_up() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut standstill = Standstill { at: None, since: at(0) };
        let mut lasts = |held, second| standstill.lasts(held, at(second)).as_secs();
        assert_eq!([lasts(None, 30), lasts(Some(7), 60), lasts(Some(7), 90)], [0, 0, 30]);
        assert_eq!(lasts(Some(7), 400), 340);
        assert_eq!([lasts(Some(8), 430), lasts(Some(8), 460), lasts(None, 490)], [0, 30, 0]);
    }
}
