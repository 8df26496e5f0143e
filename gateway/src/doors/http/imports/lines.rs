//! The body of an import, line by line.

use std::time::Duration;

use axum::body::Body;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::doors::{
    http::body::BODY_ARRIVES_WITHIN,
    problem::{BODY_TIMEOUT, MALFORMED, Problem},
};

/// The largest body of an import, in bytes.
pub(super) const BODY_MAX_BYTES: usize = 64 * 1024 * 1024;

/// The longest line of an import, in bytes, without its line feed.
pub(super) const LINE_MAX_BYTES: usize = 65_536;

/// How long a caller may send nothing while the gateway waits for more.
const SILENT_AT_MOST: Duration = Duration::from_secs(30);

/// What a caller must send on average while the gateway waits for more, in bytes a second. A body that is slower keeps one of
/// few places for longer than [`SILENT_AT_MOST`] only in proportion to what it brings.
const RATE_MIN: u32 = 16 * 1024;

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Its bytes, without the line feed.
    Text(Bytes),
    /// It is longer than [`LINE_MAX_BYTES`].
    TooLong,
}

/// Why there are no more lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// This was the last one.
    Complete,
    /// The caller was silent or slow for too long.
    Slow,
    /// The body is beyond [`BODY_MAX_BYTES`].
    TooLarge,
    /// The connection broke.
    Broken,
}

/// Reads the lines of a body.
#[derive(Debug)]
pub(super) struct Lines {
    body: Body,
    splitter: Splitter,
    received: usize,
    waited: Duration,
}

impl Lines {
    /// Begins to read. Answers the caller's `Expect: 100-continue`, so it must not be answered before.
    pub(super) async fn begin(body: Body) -> Result<Self, Problem> {
        let mut lines = Self {
            body,
            splitter: Splitter::default(),
            received: 0,
            waited: Duration::ZERO,
        };
        match timeout(BODY_ARRIVES_WITHIN, lines.receive()).await {
            Ok(Ok(()) | Err(End::Complete)) => Ok(lines),
            Ok(Err(_)) => Err(Problem::new(MALFORMED, "The body could not be read to its end.")),
            Err(_) => Err(Problem::new(
                BODY_TIMEOUT,
                "The body must begin to arrive within 5 seconds.",
            )),
        }
    }

    /// Hands on every line until there are no more, or nobody takes them.
    pub(super) async fn read(mut self, to: mpsc::Sender<Line>) -> End {
        let end = loop {
            while let Some(line) = self.splitter.next() {
                if to.send(line).await.is_err() {
                    return End::Broken;
                }
            }
            if self.received > BODY_MAX_BYTES {
                return End::TooLarge;
            }
            let began = Instant::now();
            let received = timeout(self.patience(), self.receive()).await;
            self.waited += began.elapsed();
            match received {
                Ok(Ok(())) => {}
                Ok(Err(end)) => break end,
                Err(_) => return End::Slow,
            }
        };
        if end == End::Complete
            && let Some(line) = self.splitter.last()
            && to.send(line).await.is_err()
        {
            return End::Broken;
        }
        end
    }

    /// Receives the next piece.
    async fn receive(&mut self) -> Result<(), End> {
        let frame = self.body.frame().await.ok_or(End::Complete)?;
        let frame = frame.map_err(|_| End::Broken)?;
        if let Ok(piece) = frame.into_data() {
            self.received += piece.len();
            self.splitter.add(&piece);
        }
        Ok(())
    }

    /// How long to wait for the next piece.
    fn patience(&self) -> Duration {
        let earned = Duration::from_secs(self.received as u64) / RATE_MIN;
        SILENT_AT_MOST.min((SILENT_AT_MOST + earned).saturating_sub(self.waited))
    }
}

/// Splits bytes at line feeds.
#[derive(Debug, Default)]
struct Splitter {
    pending: BytesMut,
    /// How many of the pending bytes hold no line feed.
    searched: usize,
    /// Whether the line at the beginning is longer than allowed, and was reported.
    is_skipping: bool,
}

impl Splitter {
    fn add(&mut self, piece: &[u8]) {
        self.pending.extend_from_slice(piece);
    }

    /// The next line that is complete or too long.
    fn next(&mut self) -> Option<Line> {
        loop {
            let Some(at) = self.pending[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.pending.len();
                if self.is_skipping {
                    self.pending.clear();
                    self.searched = 0;
                } else if self.searched > LINE_MAX_BYTES {
                    self.is_skipping = true;
                    return Some(Line::TooLong);
                }
                return None;
            };
            let line = self.pending.split_to(self.searched + at).freeze();
            self.pending.advance(1);
            self.searched = 0;
            if !std::mem::take(&mut self.is_skipping) {
                return Some(if line.len() > LINE_MAX_BYTES {
                    Line::TooLong
                } else {
                    Line::Text(line)
                });
            }
        }
    }

