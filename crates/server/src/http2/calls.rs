//! The calls of one connection: requests are collected first, and replied to together.
//!
//! h2 hands over requests one by one. The server replies only after h2 has parsed all the input. By then the messages of
//! small requests have arrived, and all replies leave in one write. (A write for each reply would cost more than the rest of
//! the call.) If there are many requests, some wait for the connection's next [turn](crate::turns). A call that has to wait,
//! for its request or for its handler, becomes a task of its own.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, SendStream};
use http::Response;
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::task::coop::has_budget_remaining;
use tonic::body::Body;
use tracing::debug;

use crate::grpc::frame;
use crate::grpc::router::{Accepted, Call, ConnectionRouter, Reply};
use crate::http2::muted_waker::MutedWaker;

/// A request, and the stream for its reply.
type Received = (Accepted, SendResponse<Bytes>);

/// A connection, and the requests that wait for their reply.
pub(super) struct Calls<S> {
    pub(super) connection: Connection<S, Bytes>,
    router: ConnectionRouter,
    received: VecDeque<Received>,
    /// Set while other connections have their turn. Ends with the connection's next turn.
    yielded: Option<oneshot::Receiver<()>>,
    /// The waker that h2 gets.
    waker: Option<MutedWaker>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Calls<S> {
    pub(super) fn new(connection: Connection<S, Bytes>, router: ConnectionRouter) -> Self {
        Self {
            connection,
            router,
            received: VecDeque::new(),
            yielded: None,
            waker: None,
        }
    }

    /// Serves the connection until it is closed.
    pub(super) fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        if let Some(turn) = &mut self.yielded {
            // An error means that the runtime stops.
            let _ = ready!(Pin::new(turn).poll(cx));
            self.yielded = None;
        }
        let waker = match self.waker.take() {
            Some(waker) if waker.will_wake(cx) => waker,
            _ => MutedWaker::new(cx.waker().clone()),
        };
        let waker = self.waker.insert(waker);
        let most = self.router.turns().turn_work();
        let mut work = 0;
        loop {
            match self.connection.poll_accept(&mut Context::from_waker(waker.waker())) {
                Poll::Ready(Some(request)) => {
                    let (request, stream) = request?;
                    self.received.push_back((self.router.accept(request), stream));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                // The next poll of the connection writes the replies.
                Poll::Pending if work < most && !self.received.is_empty() => {
                    waker.mute(|| reply_to_some(&mut self.received, &self.router, most, &mut work));
                }
                Poll::Pending => {
                    // Without budget the socket may have more input: tokio stopped this task, not the client.
                    if !self.received.is_empty() || !has_budget_remaining() {
                        let mut turn = self.router.turns().next(most);
                        // The turn comes in a later pass, so this only leaves the waker.
                        let _ = Pin::new(&mut turn).poll(cx);
                        self.yielded = Some(turn);
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Replies to requests in order, until `work` has reached `most`.
fn reply_to_some(received: &mut VecDeque<Received>, router: &ConnectionRouter, most: usize, work: &mut usize) {
    while *work < most
        && let Some((request, stream)) = received.pop_front()
    {
        reply_to(router, request, stream, work);
    }
}

/// Replies to a request, in a task of its own if the call has to wait. Adds the work that was done to `work`.
fn reply_to(router: &ConnectionRouter, request: Accepted, mut stream: SendResponse<Bytes>, work: &mut usize) {
    match router.call(request, work) {
        Call::Done(Reply::Message(message)) => log_failure(send_message(&mut stream, message)),
        Call::Done(Reply::Response(response)) => poll_or_spawn(async move {
            log_failure(send(&mut stream, *response).await);
        }),
        Call::Pending(mut call) => poll_or_spawn(async move {
            let reply = poll_fn(|cx| match call.as_mut().poll(cx) {
                Poll::Ready(reply) => Poll::Ready(Some(reply)),
                // A client that cancels its call gets no reply.
                Poll::Pending => stream.poll_reset(cx).map(|_| None),
            });
            match reply.await {
                Some(Reply::Message(message)) => log_failure(send_message(&mut stream, message)),
                Some(Reply::Response(response)) => log_failure(send(&mut stream, *response).await),
                None => {}
            }
        }),
    }
}

/// Logs a reply that was not sent, which is common: the client has cancelled the call, or the connection is gone.
fn log_failure(sent: Result<(), h2::Error>) {
    if let Err(error) = sent {
        debug!(%error, "an answer was not sent");
    }
}

/// Polls a future, and spawns a task for it if it has to wait. The task polls the future again, so the first poll needs no
/// waker.
fn poll_or_spawn(replying: impl Future<Output = ()> + Send + 'static) {
    let mut replying: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(replying);
    if replying
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_pending()
    {
        tokio::spawn(replying);
    }
}

/// Sends the one message of a successful call.
fn send_message(stream: &mut SendResponse<Bytes>, message: Bytes) -> Result<(), h2::Error> {
    let mut stream = stream.send_response(frame::head(), false)?;
    stream.send_data(message, false)?;
    stream.send_trailers(frame::trailers())
}

/// Sends a response and its whole body.
async fn send(stream: &mut SendResponse<Bytes>, response: Response<Body>) -> Result<(), h2::Error> {
    let (head, mut body) = response.into_parts();
    let mut stream = stream.send_response(Response::from_parts(head, ()), body.is_end_stream())?;
    while !body.is_end_stream() {
        let frame = poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => reset(&mut stream, cx),
        });
        match frame.await? {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => send_data(&mut stream, data, body.is_end_stream()).await?,
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return stream.send_trailers(trailers);
                    }
                }
            },
            Some(Err(status)) => {
                debug!(%status, "an answer broke off");
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
            None => return stream.send_data(Bytes::new(), true),
        }
    }
    Ok(())
}

/// Sends a frame once the client has read enough of the earlier frames.
async fn send_data(stream: &mut SendStream<Bytes>, data: Bytes, ends: bool) -> Result<(), h2::Error> {
    if !data.is_empty() {
        // One byte shows whether the window is open. A larger claim would take that much of the connection's window from
        // other streams while this stream waits.
        stream.reserve_capacity(1);
        poll_fn(|cx| {
            if stream.capacity() > 0 {
                return Poll::Ready(Ok(()));
            }
            match stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(0))) | Poll::Pending => reset(stream, cx),
                Poll::Ready(Some(capacity)) => Poll::Ready(capacity.map(drop)),
                Poll::Ready(None) => Poll::Ready(Err(Reason::CANCEL.into())),
            }
        })
        .await?;
    }
    stream.send_data(data, ends)
}

/// Waits until the client cancels the call, which is an error.
fn reset<T>(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<T, h2::Error>> {
    stream.poll_reset(cx).map(|reason| Err(reason?.into()))
}
