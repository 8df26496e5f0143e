//! The answer to a request that lasts: an import or an export. It is kept until the caller reads it: many clients do so only when they have sent the whole body.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame};
use tokio::{sync::Notify, time::timeout};

/// What is kept of an answer, in bytes. When it is reached, the caller must read before more lines are taken.
const KEPT_MAX_BYTES: usize = 64 * 1024 * 1024;

/// The largest piece of an answer, in bytes.
const PIECE_MAX_BYTES: usize = 64 * 1024;

/// How long a caller may read nothing once only reading is left to do.
const READS_WITHIN: Duration = Duration::from_secs(30);

/// The end of an answer at which it is written.
#[derive(Debug, Default)]
pub(super) struct Answer(Arc<Shared>);

/// The end of an answer at which the connection reads it.
#[derive(Debug)]
pub(super) struct Reading(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    kept: BytesMut,
    end: Option<Ended>,
    is_gone: bool,
    reader: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Complete,
    Cut,
}

/// The caller is gone, or reads nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the caller does not read the answer")]
pub(super) struct NotRead;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Answer {
    /// The other end. There is one.
    pub(super) fn reading(&self) -> Reading {
        Reading(Arc::clone(&self.0))
    }

    /// Adds a line.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.0.lock();
        if !state.is_gone {
            state.kept.extend_from_slice(line);
            state.kept.extend_from_slice(b"\n");
            state.wake();
        }
    }

    /// Whether more lines may be added before the caller reads.
    pub(super) fn has_room(&self) -> bool {
        self.0.lock().kept.len() < KEPT_MAX_BYTES
    }

    /// Waits until the caller has read something.
    ///
    /// # Errors
    /// When it is gone, or reads nothing for 30 seconds.
    pub(super) async fn taken(&self) -> Result<(), NotRead> {
        let taken = self.0.taken.notified();
        if self.0.lock().is_gone {
            return Err(NotRead);
        }
        timeout(READS_WITHIN, taken).await.map_err(|_| NotRead)
    }

    /// Waits until the caller has read what was added.
    ///
    /// # Errors
    /// When it does not; see [`Self::taken`].
    pub(super) async fn read(&self) -> Result<(), NotRead> {
        while !self.0.lock().kept.is_empty() {
            self.taken().await?;
        }
        Ok(())
    }

    /// Ends the answer. One that is dropped without this, or before it is read, breaks off.
    pub(super) fn complete(self) {
        self.0.lock().end = Some(Ended::Complete);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.end.is_none() || !state.kept.is_empty() {
            state.end = Some(Ended::Cut);
            state.kept = BytesMut::new();
        }
        state.wake();
    }
}

impl Body for Reading {
    type Data = Bytes;
    type Error = NotRead;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, NotRead>>> {
        let mut state = self.0.lock();
        if !state.kept.is_empty() {
            let piece = state.kept.len().min(PIECE_MAX_BYTES);
            let piece = state.kept.split_to(piece).freeze();
            drop(state);
            self.0.taken.notify_one();
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match state.end {
            Some(Ended::Complete) => Poll::Ready(None),
            Some(Ended::Cut) => Poll::Ready(Some(Err(NotRead))),
            None => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_gone = true;
        state.kept = BytesMut::new();
        drop(state);
        self.0.taken.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn an_answer_is_kept_until_it_is_read() {
        let answer = Answer::default();
        let reading = answer.reading();
        answer.push(b"one");
        answer.push(b"two");
        let complete = async {
            let read = answer.read().await;
            answer.complete();
            read
        };
        let (complete, read) = tokio::join!(complete, reading.collect());
        assert_eq!(complete, Ok(()));
        assert_eq!(read.unwrap().to_bytes(), "one\ntwo\n");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_reads_is_dropped() {
        let answer = Answer::default();
        let mut reading = answer.reading();
        answer.push(&vec![b'a'; KEPT_MAX_BYTES]);
        assert!(!answer.has_room());
        assert!(reading.frame().await.unwrap().is_ok());
        assert_eq!(answer.read().await, Err(NotRead));
        drop(answer);
        assert_eq!(
            reading.frame().await.unwrap().unwrap_err(),
            NotRead,
            "an answer that is cut is no whole one"
        );

        let answer = Answer::default();
        drop(answer.reading());
        answer.push(b"one");
        assert_eq!(answer.taken().await, Err(NotRead));
        assert_eq!(answer.read().await, Ok(()));
    }
}
