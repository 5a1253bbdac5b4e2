//! The calls of one connection: requests are collected first, and replied to together.
//!
//! h2 hands over requests one by one. The server replies only after h2 has parsed all the input. By then the messages
//! of small requests have arrived, and all replies leave in one write. (A write for each reply would cost more than the
//! rest of the call.) If there are many requests, some wait for the connection's next [turn](crate::turns). A call that
//! has to wait, for its request or for its handler, becomes a task of its own.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, SendStream};
use http::{HeaderMap, Response};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::debug;

use crate::grpc::call_counters::{OpenCall, code_in};
use crate::grpc::frame;
use crate::grpc::panics::catch;
use crate::grpc::router::{Accepted, Call, ConnectionRouter, PendingReply, Reply, late};
use crate::http2::held_input::{End, HeldInput};
use crate::http2::muted_waker::MutedWaker;
use crate::http2::rate_guard::RateGuard;
use crate::http2::stream_memory::StreamMemory;
use crate::http2::traffic::Traffic;
use crate::limits::{
    CANCELLED_CALLS, CANCELLED_CALLS_PER_SECOND, CONNECTION_WINDOW, FRAMES_PER_STREAM, IDLE_BYTES, INPUT_PER_WORK,
    LARGE_CONNECTION_WINDOW, MAKE_ROOM_INTERVAL, MAX_UNSENT_FRAMES, READ_BUFFER, SMALL_REPLY_SIZE, STREAMS_PER_WORK,
};
use crate::log::peer::OfPeer;
use crate::memory::Charge;
use crate::refusal;
use crate::turns::SmallCalls;

/// A request, and the stream for its reply.
type Received = (Accepted, SendResponse<Bytes>);

