//! A tunnel over any connection of bytes, by [yamux](https://github.com/hashicorp/yamux/blob/master/spec.md).
//!
//! yamux has no keep-alive of its own. The pings of the control stream, or those of a dialer to its peers, notice a
//! connection that is half open. The tunnel notes when bytes come, because a ping and its answer may wait behind other
//! bytes.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use yamux::{Config, Connection, Mode};

use crate::transport::received::{LastReceived, NotesReceived};
use crate::transport::slots::{Slot, Slots};
use crate::transport::{ByteStream, Tunnel, TunnelStream};

/// The most streams that are open on one tunnel at a time, opened by either side. A peer's further streams are reset.
/// yamux lets 256 streams wait for the peer's acknowledgement. Streams that this side has dropped count until the
/// connection takes their reset.
pub const MAX_STREAMS: usize = 255;

/// The longest time to open a stream. A tunnel whose connection takes no bytes may open no stream for this long.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Beyond this many streams, yamux answers a new stream with a GoAway. The limit is twice as high, because the peer may
/// still count streams that this side has closed.
const MAX_YAMUX_STREAMS: usize = 2 * (MAX_STREAMS + 1);

/// The receive windows of a tunnel may grow by this many bytes in all, beyond yamux's 256 KiB for each stream.
const WINDOW_GROWTH: usize = 16 << 20;

/// The longest time to write what is left when a tunnel is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A [`Tunnel`] over one connection. It has a tokio task, which ends with the tunnel.
///
/// A stream buffers up to 256 KiB of unread bytes, and more on a fast connection, at most 16 MiB for all streams
/// together. A connection also holds one frame that it receives, of up to 1 MiB.
pub struct MuxTunnel {
    requests: mpsc::Sender<Request>,
    inbound: Mutex<mpsc::Receiver<MuxStream>>,
    slots: Arc<Slots>,
    last_received: Arc<LastReceived>,
    peer_certificates: Vec<CertificateDer<'static>>,
}

/// A request to the task for a stream.
struct Request {
    slot: Slot,
    reply: oneshot::Sender<io::Result<MuxStream>>,
}

impl MuxTunnel {
    /// Creates the tunnel of the side that has dialled. Needs a tokio runtime.
    #[must_use]
    pub fn client(connection: impl ByteStream + 'static, peer_certificates: Vec<CertificateDer<'static>>) -> Self {
        Self::new(connection, Mode::Client, peer_certificates)
    }

    /// Creates the tunnel of the side that has accepted. Needs a tokio runtime.
    #[must_use]
    pub fn server(connection: impl ByteStream + 'static, peer_certificates: Vec<CertificateDer<'static>>) -> Self {
        Self::new(connection, Mode::Server, peer_certificates)
    }

    fn new(connection: impl ByteStream + 'static, mode: Mode, peer_certificates: Vec<CertificateDer<'static>>) -> Self {
        let mut config = Config::default();
        let windows = MAX_YAMUX_STREAMS * yamux::DEFAULT_CREDIT as usize;
        config
            .set_max_num_streams(MAX_YAMUX_STREAMS)
            .set_max_connection_receive_window(Some(windows + WINDOW_GROWTH));
        let (requests, request_receiver) = mpsc::channel(1);
        let (inbound_sender, inbound) = mpsc::channel(MAX_STREAMS);
        let slots = Arc::new(Slots::new(MAX_STREAMS));
        let streams = Streams {
            slots: Arc::clone(&slots),
            ended: CancellationToken::new(),
        };
        let last_received = LastReceived::new();
        let connection = NotesReceived::new(connection, Arc::clone(&last_received));
        tokio::spawn(drive(
            Connection::new(connection.compat(), config, mode),
            request_receiver,
            inbound_sender,
            streams,
        ));
        Self {
            requests,
            inbound: Mutex::new(inbound),
            slots,
            last_received,
            peer_certificates,
        }
    }
}

#[async_trait]
impl Tunnel for MuxTunnel {
    async fn open_leaving(&self, spare: usize) -> io::Result<TunnelStream> {
        let full = || {
            io::Error::new(
                io::ErrorKind::QuotaExceeded,
                format!("the tunnel has {MAX_STREAMS} streams"),
            )
        };
        let slot = self.slots.try_take(spare).ok_or_else(full)?;
        let open = async {
            let (reply, answer) = oneshot::channel();
            let request = Request { slot, reply };
            self.requests.send(request).await.map_err(|_| ended())?;
            let mut stream = answer.await.map_err(|_| ended())??;
            // yamux announces a stream with its first frame, which may be empty.
            let _ = stream.write(&[]).await?;
            Ok::<_, io::Error>(stream)
        };
        Ok(Box::new(timeout(OPEN_TIMEOUT, open).await??))
    }

