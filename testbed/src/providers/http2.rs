//! One HTTP/2 connection to a simulator.
//!
//! Each connection is served by its own task. Requests that have arrived completely are answered in the turn that read
//! them, and their answers leave in one write, so that a request costs only a few microseconds. Only incomplete bodies and
//! delayed answers become futures.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use http::request::Parts;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::reply::{Reply, Site};
use super::script::{Act, ResetCode};
use super::wire::{FrameWriter, InsertedFrames, StreamLimits};

/// The maximum length of a request body that is read; longer than any provider accepts, so that the length alone is
/// enough to refuse it.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// The flow-control window of a stream, bytes: the HTTP/2 default, and more than any valid body.
const STREAM_WINDOW_BYTES: u32 = 65_535;

/// The flow-control window of a connection, bytes: enough for a thousand full bodies without a window update.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// How long the client has to close the connection itself, after a scripted GOAWAY and the last answer.
const CLOSE_AFTER_GOAWAY: Duration = Duration::from_secs(1);

/// An order to all connections of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionOrder {
    /// Continue to serve. In the other variants, the number distinguishes an order from an equal one before it.
    Serve,
    /// Send GOAWAY, answer the open requests, then close.
    GoAway(u64),
    /// Close now, without notice.
    Cut(u64),
}

/// Serves one connection until it ends.
pub(crate) async fn serve<S, T>(
    io: T,
    site: Arc<S>,
    connection: u64,
    limits: StreamLimits,
    mut orders: watch::Receiver<ConnectionOrder>,
) where
    S: Site,
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (io, insert) = FrameWriter::new(io, limits);
    let handshake = Builder::new()
        .max_concurrent_streams(limits.full)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_reset_streams(4096)
        .max_pending_accept_reset_streams(4096)
        .max_local_error_reset_streams(None)
        .handshake(io);
    let Ok(h2) = handshake.await else { return };
    let mut driver = Driver {
        session: site.open(connection),
        site,
        h2,
        insert,
        gate: Gate::new(limits),
        arrived: Vec::new(),
        waiting: FuturesUnordered::new(),
        open: 0,
        highest: 0,
        last_stream: None,
        held: Vec::new(),
    };
    loop {
        tokio::select! {
            end = poll_fn(|cx| driver.turn(cx)) => {
                if end == End::Frozen {
                    wait_cut(&mut orders).await;
                }
                return;
            }
            changed = orders.changed() => match *orders.borrow_and_update() {
                ConnectionOrder::GoAway(_) => driver.h2.graceful_shutdown(),
                ConnectionOrder::Cut(_) => return,
                ConnectionOrder::Serve => if changed.is_err() { return },
            },
        }
    }
}