/// A connection, and the requests that wait for their reply.
pub(super) struct Calls<S> {
    pub(super) connection: Connection<S, Bytes>,
    router: ConnectionRouter,
    traffic: Arc<Traffic>,
    received: VecDeque<Received>,
    /// The calls so far.
    calls: u64,
    /// Since when the connection has been idle, and its activity then; see [`idle_time`](Self::idle_time).
    idle: Option<(Instant, u64)>,
    /// The memory that h2 keeps for streams.
    streams: StreamMemory,
    /// The charge for [`LARGE_CONNECTION_WINDOW`], once the connection has that window.
    window: Option<Charge>,
    /// The memory that h2 keeps for input that no call has read.
    held: HeldInput,
    /// Whether the connection has to drain because of [`held`](Self::held).
    must_drain: bool,
    /// Whether the connection ends with ENHANCE_YOUR_CALM.
    has_ended: bool,
    /// Shared with the tasks of the calls in flight, except the passive calls.
    in_flight: Arc<()>,
    cancelled: RateGuard,
    /// Set while other connections have their turn. Ends with the connection's next turn.
    yielded: Option<oneshot::Receiver<()>>,
    /// The waker that h2 gets.
    waker: Option<MutedWaker>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Calls<S> {
    pub(super) fn new(connection: Connection<S, Bytes>, router: ConnectionRouter, traffic: Arc<Traffic>) -> Self {
        Self {
            connection,
            streams: StreamMemory::new(router.memory().no_charge()),
            held: HeldInput::new(router.memory().no_charge(), router.deadline()),
            must_drain: false,
            has_ended: false,
            router,
            traffic,
            received: VecDeque::new(),
            calls: 0,
            idle: None,
            window: None,
            in_flight: Arc::new(()),
            cancelled: RateGuard::new(CANCELLED_CALLS, CANCELLED_CALLS_PER_SECOND),
            yielded: None,
            waker: None,
        }
    }

    /// Ends the client's rights: the server refuses later calls that need a role.
    pub(super) fn revoke(&mut self) {
        self.router.revoke();
    }

    /// Returns a number that grows with each call, and with each [`IDLE_BYTES`] that are written. h2 may still send the
    /// reply of a call that is no longer in flight.
    fn activity(&self) -> u64 {
        self.calls + self.traffic.written() / IDLE_BYTES
    }

    /// Reports whether the client has a call in flight that uses the connection.
    pub(super) fn has_calls(&self) -> bool {
        !self.received.is_empty() || Arc::strong_count(&self.in_flight) > 1
    }

    /// Returns how long the connection has been idle, as far as the questions so far show. `None` if a call is in
    /// flight.
    fn idle_time(&mut self) -> Option<Duration> {
        let activity = self.activity();
        self.idle = match self.idle {
            _ if self.has_calls() => None,
            Some((since, before)) if before == activity => Some((since, before)),
            _ => Some((Instant::now(), activity)),
        };
        self.idle.map(|(since, _)| since.elapsed())
    }

    /// Reports whether the client has made no call yet, or has been idle for half of [`MAKE_ROOM_INTERVAL`]. Questions
    /// may come at any rate.
    pub(super) fn is_idle(&mut self) -> bool {
        let idle = self.idle_time();
        idle.is_some_and(|idle| self.activity() == 0 || idle >= MAKE_ROOM_INTERVAL / 2)
    }

    /// Reports whether h2 keeps memory for many streams although the client has been idle for `at_least`.
    pub(super) fn is_large_and_idle(&mut self, at_least: Duration) -> bool {
        let idle = self.idle_time();
        self.streams.is_large() && idle.is_some_and(|idle| idle >= at_least)
    }

    /// Lets several calls that wait for their requests receive more bytes at one time, if much memory is free.
    fn grow_window(&mut self) {
        if self.window.is_none() && Arc::strong_count(&self.in_flight) > 2 {
            let more = LARGE_CONNECTION_WINDOW - CONNECTION_WINDOW;
            self.window = self.router.memory().charge_spare(more as usize);
            if self.window.is_some() {
                self.connection.set_target_window_size(LARGE_CONNECTION_WINDOW);
            }
        }
    }

    /// Serves the connection until it is closed. Returns `None` each time that the connection has to drain: the budget
    /// has no room for the memory that h2 takes for streams or for input.
    pub(super) fn poll_serve_in_budget(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(), h2::Error>>> {
        match self.poll_serve(cx) {
            Poll::Pending if self.streams.take_refusal() | std::mem::take(&mut self.must_drain) => Poll::Ready(None),
            served => served.map(Some),
        }
    }

    /// Serves the connection until it is closed.
    pub(super) fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let is_granted = self.yielded.is_some();
        if let Some(turn) = &mut self.yielded {
            // An error means that the runtime stops.
            let _ = ready!(Pin::new(turn).poll(cx));
            self.yielded = None;
        }
        let turn = self.router.turns().small_calls(is_granted);
        if turn.work == 0 {
            self.wait_for_turn(&turn, cx);
            return Poll::Pending;
        }
        self.grow_window();
        let waker = match self.waker.take() {
            Some(waker) if waker.will_wake(cx) => waker,
            _ => MutedWaker::new(cx.waker().clone()),
        };
        let waker = self.waker.insert(waker);
        // A client that sends more than the server replies to has to wait.
        let may_read = self.received.is_empty() && !self.held.is_stalled();
        self.traffic.begin_turn(if may_read { turn.input } else { 0 });
        let (price, control) = (self.traffic.price(), self.traffic.control_frames());
        let bytes = (self.traffic.read(), self.traffic.written());
        let (most, mut work) = (turn.work, 0);
        // Of these requests, the client's deadline may have passed.
        let waited = (!self.received.is_empty()).then(Instant::now);
        // The clock is read once for all requests that h2 hands over together.
        let mut arrived = None;
        loop {
            let must_end = match self.connection.poll_accept(&mut Context::from_waker(waker.waker())) {
                Poll::Ready(Some(request)) => {
                    let (request, stream) = request?;
                    self.calls += 1;
                    let arrived = *arrived.get_or_insert_with(Instant::now);
                    self.received.push_back((self.router.accept(request, arrived), stream));
                    self.streams
                        .open(self.received.len() + Arc::strong_count(&self.in_flight) - 1);
                    false
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending if self.traffic.is_flooded() && !self.has_ended => {
                    self.router.refusals().refuse(refusal::Reason::FrameFlood);
                    true
                }
                // The next poll of the connection writes the replies.
                Poll::Pending if work < most && !self.received.is_empty() => {
                    arrived = None;
                    let cancelled = waker.mute(|| {
                        reply_to_some(
                            &mut self.received,
                            &self.router,
                            &self.in_flight,
                            waited,
                            most,
                            &mut work,
                        )
                    });
                    let is_flood = cancelled > 0 && !self.cancelled.allow(cancelled);
                    if is_flood {
                        self.router.refusals().refuse(refusal::Reason::CancelledCalls);
                    }
                    is_flood
                }
                Poll::Pending => {
                    let free = self.window.as_ref().map_or(0, Charge::bytes);
                    let ended = match self.has_ended {
                        true => None,
                        false => self.held.poll(cx, &self.traffic, !self.received.is_empty(), free),
                    };
                    let unread = self.traffic.unread().cost() / READ_BUFFER;
                    self.streams.open(unread / FRAMES_PER_STREAM);
                    match ended {
                        Some(End::Late) => _ = self.router.refusals().refuse(refusal::Reason::FrameFlood),
                        Some(End::Drain) => self.must_drain = true,
                        // The refusal is counted.
                        Some(End::NoRoom) | None => {}
                    }
                    if !matches!(ended, Some(End::Late | End::NoRoom)) {
                        let input = (self.traffic.price() - price) as usize / INPUT_PER_WORK;
                        let streams = self.received.len() + Arc::strong_count(&self.in_flight) - 1;
                        let visits = (self.traffic.control_frames() - control) * streams / STREAMS_PER_WORK;
                        let has_traffic = bytes != (self.traffic.read(), self.traffic.written());
                        self.router.turns().end(&turn, work.max(input) + visits, has_traffic);
                        let is_exhausted = self.traffic.is_exhausted() && !self.held.is_stalled();
                        // Without budget the socket may have more input: tokio stopped this task, not the client.
                        if !self.received.is_empty() || is_exhausted || !has_budget_remaining() {
                            self.wait_for_turn(&turn, cx);
                        }
                        return Poll::Pending;
                    }
                    true
                }
            };
            if must_end {
                // The requests that wait get no reply.
                for (request, _) in self.received.drain(..) {
                    self.router.counters().cancelled(self.router.start_of(&request));
                }
                self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                self.has_ended = true;
            }
        }
    }

    /// Asks for the turn after `last`. The turn wakes the task.
    fn wait_for_turn(&mut self, last: &SmallCalls, cx: &mut Context<'_>) {
        let mut turn = self.router.turns().next_after(last);
        // The turn comes in a later pass, so this only leaves the waker.
        let _ = Pin::new(&mut turn).poll(cx);
        self.yielded = Some(turn);
    }
}

/// Replies to requests in order, until `work` has reached `most`. `waited`: the time now, if some of the requests have
/// waited for a turn. Returns the number of calls that the client has cancelled already.
fn reply_to_some(
    received: &mut VecDeque<Received>,
    router: &ConnectionRouter,
    in_flight: &Arc<()>,
    waited: Option<Instant>,
    most: usize,
    work: &mut usize,
) -> u32 {
    let mut cancelled = 0;
    while *work < most
        && let Some((request, stream)) = received.pop_front()
    {
        if reply_to(router, in_flight, request, stream, waited, work) == Outcome::Cancelled {
            cancelled += 1;
        }
    }
    cancelled
}

/// The outcome of a call.
#[derive(PartialEq, Eq)]
enum Outcome {
    /// The call has its reply, or gets it later.
    Served,
    /// The client has cancelled the call before the server looked at it.
    Cancelled,
}

/// Replies to a request, in a task of its own if the call has to wait. Adds the work that was done to `work`.
fn reply_to(
    router: &ConnectionRouter,
    in_flight: &Arc<()>,
    request: Accepted,
    mut stream: SendResponse<Bytes>,
    waited: Option<Instant>,
    work: &mut usize,
) -> Outcome {
    let start = router.start_of(&request);
    let call = router.call(request, waited, work);
    if let Call::Done(Reply::Message(message)) = call {
        match send_message(&mut stream, message, router, in_flight) {
            Ok(()) => router.counters().replied(start, Code::Ok),
            Err(error) => {
                router.counters().cancelled(start);
                log_failure(&error);
            }
        }
        return Outcome::Served;
    }
    // A cancelled call never takes the fast path, and its handler has not begun.
    if stream.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready() {
        router.counters().cancelled(start);
        return Outcome::Cancelled;
    }
    let (reply, deadline): (PendingReply, _) = match call {
        Call::Done(reply) => (Box::pin(std::future::ready(reply)), None),
        Call::Pending { reply, deadline } => (reply, deadline),
    };
    let open = OpenCall::new(router.counters(), start);
    let in_flight = (!router.is_passive(start)).then(|| Arc::clone(in_flight));
    let (path, time_to_send) = (router.path_of(start), router.deadline());
    poll_or_spawn(async move {
        reply_later(path, reply, stream, deadline, time_to_send, open).await;
        drop(in_flight);
    });
    Outcome::Served
}

/// Waits for a reply and sends it, both up to the client's deadline. If the client has no deadline, a unary reply waits
/// for the client's window for `time_to_send`. Counts the call.
async fn reply_later(
    path: &str,
    mut reply: PendingReply,
    mut stream: SendResponse<Bytes>,
    deadline: Option<Instant>,
    time_to_send: Duration,
    mut open: OpenCall,
) {
    let replied = poll_fn(|cx| match catch(path, || reply.as_mut().poll(cx)) {
        Ok(Poll::Ready(reply)) => Poll::Ready(Some(reply)),
        // A client that cancels its call gets no reply.
        Ok(Poll::Pending) => stream.poll_reset(cx).map(|_| None),
        Err(panicked) => Poll::Ready(Some(Err(panicked).into())),
    });
    let replied = before(deadline, replied).await;
    drop(reply);
    open.reply_is_ready();
    let sent = match replied.unwrap_or_else(|late| Some(Err(late).into())) {
        Some(Reply::Message(message)) => {
            let deadline = deadline.or_else(|| Instant::now().checked_add(time_to_send));
            send_message_later(&mut stream, message, deadline).await
        }
        Some(Reply::Response(response)) => send(path, &mut stream, *response, deadline).await,
        None => return,
    };
    match sent {
        Ok(code) => open.end(code),
        Err(error) => log_failure(&error),
    }
}

/// Waits for a part of a call up to the client's deadline, if there is one.
async fn before<T>(deadline: Option<Instant>, part: impl Future<Output = T>) -> Result<T, Status> {
    match deadline {
        Some(deadline) => timeout_at(deadline, part).await.map_err(|_| late()),
        None => Ok(part.await),
    }
}

/// Logs a reply that was not sent, which is common: the client has cancelled the call, or the connection is gone.
fn log_failure(error: &h2::Error) {
    debug!(%error, "an answer was not sent");
}

/// Polls a future, and spawns a task for it if it has to wait. The task polls the future again, so the first poll needs
/// no waker.
fn poll_or_spawn(replying: impl Future<Output = ()> + Send + 'static) {
    let mut replying: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(replying);
    if replying
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_pending()
    {
        tokio::spawn(OfPeer::of_current(replying));
    }
}

/// Sends the one message of a successful call.
///
/// If the client's window has no room for the message, a task waits for room, and the call stays in flight. Otherwise
/// h2 would keep any number of such messages, and their streams, for a client that opens no window. The task does not
/// wait for long: the client's deadline is unknown by now, so the server's own deadline ends the call.
fn send_message(
    stream: &mut SendResponse<Bytes>,
    message: Bytes,
    router: &ConnectionRouter,
    in_flight: &Arc<()>,
) -> Result<(), h2::Error> {
    let mut stream = stream.send_response(frame::head(), false)?;
    let needed = message.len().min(SMALL_REPLY_SIZE);
    stream.reserve_capacity(needed);
    if stream.capacity() < needed {
        let in_flight = Arc::clone(in_flight);
        let deadline = Instant::now().checked_add(router.deadline());
        tokio::spawn(OfPeer::of_current(Box::pin(async move {
            if let Err(error) = send_up_to(&mut stream, message, deadline).await {
                log_failure(&error);
            }
            drop(in_flight);
        })));
        return Ok(());
    }
    stream.send_data(message, false)?;
    stream.send_trailers(frame::trailers())
}

/// [`send_message`] from a task, up to the client's deadline. Returns the status code that was sent.
async fn send_message_later(
    stream: &mut SendResponse<Bytes>,
    message: Bytes,
    deadline: Option<Instant>,
) -> Result<Code, h2::Error> {
    let mut stream = stream.send_response(frame::head(), false)?;
    send_up_to(&mut stream, message, deadline).await
}

/// Sends a message and the trailers, or at the deadline only trailers. Returns the status code that was sent.
async fn send_up_to(
    stream: &mut SendStream<Bytes>,
    message: Bytes,
    deadline: Option<Instant>,
) -> Result<Code, h2::Error> {
    match before(deadline, send_in_window(stream, message)).await {
        Ok(sent) => sent.map(|()| Code::Ok),
        Err(late) => end_with(stream, &late),
    }
}

/// Sends a message and the trailers. Sends a small message only as far as the client's window is open. Sends a large
/// message when the window is open: the send budget is charged until the client has read the message.
async fn send_in_window(stream: &mut SendStream<Bytes>, mut message: Bytes) -> Result<(), h2::Error> {
    let is_small = message.len() <= SMALL_REPLY_SIZE;
    while !message.is_empty() {
        let room = window(stream, message.len().min(SMALL_REPLY_SIZE)).await?;
        let part = match is_small {
            true => message.split_to(room.min(message.len())),
            false => std::mem::take(&mut message),
        };
        stream.send_data(part, false)?;
    }
    stream.send_trailers(frame::trailers())
}

/// Sends a response and its whole body, up to the client's deadline. Returns the status code that was sent.
async fn send(
    path: &str,
    stream: &mut SendResponse<Bytes>,
    response: Response<Body>,
    deadline: Option<Instant>,
) -> Result<Code, h2::Error> {
    let (head, body) = response.into_parts();
    let code = code_in(&head.headers);
    let mut stream = stream.send_response(Response::from_parts(head, ()), body.is_end_stream())?;
    match before(deadline, send_body(path, &mut stream, body)).await {
        Ok(sent) => sent.map(|trailing| trailing.unwrap_or(code)),
        Err(late) => end_with(&mut stream, &late),
    }
}

/// Sends a body. Returns the status code in its trailers, if it has trailers.
async fn send_body(path: &str, stream: &mut SendStream<Bytes>, mut body: Body) -> Result<Option<Code>, h2::Error> {
    let unsent = Arc::new(Semaphore::new(MAX_UNSENT_FRAMES));
    while !body.is_end_stream() {
        let frame = poll_fn(|cx| match catch(path, || Pin::new(&mut body).poll_frame(cx)) {
            Ok(Poll::Ready(frame)) => Poll::Ready(Ok(Ok(frame))),
            Ok(Poll::Pending) => reset(stream, cx),
            Err(panicked) => Poll::Ready(Ok(Err(panicked))),
        });
        match frame.await? {
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => send_data(stream, data, body.is_end_stream(), &unsent).await?,
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        let code = code_in(&trailers);
                        return stream.send_trailers(trailers).map(|()| Some(code));
                    }
                }
            },
            Ok(Some(Err(status))) => {
                debug!(%status, "an answer broke off");
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Ok(Some(Code::Internal));
            }
            Ok(None) => return stream.send_data(Bytes::new(), true).map(|()| None),
            Err(panicked) => return end_with(stream, &panicked).map(Some),
        }
    }
    Ok(None)
}

