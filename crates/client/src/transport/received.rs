//! When the other end of a connection has last sent bytes, or has taken bytes that had to wait.
//!
//! An end that only sends hears little: with large windows, updates are rare. But a write that had to wait continues
//! only after the other end has acknowledged earlier bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// When bytes came or were taken last, to the millisecond.
pub(super) struct LastReceived {
    since: Instant,
    millis: AtomicU64,
}

impl LastReceived {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            since: Instant::now(),
            millis: AtomicU64::new(0),
        })
    }

    /// Returns the time; the time of [`LastReceived::new`] if no bytes have come or were taken.
    pub(super) fn get(&self) -> std::time::Instant {
        // Relaxed, here and in `note`: the time guards no data.
        (self.since + Duration::from_millis(self.millis.load(Relaxed))).into_std()
    }

    fn note(&self) {
        let millis = self.since.elapsed().as_millis();
        self.millis.store(u64::try_from(millis).unwrap_or(u64::MAX), Relaxed);
    }
}

/// A connection that notes when bytes come, and when a write that had to wait continues.
pub(super) struct NotesReceived<S> {
    stream: S,
    last: Arc<LastReceived>,
    /// Whether the last write has to wait.
    is_write_blocked: bool,
}

impl<S> NotesReceived<S> {
    pub(super) fn new(stream: S, last: Arc<LastReceived>) -> Self {
        Self {
            stream,
            last,
            is_write_blocked: false,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for NotesReceived<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.last.note();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NotesReceived<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if self.is_write_blocked && matches!(polled, Poll::Ready(Ok(1..))) {
            self.last.note();
        }
        self.is_write_blocked = polled.is_pending();
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
