//! The bytes of one connection: counts for its keep-alive, and how many bytes the client may send in a turn.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};

use crate::http2::socket::{SentBytes, Transport};

/// Counts of one connection. All are Relaxed: only the connection's task uses them.
#[derive(Debug)]
pub(super) struct Traffic {
    /// Bytes that the client has sent.
    read: AtomicU64,
    /// Bytes that were written.
    written: AtomicU64,
    /// Whether the next read or write has to note the bytes that were sent.
    is_asked: AtomicBool,
    /// The last [`SentBytes`].
    sent: AtomicU64,
    acknowledged: AtomicU64,
    /// Bytes that may be read until the turn ends.
    allowance: AtomicUsize,
    /// Whether a read was refused because the allowance is used up.
    is_exhausted: AtomicBool,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            is_asked: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            allowance: AtomicUsize::new(usize::MAX),
            is_exhausted: AtomicBool::new(false),
        }
    }
}

impl Traffic {
    /// Returns the number of bytes that the client has sent.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that were written.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Requests the counts of [`SentBytes`]. The next poll of the connection stores them.
    pub(super) fn ask_sent(&self) {
        self.is_asked.store(true, Ordering::Relaxed);
    }

    /// Returns the counts that the first poll after the request has stored. `None` if the connection was not polled
    /// since.
    pub(super) fn take_sent(&self) -> Option<SentBytes> {
        (!self.is_asked.swap(false, Ordering::Relaxed)).then(|| SentBytes {
            written: self.sent.load(Ordering::Relaxed),
            acknowledged: self.acknowledged.load(Ordering::Relaxed),
        })
    }

    fn note_sent(&self, transport: &impl Transport) {
        if self.is_asked.swap(false, Ordering::Relaxed) {
            let SentBytes { written, acknowledged } = transport.sent();
            self.sent.store(written, Ordering::Relaxed);
            self.acknowledged.store(acknowledged, Ordering::Relaxed);
        }
    }

    /// Begins a turn, in which the client may send `allowance` bytes. The rest waits in the socket.
    pub(super) fn begin_turn(&self, allowance: usize) {
        self.allowance.store(allowance, Ordering::Relaxed);
        self.is_exhausted.store(false, Ordering::Relaxed);
    }

    /// Reports whether a read was refused in this turn. If so, nothing wakes the task when more bytes arrive, and the
    /// task has to begin another turn.
    pub(super) fn is_exhausted(&self) -> bool {
        self.is_exhausted.load(Ordering::Relaxed)
    }

    /// Returns the bytes that may be read. 0 ends the turn.
    fn begin_read(&self) -> usize {
        let allowance = self.allowance.load(Ordering::Relaxed);
        self.is_exhausted.store(allowance == 0, Ordering::Relaxed);
        allowance
    }

    fn has_read(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        let allowance = self.allowance.load(Ordering::Relaxed);
        self.allowance.store(allowance.saturating_sub(bytes), Ordering::Relaxed);
    }

    fn has_written(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
    }
}

/// A stream that counts its bytes.
pub(super) struct CountedStream<S> {
    stream: Take<S>,
    traffic: Arc<Traffic>,
}

impl<S: AsyncRead> CountedStream<S> {
    pub(super) fn new(stream: S, traffic: Arc<Traffic>) -> Self {
        Self {
            stream: stream.take(0),
            traffic,
        }
    }
}

impl<S: Transport> AsyncRead for CountedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.traffic.note_sent(self.stream.get_ref());
        let allowance = match self.traffic.begin_read() {
            0 => return Poll::Pending,
            allowance => allowance as u64,
        };
        self.stream.set_limit(allowance);
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.traffic.has_read(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: Transport> AsyncWrite for CountedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.traffic.note_sent(self.stream.get_ref());
        let written = Pin::new(self.stream.get_mut()).poll_write(cx, buf);
        self.traffic.has_written(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.traffic.note_sent(self.stream.get_ref());
        let written = Pin::new(self.stream.get_mut()).poll_write_vectored(cx, bufs);
        self.traffic.has_written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }
}
