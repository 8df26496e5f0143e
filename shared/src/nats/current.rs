//! Reads of this region's streams that miss nothing that was acknowledged before. With three copies any of them answers a
//! direct get, and it may lag; only the stream's leader knows the newest message.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::jetstream::{self, stream::LastRawMessageErrorKind};
use futures::future::try_join_all;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{
    direct::{self, ANSWERED_WITHIN, Found, NoAnswer},
    follow,
    refusal::{is_about, unless_refused},
    subject,
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
    match newest.iter().flatten().map(|found| found.sequence).max() {
        None => Ok(Vec::new()),
        Some(needed) => last_since(js, stream, filters, needed).await,
    }
}

/// The newest message of each subject that matches one of `filters`, from a copy that has the sequence `needed`, which the
/// newest of them has at least.
async fn last_since(
    js: &jetstream::Context,
    stream: &str,
    filters: &[String],
    needed: u64,
) -> Result<Vec<Found>, NoAnswer> {
    let asked_until = Instant::now() + ANSWERED_WITHIN;
    loop {
        let found = direct::last_of(js, &Domain::Here, stream, filters).await?;
        if found.iter().any(|found| found.sequence >= needed) {
            return Ok(found);
        }
        if Instant::now() >= asked_until {
            return Err(NoAnswer::Silent);
        }
        sleep(RETRY_COPY_AFTER).await;
    }
}

/// The most questions that are read together.
const QUESTIONS_AT_ONCE: usize = 128;

type Answer = Result<Vec<Found>, NoAnswer>;

/// Reads of one stream by many callers. Those who ask at the same time are answered together: the leader is asked once for its
/// newest message, and one request reads everything from a copy that has it. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Readers {
    stream: &'static str,
    waiting: Arc<Mutex<VecDeque<Question>>>,
    /// Whoever has it reads for all who wait.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Question {
    filter: String,
    answer: oneshot::Sender<Answer>,
}

impl Readers {
    pub(super) fn new(stream: &'static str) -> Self {
        Self {
            stream,
            waiting: Arc::default(),
            turn: Arc::default(),
        }
    }

    /// The newest message of each subject that matches `filter`. Misses nothing that the stream acknowledged before.
    ///
    /// # Errors
    /// [`NoAnswer`], within some seconds.
    pub(super) async fn last_of(&self, js: &jetstream::Context, filter: &str) -> Answer {
        loop {
            let (answer, mut answered) = oneshot::channel();
            self.waiting().push_back(Question {
                filter: filter.to_owned(),
                answer,
            });
            loop {
                tokio::select! {
                    biased;
                    // It fails if the caller who read for this one was dropped meanwhile.
                    answer = &mut answered => match answer {
                        Ok(answer) => return answer,
                        Err(_) => break,
                    },
                    _turn = self.turn.lock() => self.answer_some(js).await,
                }
            }
        }
    }

    async fn answer_some(&self, js: &jetstream::Context) {
        let questions: Vec<Question> = {
            let mut waiting = self.waiting();
            let count = waiting.len().min(QUESTIONS_AT_ONCE);
            waiting.drain(..count).collect()
        };
        if questions.is_empty() {
            return;
        }
        match self.read(js, &questions).await {
            Ok(found) => {
                for Question { filter, answer } in questions {
                    let found = found.iter().filter(|found| subject::matches(&filter, &found.subject));
                    drop(answer.send(Ok(found.cloned().collect())));
                }
            }
            // Those who asked meanwhile would wait for the same server.
            Err(error) => {
                let others = std::mem::take(&mut *self.waiting());
                for Question { answer, .. } in questions.into_iter().chain(others) {
                    drop(answer.send(Err(error)));
                }
            }
        }
    }

    async fn read(&self, js: &jetstream::Context, questions: &[Question]) -> Answer {
        let Some(newest) = last(js, self.stream, ">").await? else {
            return Ok(Vec::new());
        };
        let filters = questions.iter().map(|question| question.filter.clone());
        // A copy that lags shows by this one, even if nothing matches the questions.
        let filters: Vec<String> = filters.chain([newest.subject]).collect();
        last_since(js, self.stream, &filters, newest.sequence).await
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Question>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