/// Ends a stream with a status. Returns the status's code.
fn end_with(stream: &mut SendStream<Bytes>, status: &Status) -> Result<Code, h2::Error> {
    let mut trailers = HeaderMap::new();
    // An error: the message is not fit for a header. Ours are.
    let _ = status.add_header(&mut trailers);
    stream.send_trailers(trailers).map(|()| status.code())
}

/// Sends a frame once the client has read enough of the earlier frames, and h2 has written all but a few of them.
///
/// Flow control bounds the bytes that wait in h2, but not the frames. A client that opens its windows and does not read
/// could make h2 keep thousands of tiny frames for each stream. `unsent` has a permit for each frame that h2 may keep.
async fn send_data(
    stream: &mut SendStream<Bytes>,
    data: Bytes,
    ends: bool,
    unsent: &Arc<Semaphore>,
) -> Result<(), h2::Error> {
    if data.is_empty() {
        return stream.send_data(data, ends);
    }
    let mut written = pin!(Arc::clone(unsent).acquire_owned());
    let permit = poll_fn(|cx| match written.as_mut().poll(cx) {
        Poll::Ready(permit) => Poll::Ready(Ok(permit.ok())),
        Poll::Pending => reset(stream, cx),
    });
    let permit = permit.await?;
    // One byte shows whether the window is open. A larger claim would take that much of the connection's window from
    // other streams while this stream waits.
    window(stream, 1).await?;
    let frame = Bytes::from_owner(UnsentFrame { data, _permit: permit });
    stream.send_data(frame, ends)
}

