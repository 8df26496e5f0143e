//! Writes records of what callers did: in the background, many to a message, so that no request waits for them.

use std::{
    collections::HashMap,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID, jetstream};
use futures::future::join_all;
use shared::{
    id::{AppId, Region},
    nats::{envelope, publish, subject, version},
    receipt::{Accepted, Batch, Handled},
};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

/// Records that may wait; excess records are dropped and counted. Records only serve status queries: the notification
/// itself is stored.
const WAITING_RECORDS_MAX: usize = 65_536;
/// Records in one message, at most.
const MESSAGE_RECORDS_MAX: usize = 256;
/// How long a record waits for others to share a message with.
const COLLECT_FOR: Duration = Duration::from_millis(50);
/// How many times a message is published, at most, before its records are counted as lost.
const PUBLISH_TRIES: u32 = 3;

/// How often a message is published while no stream takes it: it was deleted and is not back, or it has no leader.
const WITHOUT_STREAM_TRIES: u32 = 20;

/// The pause before a message is published again that no stream took.
const RETRY_WITHOUT_STREAM_AFTER: Duration = Duration::from_millis(250);

/// Accepts records for the [`Writer`]. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    records: mpsc::Sender<(AppId, Record)>,
    lost: Arc<AtomicU64>,
}

/// Publishes the records that the [`Recorder`] accepts.
#[derive(Debug)]
pub(crate) struct Writer {
    js: jetstream::Context,
    here: Region,
    name: String,
    records: mpsc::Receiver<(AppId, Record)>,
    lost: Arc<AtomicU64>,
    waiting: HashMap<AppId, Vec<Record>>,
    number: u64,
}

#[derive(Debug)]
enum Record {
    Accepted(Accepted),
    Handled(Handled),
}

/// Records of one app in one message.
struct RecordMessage {
    subject: String,
    headers: HeaderMap,
    batch: Batch,
}

impl Recorder {
    /// Records that a notification was accepted; never waits.
    pub(crate) fn accepted(&self, app: AppId, accepted: Accepted) {
        self.record(app, Record::Accepted(accepted));
    }

    /// Records that a dead letter was replayed or deleted; never waits.
    pub(crate) fn handled(&self, app: AppId, handled: Handled) {
        self.record(app, Record::Handled(handled));
    }

    fn record(&self, app: AppId, record: Record) {
        if self.records.try_send((app, record)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A recorder and its writer. `name` is the writer's name in its batches and the prefix of their message ids.
pub(crate) fn pair(js: jetstream::Context, here: Region, name: String) -> (Recorder, Writer) {
    let (sender, records) = mpsc::channel(WAITING_RECORDS_MAX);
    let lost = Arc::new(AtomicU64::new(0));
    let recorder = Recorder {
        records: sender,
        lost: Arc::clone(&lost),
    };
    (
        recorder,
        Writer {
            js,
            here,
            name,
            records,
            lost,
            waiting: HashMap::new(),
            number: 0,
        },
    )
}

impl Writer {
    /// Writes records until `answered` is cancelled, when no request is in progress any more; then writes the rest.
    pub(crate) async fn run(mut self, answered: CancellationToken) {
        while let Some(Some(first)) = answered.run_until_cancelled(self.records.recv()).await {
            // While this task sleeps, no request wakes it.
            answered.run_until_cancelled(sleep(COLLECT_FOR)).await;
            self.take(first);
            while let Ok(next) = self.records.try_recv() {
                self.take(next);
            }
            self.flush().await;
        }
        self.records.close();
        while let Some(next) = self.records.recv().await {
            self.take(next);
        }
        self.flush().await;
    }

    fn take(&mut self, (app, record): (AppId, Record)) {
        self.waiting.entry(app).or_default().push(record);
    }

    async fn flush(&mut self) {
        let mut messages = Vec::new();
        for (app, records) in mem::take(&mut self.waiting) {
            let mut records = records.into_iter();
            loop {
                let some: Vec<_> = records.by_ref().take(MESSAGE_RECORDS_MAX).collect();
                if some.is_empty() {
                    break;
                }
                messages.push(self.message(app.clone(), some));
            }
        }
        let js = &self.js;
        let stored = join_all(messages.into_iter().map(|message| store(js, message))).await;
        let lost = self.lost.swap(0, Ordering::Relaxed) + stored.into_iter().sum::<u64>();
        if lost > 0 {
            tracing::warn!(
                lost,
                "records were lost; the notifications themselves are stored, but their status may be incomplete"
            );
        }
    }

    fn message(&mut self, app: AppId, records: Vec<Record>) -> RecordMessage {
        self.number += 1;
        let number = format!("{}:{}", self.name, self.number);
        let mut headers = version::headers();
        headers.insert(NATS_MESSAGE_ID, number.as_str());
        headers.insert(envelope::BATCH, number);
        let subject = subject::receipt(&self.here, &self.here, &app);
        let region = self.here.clone();
        let mut batch = Batch {
            app,
            origin: region.clone(),
            region,
            writer: self.name.clone(),
            accepted: Vec::new(),
            receipts: Vec::new(),
            handled: Vec::new(),
        };
        for record in records {
            match record {
                Record::Accepted(accepted) => batch.accepted.push(accepted),
                Record::Handled(handled) => batch.handled.push(handled),
            }
        }
        RecordMessage {
            subject,
            headers,
            batch,
        }
    }
}

/// Stores one message. Returns how many records were lost: none, or all of the message.
async fn store(js: &jetstream::Context, message: RecordMessage) -> u64 {
    let records = (message.batch.accepted.len() + message.batch.handled.len()) as u64;
    let payload = bytes::Bytes::from(serde_json::to_vec(&message.batch).expect("batches always serialize"));
    let (mut silent, mut without_stream) = (0, 0);
    while silent < PUBLISH_TRIES && without_stream < WITHOUT_STREAM_TRIES {
        // The message id makes publishing twice harmless.
        match publish::store(js, message.subject.clone(), message.headers.clone(), payload.clone()).await {
            Ok(_) => return 0,
            Err(publish::NotStored::NoAnswer) => silent += 1,
            Err(publish::NotStored::NoStream) => {
                without_stream += 1;
                sleep(RETRY_WITHOUT_STREAM_AFTER).await;
            }
            Err(_) => break,
        }
    }
    records
}
