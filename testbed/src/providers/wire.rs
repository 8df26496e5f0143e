//! The writing side of a connection. It sends two things that `h2`'s server cannot send.
//!
//! APNs allows one concurrent stream at first, and many after a valid provider token; and its GOAWAY frame can name any
//! last stream and contains a reason. `h2` enforces the number of streams with which it was built, and can later change
//! only the initial window. So `h2` is built with the larger number. This writer replaces that number in the first
//! SETTINGS frame, and adds it to the second one, which the connection causes by setting the window to its current size.
//! Each frame is acknowledged once, as `h2` expects.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const FRAME_HEAD_BYTES: usize = 9;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const MAX_CONCURRENT_STREAMS: u16 = 3;

/// The number of streams that a connection may have open: at first, and after a valid provider token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamLimits {
    pub(crate) first: u32,
    pub(crate) full: u32,
}

/// Wraps the socket that `h2` writes to.
#[derive(Debug)]
pub(crate) struct FrameWriter<T> {
    io: T,
    limits: StreamLimits,
    settings_seen: u32,
    /// Whether bytes pass unchanged, because both SETTINGS frames are sent or there is only one.
    passing: bool,
    /// The bytes of the current frame that are still to be copied.
    rest: usize,
    out: BytesMut,
    insert: Arc<InsertedFrames>,
}

/// Frames to write between those of `h2`.
#[derive(Debug, Default)]
pub(crate) struct InsertedFrames {
    any: AtomicBool,
    frames: Mutex<Vec<u8>>,
}

impl InsertedFrames {
    /// Queues a GOAWAY frame without an error, and with a JSON reason in its debug data as Apple sends it.
    pub(crate) fn goaway(&self, last_stream: u32, reason: &str) {
        let debug = serde_json::json!({ "reason": reason }).to_string();
        let length = u32::try_from(8 + debug.len()).unwrap_or(8);
        let mut frame = Vec::with_capacity(FRAME_HEAD_BYTES + 8 + debug.len());
        frame.extend_from_slice(&length.to_be_bytes()[1..]);
        frame.extend_from_slice(&[GOAWAY, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&last_stream.to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(debug.as_bytes());
        self.frames
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(&frame);
        self.any.store(true, Ordering::Release);
    }

    fn take(&self) -> Vec<u8> {
        self.any.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.frames.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> FrameWriter<T> {
    pub(crate) fn new(io: T, limits: StreamLimits) -> (Self, Arc<InsertedFrames>) {
        let insert = Arc::new(InsertedFrames::default());
        let writer = Self {
            io,
            limits,
            settings_seen: 0,
            passing: limits.first == limits.full,
            rest: 0,
            out: BytesMut::new(),
            insert: Arc::clone(&insert),
        };
        (writer, insert)
    }

    /// Copies frames to `out`, with our number of streams in SETTINGS frames. `h2` writes the head of a frame in one piece,
    /// and so a whole SETTINGS frame.
    fn rewrite(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.rest > 0 || self.passing || bytes.len() < FRAME_HEAD_BYTES {
                let n = if self.passing || self.rest == 0 {
                    bytes.len()
                } else {
                    self.rest.min(bytes.len())
                };
                self.out.put_slice(&bytes[..n]);
                self.rest = self.rest.saturating_sub(n);
                bytes = &bytes[n..];
                continue;
            }
            let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
            let whole = FRAME_HEAD_BYTES + length;
            if bytes[3] == SETTINGS && bytes[4] & ACK == 0 && bytes.len() >= whole {
                self.settings(&bytes[FRAME_HEAD_BYTES..whole]);
                bytes = &bytes[whole..];
            } else {
                self.rest = whole;
            }
        }
    }

    fn settings(&mut self, body: &[u8]) {
        self.settings_seen += 1;
        let streams = if self.settings_seen == 1 {
            self.limits.first
        } else {
            self.passing = true;
            self.limits.full
        };
        let others = body
            .chunks_exact(6)
            .filter(|setting| setting[..2] != MAX_CONCURRENT_STREAMS.to_be_bytes());
        let length = 6 * (1 + others.clone().count());
        self.out.put_uint(u64::try_from(length).unwrap_or(0), 3);
        self.out.put_slice(&[SETTINGS, 0, 0, 0, 0, 0]);
        for setting in others {
            self.out.put_slice(setting);
        }
        self.out.put_u16(MAX_CONCURRENT_STREAMS);
        self.out.put_u32(streams);
    }
}

impl<T: AsyncWrite + Unpin> FrameWriter<T> {
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(n);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for FrameWriter<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for FrameWriter<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.drain(cx))?;
        if self.passing {
            return Pin::new(&mut self.io).poll_write(cx, buf);
        }
        self.rewrite(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.drain(cx))?;
        if self.passing {
            return Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        }
        let mut n = 0;
        for buf in bufs {
            self.rewrite(buf);
            n += buf.len();
        }
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// `h2` flushes on every turn and only between frames, so frames are inserted here.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(cx))?;
        if self.insert.any.load(Ordering::Acquire) {
            let frames = self.insert.take();
            self.out.put_slice(&frames);
            ready!(self.drain(cx))?;
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_settings_allow_one_stream_and_the_second_allow_all() {
        let limits = StreamLimits { first: 1, full: 1000 };
        let (mut writer, _) = FrameWriter::new((), limits);
        let head = [0, 0, 6, SETTINGS, 0, 0, 0, 0, 0];
        let mut first = head.to_vec();
        first.extend([0, 3, 0, 0, 3, 232]);
        writer.rewrite(&first);
        assert_eq!(writer.out[FRAME_HEAD_BYTES..], [0, 3, 0, 0, 0, 1]);

        // Another frame, in two writes, with bytes that look like SETTINGS in its body.
        let mut data = vec![0, 0, 9, 0, 0, 0, 0, 0, 1];
        data.extend([0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]);
        writer.out.clear();
        writer.rewrite(&data[..12]);
        writer.rewrite(&data[12..]);
        assert_eq!(writer.out[..], data[..]);

        writer.out.clear();
        let mut second = head.to_vec();
        second.extend([0, 4, 0, 1, 0, 0]);
        writer.rewrite(&second);
        assert_eq!(writer.out[..3], [0, 0, 12]);
        assert_eq!(writer.out[FRAME_HEAD_BYTES..], [0, 4, 0, 1, 0, 0, 0, 3, 0, 0, 3, 232]);
        assert!(writer.passing);
    }
}
