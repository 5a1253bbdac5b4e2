//! The calls of one connection: what comes in is collected, then answered.
//!
//! HTTP/2 hands requests over one by one. They are answered only once everything that came in has been taken apart: by
//! then the message of a small request is there too, and the answers to all of them leave in one write. (Answering each
//! request at once would write each answer by itself, which costs more than all else.) Only when they are many bytes, some
//! are left for later, so that the thread's other connections have their turn. A call that has to wait, for the rest of its
//! request or for what it answers with, becomes a task of its own.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::coop::has_budget_remaining;
use tonic::body::Body;
use tracing::debug;

use crate::grpc::frame;
use crate::grpc::router::{Call, Reply, Router};
use crate::http2::muted_waker::Outside;
use crate::http2::yield_turn::Rest;
use crate::limits::{MAX_FRAME_SIZE, MAX_TURN};

/// A request, and where its answer goes.
type Begun = (Request<RecvStream>, SendResponse<Bytes>);

/// A connection, and the requests that it has handed over.
pub(super) struct Calls<S> {
    pub(super) connection: Connection<S, Bytes>,
    router: Router,
    begun: VecDeque<Begun>,
    /// Set when there is more to be done.
    rest: Option<Arc<Rest>>,
    /// What HTTP/2 wakes.
    outside: Option<Outside>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Calls<S> {
    pub(super) fn new(connection: Connection<S, Bytes>, router: Router) -> Self {
        Self {
            connection,
            router,
            begun: VecDeque::new(),
            rest: None,
            outside: None,
        }
    }

    /// Serves the connection until it is closed.
    pub(super) fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        if self.rest.as_ref().is_some_and(|rest| !rest.is_over()) {
            return Poll::Pending;
        }
        self.rest = None;
        let outside = match self.outside.take() {
            Some(outside) if outside.wakes(cx) => outside,
            _ => Outside::new(cx.waker().clone()),
        };
        let outside = self.outside.insert(outside);
        let mut answered = 0;
        loop {
            match self.connection.poll_accept(&mut Context::from_waker(outside.waker())) {
                Poll::Ready(Some(request)) => self.begun.push_back(request?),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                // And then come back to write the answers.
                Poll::Pending if answered < MAX_TURN && !self.begun.is_empty() => {
                    let most = MAX_TURN - answered;
                    answered += outside.ignoring(|| answer_some(&mut self.begun, &self.router, most));
                }
                Poll::Pending => {
                    // It may be tokio that lets this task read no more in its turn.
                    if !self.begun.is_empty() || !has_budget_remaining() {
                        self.rest = Some(Rest::begin(cx));
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Answers what has begun, or so many bytes of it; returns how many they were.
fn answer_some(begun: &mut VecDeque<Begun>, router: &Router, most: usize) -> usize {
    let mut size = 0;
    while size < most
        && let Some((request, reply)) = begun.pop_front()
    {
        answer(router, request, reply, &mut size);
    }
    size
}

/// Answers a request, or lets a task do it. Adds the bytes that this is about to `size`.
fn answer(router: &Router, request: Request<RecvStream>, mut reply: SendResponse<Bytes>, size: &mut usize) {
    match router.call(request, size) {
        Call::Done(Reply::Message(message)) => {
            *size += message.len();
            told(send_message(&mut reply, message));
        }
        Call::Done(Reply::Response(response)) => poll_or_spawn(async move {
            told(send(&mut reply, *response).await);
        }),
        Call::Pending(mut call) => {
            // It is not known how many they are. Small calls do not come here.
            *size += MAX_FRAME_SIZE as usize;
            poll_or_spawn(async move {
                let answer = poll_fn(|cx| match call.as_mut().poll(cx) {
                    Poll::Ready(answer) => Poll::Ready(Some(answer)),
                    // A client that takes its request back gets no answer.
                    Poll::Pending => reply.poll_reset(cx).map(|_| None),
                });
                match answer.await {
                    Some(Reply::Message(message)) => told(send_message(&mut reply, message)),
                    Some(Reply::Response(response)) => told(send(&mut reply, *response).await),
                    None => {}
                }
            });
        }
    }
}

/// A call that its client has taken back, or whose connection is gone, is nothing to worry about.
fn told(sent: Result<(), h2::Error>) {
    if let Err(error) = sent {
        debug!(%error, "an answer was not sent");
    }
}

/// Polls a future, and makes it a task if it has to wait. The task polls it anew, so the waker that it sees here is never
/// needed.
fn poll_or_spawn(answering: impl Future<Output = ()> + Send + 'static) {
    let mut answering: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(answering);
    if answering
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_pending()
    {
        tokio::spawn(answering);
    }
}

/// Sends the one message of a call that went well.
fn send_message(reply: &mut SendResponse<Bytes>, message: Bytes) -> Result<(), h2::Error> {
    let mut stream = reply.send_response(frame::head(), false)?;
    stream.send_data(message, false)?;
    stream.send_trailers(frame::trailers())
}

/// Sends a response, however long its body takes.
async fn send(reply: &mut SendResponse<Bytes>, response: Response<Body>) -> Result<(), h2::Error> {
    let (head, mut body) = response.into_parts();
    let mut stream = reply.send_response(Response::from_parts(head, ()), body.is_end_stream())?;
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

/// Sends a frame once the client has read enough of what was sent before.
async fn send_data(stream: &mut SendStream<Bytes>, data: Bytes, ends: bool) -> Result<(), h2::Error> {
    if !data.is_empty() {
        // As little as shows that there is room: a larger claim would keep that much of the connection's window from the
        // other streams for as long as this one waits.
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

/// Waits for the client to take its request back, which is an error.
fn reset<T>(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<T, h2::Error>> {
    stream.poll_reset(cx).map(|reason| Err(reason?.into()))
}