/// Returns when the listener cuts or stops. Until then the caller keeps the socket open and silent.
async fn wait_cut(orders: &mut watch::Receiver<ConnectionOrder>) {
    while orders.changed().await.is_ok() {
        if matches!(*orders.borrow_and_update(), ConnectionOrder::Cut(_)) {
            return;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    Frozen,
}

struct Driver<S: Site, T> {
    site: Arc<S>,
    session: S::Session,
    h2: Connection<FrameWriter<T>, Bytes>,
    insert: Arc<InsertedFrames>,
    gate: Gate,
    arrived: Vec<Exchange>,
    waiting: FuturesUnordered<BoxFuture<'static, Step>>,
    /// Requests that are not yet answered.
    open: usize,
    /// The highest stream that was answered or is being processed.
    highest: u32,
    /// The last stream of a scripted GOAWAY; requests above it are held, never answered.
    last_stream: Option<u32>,
    /// Streams that stay open without an answer. Dropping them would reset them.
    held: Vec<(SendResponse<Bytes>, Option<RecvStream>)>,
}

/// Enforces the limit of open streams until the first valid provider token.
struct Gate {
    limits: StreamLimits,
    state: GateState,
    open: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum GateState {
    Locked,
    /// A valid token has arrived; the new SETTINGS wait until the client has acknowledged the first.
    Unlocking,
    Unlocked,
}

impl Gate {
    fn new(limits: StreamLimits) -> Self {
        let state = if limits.first == limits.full {
            GateState::Unlocked
        } else {
            GateState::Locked
        };
        Self { limits, state, open: 0 }
    }

    /// Whether one more stream may open; counts it if so.
    fn admit(&mut self) -> bool {
        if self.state == GateState::Unlocked {
            return true;
        }
        let admitted = self.open < self.limits.first;
        self.open += u32::from(admitted);
        admitted
    }
}

/// A request whose body may still be arriving.
struct Exchange {
    id: u32,
    head: Parts,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    received: Body,
}

enum Body {
    None,
    One(Bytes),
    Many(BytesMut),
}

/// An event that the driver waited for.
enum Step {
    /// A request has arrived completely.
    Arrived(Exchange),
    /// The client reset the request before it had arrived.
    Lost,
    /// A delayed answer is due.
    Due(SendResponse<Bytes>, Reply),
    /// The connection must close.
    Close,
}

impl Exchange {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while self.received.len() <= BODY_BYTES_MAX {
            let Some(chunk) = ready!(self.body.poll_data(cx)).transpose()? else {
                break;
            };
            self.body.flow_control().release_capacity(chunk.len())?;
            self.received.push(chunk);
        }
        Poll::Ready(Ok(()))
    }
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    fn push(&mut self, chunk: Bytes) {
        *self = match std::mem::replace(self, Self::None) {
            Self::None => Self::One(chunk),
            Self::One(first) => {
                let mut many = BytesMut::with_capacity(first.len() + chunk.len());
                many.extend_from_slice(&first);
                many.extend_from_slice(&chunk);
                Self::Many(many)
            }
            Self::Many(mut many) => {
                many.extend_from_slice(&chunk);
                Self::Many(many)
            }
        };
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::None => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}

impl<S, T> Driver<S, T>
where
    S: Site,
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Reads requests and answers the complete ones, until nothing more can be done. Ready when the connection is over.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            if self.accept(cx).is_ready() {
                return Poll::Ready(End::Closed);
            }
            let mut progress = !self.arrived.is_empty();
            let mut arrived = std::mem::take(&mut self.arrived);
            for exchange in arrived.drain(..) {
                if let Some(end) = self.begin(exchange, cx) {
                    return Poll::Ready(end);
                }
            }
            // The vector is put back so that its memory is reused.
            self.arrived = arrived;
            while let Poll::Ready(Some(step)) = self.waiting.poll_next_unpin(cx) {
                progress = true;
                if let Some(end) = self.step(step) {
                    return Poll::Ready(end);
                }
            }
            progress |= self.unlock();
            if !progress {
                return Poll::Pending;
            }
        }
    }

    /// Accepts every request that has begun. Ready when the connection is over.
    fn accept(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match ready!(self.h2.poll_accept(cx)) {
                Some(Ok((request, respond))) => self.arrive(request, respond),
                Some(Err(_)) | None => return Poll::Ready(()),
            }
        }
    }

    fn arrive(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let id = respond.stream_id().as_u32();
        let (head, body) = request.into_parts();
        if self.last_stream.is_some_and(|last| id > last) {
            self.held.push((respond, Some(body)));
            return;
        }
        if !self.gate.admit() {
            respond.send_reset(Reason::REFUSED_STREAM);
            self.site.records().log.refused_stream();
            return;
        }
        self.arrived.push(Exchange {
            id,
            head,
            body,
            respond,
            received: Body::None,
        });
    }

    fn begin(&mut self, mut exchange: Exchange, cx: &mut Context<'_>) -> Option<End> {
        self.open += 1;
        match exchange.poll_body(cx) {
            Poll::Ready(Ok(())) => self.step(Step::Arrived(exchange)),
            Poll::Ready(Err(_)) => self.step(Step::Lost),
            Poll::Pending => {
                self.waiting.push(Box::pin(async move {
                    match poll_fn(|cx| exchange.poll_body(cx)).await {
                        Ok(()) => Step::Arrived(exchange),
                        Err(_) => Step::Lost,
                    }
                }));
                None
            }
        }
    }

    fn step(&mut self, step: Step) -> Option<End> {
        match step {
            Step::Arrived(exchange) => return self.answer(exchange),
            Step::Due(respond, reply) => {
                send(respond, reply);
                self.finished();
            }
            Step::Lost => self.finished(),
            Step::Close => return Some(End::Closed),
        }
        None
    }

    fn answer(&mut self, exchange: Exchange) -> Option<End> {
        let Exchange {
            id,
            head,
            body,
            mut respond,
            received,
        } = exchange;
        if self.last_stream.is_some_and(|last| id > last) {
            self.held.push((respond, Some(body)));
            self.finished();
            return None;
        }
        let reply = self.site.answer(&mut self.session, &head, received.into_bytes());
        match &reply.act {
            Act::Respond => {}
            Act::Reset { code } => {
                respond.send_reset(reset_reason(*code));
                self.finished();
                return None;
            }
            Act::Goaway { processed, reason } => {
                let lowest = if *processed { id } else { id.saturating_sub(2) };
                let last = self.highest.max(lowest);
                self.go_away(last, reason);
                if !processed {
                    if id <= last {
                        respond.send_reset(Reason::REFUSED_STREAM);
                    } else {
                        self.held.push((respond, Some(body)));
                    }
                    self.finished();
                    return None;
                }
            }
            Act::Close => return Some(End::Closed),
            Act::BlackHole => {
                self.held.push((respond, Some(body)));
                self.finished();
                return None;
            }
            Act::Freeze => return Some(End::Frozen),
        }
        self.highest = self.highest.max(id);
        if reply.delay.is_zero() {
            send(respond, reply);
            self.finished();
        } else {
            self.waiting.push(Box::pin(async move {
                tokio::time::sleep(reply.delay).await;
                Step::Due(respond, reply)
            }));
        }
        None
    }

    fn go_away(&mut self, last: u32, reason: &str) {
        if self.last_stream.is_none() {
            self.insert.goaway(last, reason);
            self.last_stream = Some(last);
        }
    }

    /// Accounts for a request that needs no further work.
    fn finished(&mut self) {
        self.open -= 1;
        self.gate.open = self.gate.open.saturating_sub(1);
        if self.last_stream.is_some() && self.open == 0 {
            self.waiting.push(Box::pin(async {
                tokio::time::sleep(CLOSE_AFTER_GOAWAY).await;
                Step::Close
            }));
        }
    }

    /// Queues the second SETTINGS frame when it is due. Returns whether it did.
    fn unlock(&mut self) -> bool {
        if self.gate.state == GateState::Locked && self.site.unlocked(&self.session) {
            self.gate.state = GateState::Unlocking;
        }
        if self.gate.state != GateState::Unlocking {
            return false;
        }
        // This fails until the client has acknowledged the first SETTINGS; that acknowledgement starts another turn.
        let sent = self.h2.set_initial_window_size(STREAM_WINDOW_BYTES).is_ok();
        if sent {
            self.gate.state = GateState::Unlocked;
        }
        sent
    }
}

/// Sends an answer. A failure means that the client has disconnected, and is ignored.
fn send(mut respond: SendResponse<Bytes>, reply: Reply) {
    let (head, body) = reply.response.into_parts();
    let head = http::Response::from_parts(head, ());
    if let Ok(mut stream) = respond.send_response(head, body.is_empty())
        && !body.is_empty()
    {
        drop(stream.send_data(body, true));
    }
}

fn reset_reason(code: ResetCode) -> Reason {
    match code {
        ResetCode::RefusedStream => Reason::REFUSED_STREAM,
        ResetCode::InternalError => Reason::INTERNAL_ERROR,
        ResetCode::Cancel => Reason::CANCEL,
        ResetCode::EnhanceYourCalm => Reason::ENHANCE_YOUR_CALM,
    }
}