    /// The last line, if it has no line feed.
    fn last(&mut self) -> Option<Line> {
        let is_rest = !self.is_skipping && !self.pending.is_empty();
        is_rest.then(|| Line::Text(self.pending.split().freeze()))
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    /// The lines of a body that arrives in these pieces.
    async fn read(pieces: Vec<Vec<u8>>) -> (Vec<Line>, End) {
        let pieces = pieces
            .into_iter()
            .map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        let lines = Lines::begin(Body::from_stream(stream::iter(pieces))).await.unwrap();
        let (sender, mut receiver) = mpsc::channel(1);
        let reading = tokio::spawn(lines.read(sender));
        let mut found = Vec::new();
        while let Some(line) = receiver.recv().await {
            found.push(line);
        }
        (found, reading.await.unwrap())
    }

    fn text(line: &'static str) -> Line {
        Line::Text(Bytes::from_static(line.as_bytes()))
    }

    #[tokio::test]
    async fn lines_are_the_same_however_the_body_is_cut() {
        let body = b"one\n\ntwo\r\nthree".to_vec();
        let expected = (vec![text("one"), text(""), text("two\r"), text("three")], End::Complete);
        assert_eq!(read(vec![body.clone()]).await, expected);
        assert_eq!(read(body.iter().map(|byte| vec![*byte]).collect()).await, expected);
        assert_eq!(read(vec![]).await, (vec![], End::Complete));
        assert_eq!(read(vec![b"one\n".to_vec()]).await, (vec![text("one")], End::Complete));
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_counts_once_and_is_not_kept() {
        let longest = vec![b'a'; LINE_MAX_BYTES];
        let (lines, _) = read(vec![longest.clone(), b"\nnext\n".to_vec()]).await;
        assert_eq!((lines.len(), &lines[1]), (2, &text("next")));
        for cut in [1, LINE_MAX_BYTES, 3 * LINE_MAX_BYTES] {
            let line = vec![b'a'; 3 * LINE_MAX_BYTES + 1];
            let (head, tail) = line.split_at(cut);
            let pieces = vec![head.to_vec(), tail.to_vec(), b"\nnext\n".to_vec()];
            assert_eq!(read(pieces).await.0, [Line::TooLong, text("next")], "{cut}");
        }
        assert_eq!(read(vec![longest, b"a".to_vec()]).await.0, [Line::TooLong]);
    }

    #[tokio::test]
    async fn a_body_ends_where_it_is_too_large() {
        let line = [vec![b'a'; LINE_MAX_BYTES - 1], vec![b'\n']].concat();
        let (lines, end) = read(vec![line.clone(); BODY_MAX_BYTES / LINE_MAX_BYTES]).await;
        assert_eq!((lines.len(), end), (1024, End::Complete));
        let (lines, end) = read(vec![line; BODY_MAX_BYTES / LINE_MAX_BYTES + 1]).await;
        assert_eq!((lines.len(), end), (1025, End::TooLarge), "what has arrived counts");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_or_slow_body_ends_and_waiting_for_the_lines_costs_nothing() {
        let slow = |every: Duration, piece: Bytes| {
            Body::from_stream(stream::unfold((), move |()| {
                let piece = piece.clone();
                async move {
                    tokio::time::sleep(every).await;
                    Some((Ok::<_, std::io::Error>(piece), ()))
                }
            }))
        };
        let bit = Bytes::from_static(b"a\n");
        let lasts = async |every, piece| {
            let began = Instant::now();
            let lines = Lines::begin(slow(every, piece)).await.unwrap();
            let (sender, mut receiver) = mpsc::channel(1);
            let reading = tokio::spawn(lines.read(sender));
            while receiver.recv().await.is_some() {}
            (reading.await.unwrap(), began.elapsed().as_secs())
        };
        let (end, seconds) = lasts(Duration::from_secs(4), bit.clone()).await;
        assert_eq!((end, seconds), (End::Slow, 34));
        let enough = [vec![b'a'; 65_535], vec![b'\n']].concat();
        let (end, _) = lasts(Duration::from_secs(4), enough.into()).await;
        assert_eq!(end, End::TooLarge, "16 KiB a second are enough");

        // A gateway that takes a minute for a line does not blame the caller.
        let lines = Lines::begin(slow(Duration::from_secs(1), bit)).await.unwrap();
        let (sender, mut receiver) = mpsc::channel(1);
        let reading = tokio::spawn(lines.read(sender));
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_mins(1)).await;
            assert!(receiver.recv().await.is_some());
        }
        drop(receiver);
        assert_eq!(reading.await.unwrap(), End::Broken);
    }
}
