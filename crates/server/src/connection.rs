//! One client's connection, from the accepted socket to the last answer.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::limits::{self, Limits};
use crate::router::Router;

/// What HTTP/2 clients send before anything else: 24 fixed bytes and the header of a SETTINGS frame.
const PREFACE: usize = 24 + 9;

/// What every connection needs.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) router: Router,
    pub(crate) tls: Option<Arc<ServerConfig>>,
    pub(crate) limits: Limits,
    /// Becomes `true` once the server is told to stop.
    pub(crate) draining: watch::Receiver<bool>,
}

/// Serves the connection until the client leaves, breaks the protocol, or the server drains.
///
/// `number` tells connections apart, so that those that were opened together do not grow too old together.
pub(crate) async fn serve(stream: std::net::TcpStream, mut serving: Serving, number: u64) {
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => return debug!(%error, "a connection was lost before it was served"),
    };
    let Some(tls) = serving.tls.take() else {
        return http2(stream, serving, number).await;
    };
    let mut draining = serving.draining.clone();
    let handshake = timeout(serving.limits.handshake, TlsAcceptor::from(tls).accept(stream));
    tokio::select! {
        accepted = handshake => match accepted {
            Ok(Ok(stream)) => http2(stream, serving, number).await,
            Ok(Err(error)) => debug!(%error, "a TLS handshake failed"),
            Err(_) => debug!("a TLS handshake took too long"),
        },
        _ = draining.wait_for(|&draining| draining) => {}
    }
}

async fn http2<S: AsyncRead + AsyncWrite + Unpin + 'static>(stream: S, serving: Serving, number: u64) {
    let Serving {
        router,
        limits,
        mut draining,
        ..
    } = serving;
    let read = Rc::new(Cell::new(0));
    let stream = Counted {
        stream,
        read: Rc::clone(&read),
    };
    let calls = Calls::default();
    let leaving = CancellationToken::new();
    let router = router.for_connection(leaving.clone());
    let mut connection = WithCalls {
        connection: pin!(builder(calls.clone()).serve_connection(TokioIo::new(stream), router)),
        calls,
    };

    let opened = Instant::now();
    let mut stage = Stage::Preface;
    let mut due = pin!(sleep_until(opened + limits.handshake));
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            result = &mut connection => {
                if let Err(error) = result {
                    debug!(%error, "a connection ended with an error");
                }
                return;
            }
            // The server has its own deadline, and cuts what is left then.
            _ = draining.wait_for(|&draining| draining), if !stopping => {
                if read.get() < PREFACE {
                    return;
                }
                stopping = true;
                connection.connection.as_mut().graceful_shutdown();
                leaving.cancel();
            }
            () = due.as_mut(), if !stopping => match stage {
                Stage::Preface => {
                    if read.get() < PREFACE {
                        return debug!("a client did not send HTTP/2's preface in time");
                    }
                    stage = Stage::Serving;
                    // Up to an eighth less, spread evenly.
                    let age = limits.max_connection_age - limits.max_connection_age / 64 * (number % 8) as u32;
                    due.as_mut().reset(opened + age);
                }
                Stage::Serving => {
                    stage = Stage::Leaving;
                    connection.connection.as_mut().graceful_shutdown();
                    leaving.cancel();
                    due.as_mut().reset(Instant::now() + limits.drain);
                }
                Stage::Leaving => return debug!("an old connection was cut with calls in flight"),
            },
        }
    }
}

/// What a connection's one timer waits for.
enum Stage {
    /// The client's preface must be there.
    Preface,
    /// The connection is old enough to be asked to leave.
    Serving,
    /// Its calls have had their time to finish.
    Leaving,
}

/// HTTP/2 with every limit set.
fn builder(calls: Calls) -> http2::Builder<Calls> {
    let mut builder = http2::Builder::new(calls);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::MAX_CONCURRENT_STREAMS)
        .max_header_list_size(limits::MAX_HEADER_LIST_SIZE)
        .max_local_error_reset_streams(limits::MAX_LOCAL_ERROR_RESETS)
        .max_pending_accept_reset_streams(limits::MAX_PENDING_ACCEPT_RESETS)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_frame_size(limits::MAX_FRAME_SIZE)
        .max_send_buf_size(limits::MAX_SEND_BUFFER)
        .keep_alive_interval(limits::KEEPALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT)
        // gRPC clients have no use for a date.
        .auto_date_header(false);
    builder
}

/// Calls that a connection has begun and not polled yet.
///
/// A small request is there as a whole when its call begins, so the call never waits, and a task of its own would only be
/// scheduled to end at once. Instead, once everything that came in has been taken apart, the connection's own task polls
/// the calls one after the other, and then writes all answers together. (Polling each call as it begins would write each
/// answer by itself, which costs more than the tasks do.) What does have to wait becomes a task; that polls it anew, so the
/// waker that it saw here is never needed.
#[derive(Clone, Default)]
struct Calls(Rc<RefCell<Vec<BoxedCall>>>);

type BoxedCall = Pin<Box<dyn Future<Output = ()>>>;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Calls {
    fn execute(&self, call: F) {
        self.0.borrow_mut().push(Box::pin(call));
    }
}

impl Calls {
    /// Polls every call that has begun; tells whether there were any.
    fn poll_all(&self) -> bool {
        let mut calls = self.0.take();
        let any = !calls.is_empty();
        for mut call in calls.drain(..) {
            if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                tokio::task::spawn_local(call);
            }
        }
        // Keep the memory, unless a call began another one.
        let mut kept = self.0.borrow_mut();
        if kept.is_empty() {
            *kept = calls;
        }
        any
    }
}

/// A connection with its calls.
struct WithCalls<C> {
    connection: C,
    calls: Calls,
}

impl<C: Future + Unpin> Future for WithCalls<C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        loop {
            let polled = Pin::new(&mut self.connection).poll(cx);
            if polled.is_ready() || !self.calls.poll_all() {
                return polled;
            }
        }
    }
}

/// A stream that counts the bytes that came in, as far as the preface.
struct Counted<S> {
    stream: S,
    read: Rc<Cell<usize>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = self.read.get();
        if read < PREFACE {
            self.read.set(read + (buf.filled().len() - before));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