    async fn accept(&self) -> Option<TunnelStream> {
        let stream = self.inbound.lock().await.recv().await?;
        Some(Box::new(stream))
    }

    fn open_streams(&self) -> usize {
        self.slots.taken()
    }

    async fn until_at_most(&self, streams: usize) {
        self.slots.until_at_most(streams).await;
    }

    fn last_received(&self) -> std::time::Instant {
        self.last_received.get()
    }

    fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        &self.peer_certificates
    }
}

/// Moves a connection's bytes until the connection ends, or until the tunnel is dropped.
async fn drive(
    mut connection: Connection<Compat<impl ByteStream>>,
    mut requests: mpsc::Receiver<Request>,
    inbound: mpsc::Sender<MuxStream>,
    streams: Streams,
) {
    // Also if this task panics.
    let ended = streams.ended.clone().drop_guard();
    let mut waiting: Option<Request> = None;
    poll_fn(|cx| {
        loop {
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    // Without a slot, the stream is dropped, and so reset.
                    if let Some(slot) = streams.slots.try_take(0) {
                        // The channel has room for as many streams as there are slots.
                        let _ = inbound.try_send(streams.stream(stream, slot));
                    }
                    continue;
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            let request = match waiting.take() {
                Some(request) => request,
                None => match ready!(requests.poll_recv(cx)) {
                    Some(request) => request,
                    None => return Poll::Ready(()),
                },
            };
            match connection.poll_new_outbound(cx) {
                Poll::Ready(opened) => {
                    let stream = opened.map(|stream| streams.stream(stream, request.slot));
                    // If no caller waits for the stream any more, the stream is dropped.
                    let _ = request.reply.send(stream.map_err(io::Error::other));
                }
                Poll::Pending => {
                    waiting = Some(request);
                    return Poll::Pending;
                }
            }
        }
    })
    .await;
    // yamux does not wake the readers of a connection that it closes itself.
    drop(ended);
    // The peer may not read.
    let _ = timeout(CLOSE_TIMEOUT, poll_fn(|cx| connection.poll_close(cx))).await;
}

/// The state that the streams of a tunnel share.
struct Streams {
    slots: Arc<Slots>,
    /// Cancelled when the connection has ended.
    ended: CancellationToken,
}

impl Streams {
    fn stream(&self, stream: yamux::Stream, slot: Slot) -> MuxStream {
        let ended = || Box::pin(self.ended.clone().cancelled_owned());
        MuxStream {
            stream: stream.compat(),
            read_ended: ended(),
            write_ended: ended(),
            is_shut_down: false,
            _slot: slot,
        }
    }
}

/// A stream, and its share of [`MAX_STREAMS`].
struct MuxStream {
    stream: Compat<yamux::Stream>,
    /// One future for each direction, because a future wakes only the task that has polled it last.
    read_ended: Pin<Box<WaitForCancellationFutureOwned>>,
    write_ended: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Whether this side has ended its direction.
    is_shut_down: bool,
    _slot: Slot,
}

/// Fails if a poll waits, and the connection has ended.
fn unless_ended<T>(
    polled: Poll<io::Result<T>>,
    has_ended: &mut Pin<Box<WaitForCancellationFutureOwned>>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<T>> {
    if polled.is_pending() && has_ended.as_mut().poll(cx).is_ready() {
        return Poll::Ready(Err(ended()));
    }
    polled
}

impl AsyncRead for MuxStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        // yamux reports the end of the peer's direction, a reset and a lost connection alike. This side's direction is
        // still open only after the end of the peer's direction.
        let is_end = matches!(polled, Poll::Ready(Ok(()))) && buf.filled().len() == before && buf.remaining() > 0;
        if is_end && self.stream.get_ref().is_closed() && !self.is_shut_down {
            let error = io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the stream was reset, or the tunnel has ended",
            );
            return Poll::Ready(Err(error));
        }
        unless_ended(polled, &mut self.read_ended, cx)
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        unless_ended(polled, &mut self.write_ended, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        unless_ended(polled, &mut self.write_ended, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.is_shut_down |= matches!(polled, Poll::Ready(Ok(())));
        unless_ended(polled, &mut self.write_ended, cx)
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the tunnel has ended")
}