/// The bytes of a frame. h2 drops the bytes when it has written them.
struct UnsentFrame {
    data: Bytes,
    /// `None` only if the semaphore were closed.
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for UnsentFrame {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// Claims up to `bytes` of the client's window, and waits until the window is open. Returns the bytes that may be sent.
async fn window(stream: &mut SendStream<Bytes>, bytes: usize) -> Result<usize, h2::Error> {
    stream.reserve_capacity(bytes);
    poll_fn(|cx| {
        loop {
            if stream.capacity() > 0 {
                return Poll::Ready(Ok(stream.capacity()));
            }
            match stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(0))) | Poll::Pending => {
                    return reset(stream, cx);
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Err(Reason::CANCEL.into())),
            }
        }
    })
    .await
}

/// Waits until the client cancels the call, which is an error.
fn reset<T>(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<T, h2::Error>> {
    stream.poll_reset(cx).map(|reason| Err(reason?.into()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::time::sleep;

    use super::*;
    use crate::grpc::handler::Handler;
    use crate::http2::connection::tests::frame;
    use crate::http2::served::Served;
    use crate::limits::{CONTROL_FRAMES, MAX_CONCURRENT_STREAMS};

    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    const ACK: u8 = 1;

    /// Serves a connection whose calls wait.
    async fn served() -> Served<DuplexStream> {
        let handler = Handler::Streaming(Arc::new(|_, _, _| Box::pin(std::future::pending())));
        Served::plaintext(1024 * 1024, handler, 1 << 30).await
    }

    impl Served<DuplexStream> {
        /// Begins calls whose requests do not end.
        async fn open(&mut self, calls: u32) {
            let head = b"\x83\x86\x04\x0e/Counting/Call\x0f\x10\x10application/grpc";
            let heads = (1..).step_by(2).take(calls as usize);
            let heads: Vec<_> = heads
                .flat_map(|stream| frame(HEADERS, END_HEADERS, stream, head))
                .collect();
            self.send(&heads).await;
        }
    }

    /// Begins a call without the end of its request, and waits for the whole reply.
    async fn call_without_end(served: &mut Served<DuplexStream>, stream: u32) {
        let head = b"\x83\x86\x04\x0e/Counting/Call\x0f\x10\x10application/grpc";
        let request = frame(HEADERS, END_HEADERS, stream, head);
        served.client.write_all(&request).await.unwrap();
        loop {
            let mut head = [0; 9];
            served
                .client
                .read_exact(&mut head)
                .await
                .expect("the connection is open");
            let [l1, l2, l3, kind, flags, of @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, l1, l2, l3]) as usize];
            served
                .client
                .read_exact(&mut payload)
                .await
                .expect("the connection is open");
            if (kind, flags & END_STREAM, u32::from_be_bytes(of)) == (HEADERS, END_STREAM, stream) {
                return;
            }
        }
    }

    /// A client may send messages until it sees that the server has ended the stream.
    #[tokio::test]
    async fn many_late_messages_do_not_end_the_connection() {
        const LATE: usize = 100;
        let handler = Handler::Streaming(Arc::new(|_, _, _| Box::pin(async { Response::new(Body::empty()) })));
        let mut served = Served::plaintext(1024 * 1024, handler, 1 << 30).await;
        for stream in (1..).step_by(2).take(10) {
            call_without_end(&mut served, stream).await;
            let late = frame(DATA, 0, stream, &[0; 5]).repeat(LATE);
            served.client.write_all(&late).await.unwrap();
        }
        call_without_end(&mut served, 101).await;
        assert_eq!(served.refused(), []);
    }

    /// Returns the errors of the GOAWAY frames that a server has sent, and the number of its acknowledgements of
    /// SETTINGS.
    fn parse(mut sent: &[u8]) -> (Vec<u8>, usize) {
        let (mut errors, mut acknowledged) = (Vec::new(), 0);
        while let [l1, l2, l3, kind, flags, _, _, _, _, rest @ ..] = sent {
            let (payload, rest) = rest.split_at(u32::from_be_bytes([0, *l1, *l2, *l3]) as usize);
            sent = rest;
            match *kind {
                GOAWAY => errors.push(payload[7]),
                SETTINGS => acknowledged += usize::from(flags & ACK != 0),
                _ => {}
            }
        }
        (errors, acknowledged)
    }

    /// A change of INITIAL_WINDOW_SIZE.
    fn settings(window: u32) -> Vec<u8> {
        frame(SETTINGS, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat())
    }

    #[tokio::test]
    async fn a_frame_that_makes_h2_visit_every_stream_has_its_price() {
        const FRAMES: u32 = CONTROL_FRAMES - 1;
        for streams in [0, MAX_CONCURRENT_STREAMS] {
            let mut served = served().await;
            served.open(streams).await;
            let before = served.worker.spent();
            let frames: Vec<_> = (0..FRAMES).flat_map(settings).collect();
            served.send(&frames).await;
            let work = frames.len() / INPUT_PER_WORK + (FRAMES * streams) as usize / STREAMS_PER_WORK;
            let spent = served.worker.spent() - before;
            assert!((work - 20..=work + 20).contains(&spent), "{spent} of {work}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_frames_that_visit_every_stream_ends_its_connection() {
        for flood in [settings(0), frame(SETTINGS, 0, 0, &[]), frame(GOAWAY, 0, 0, &[0; 8])] {
            let mut served = served().await;
            // Without a call, a client that says goodbye loses its connection.
            served.open(1).await;
            // The first frame of the connection counts, too.
            served.send(&flood.repeat(CONTROL_FRAMES as usize - 1)).await;
            assert!(!served.task.is_finished());
            served.send(&flood.repeat(10)).await;
            assert!(served.task.is_finished());
            assert_eq!(served.refused(), [(refusal::Reason::FrameFlood, 1)]);
            let mut sent = Vec::new();
            served.client.read_to_end(&mut sent).await.unwrap();
            let (errors, acknowledged) = parse(&sent);
            // ENHANCE_YOUR_CALM.
            assert_eq!(errors, [11]);
            assert!(acknowledged <= CONTROL_FRAMES as usize, "{acknowledged}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_change_its_window_each_second() {
        let mut served = served().await;
        for second in 0..200 {
            served.client.write_all(&settings(second)).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
        assert!(!served.task.is_finished());
        assert_eq!(served.refused(), []);
    }
}
