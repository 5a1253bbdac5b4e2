//! When the other end of a connection has last sent bytes, or has taken bytes that had to wait.
//!
//! An end that only sends hears little: with large windows, updates are rare. But a write that had to wait continues
//! only after the other end has acknowledged earlier bytes.
//!
//! A connection's buffer may take megabytes at once, and a slow path delivers them for seconds. A ping waits behind
//! these bytes, and neither end reports progress. So the other end counts as alive while these bytes may be on their
//! way, for at most [`MAX_GRACE`] after its last sign of life. A ping alone earns no time: it must not answer itself.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// The slowest path, in bytes a second, on which written bytes may wait as long as they need.
const MIN_RATE: u64 = 32_000;

/// Bytes that the slowest path delivers within this time, in microseconds, earn no time.
const SHORT_MICROS: u64 = 1_000_000;

/// The longest time after the last sign of life for which written bytes count as on their way. The time is the default
/// interval of a keep-alive. So with the default times, a lost connection is noticed no later than a silent connection.
const MAX_GRACE: Duration = Duration::from_secs(10);

/// When bytes came or were taken last, to the millisecond.
pub(super) struct LastReceived {
    since: Instant,
    millis: AtomicU64,
    /// When the slowest path has delivered all written bytes, in microseconds.
    delivered_micros: AtomicU64,
    /// Until when written bytes count as on their way, in microseconds.
    grace_micros: AtomicU64,
}

impl LastReceived {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            since: Instant::now(),
            millis: AtomicU64::new(0),
            delivered_micros: AtomicU64::new(0),
            grace_micros: AtomicU64::new(0),
        })
    }

    /// Returns the time; the time of [`LastReceived::new`] if no bytes have come or were taken. While written bytes may
    /// be on their way, returns the current time, within [`MAX_GRACE`].
    pub(super) fn get(&self) -> std::time::Instant {
        // Relaxed, here and below: the times guard no data.
        let noted = Duration::from_millis(self.millis.load(Relaxed));
        let grace = Duration::from_micros(self.grace_micros.load(Relaxed)).min(noted + MAX_GRACE);
        (self.since + noted.max(grace.min(self.since.elapsed()))).into_std()
    }

    fn note(&self) {
        let millis = self.since.elapsed().as_millis();
        self.millis.store(u64::try_from(millis).unwrap_or(u64::MAX), Relaxed);
    }

    /// Records that the connection has taken bytes. Only the writer calls this.
    fn written(&self, bytes: usize) {
        let now = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let time = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(1_000_000) / MIN_RATE;
        let delivered = self.delivered_micros.load(Relaxed).max(now).saturating_add(time);
        self.delivered_micros.store(delivered, Relaxed);
        if delivered - now > SHORT_MICROS {
            self.grace_micros.store(delivered - SHORT_MICROS, Relaxed);
        }
    }
}

/// A connection that notes when bytes come, how many bytes it takes, and when a write that had to wait continues.
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
        if let Poll::Ready(Ok(bytes)) = polled {
            self.last.written(bytes);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn written_bytes_count_as_life_while_they_may_be_on_their_way() {
        let last = LastReceived::new();
        let begin = last.get();
        let second = usize::try_from(MIN_RATE).unwrap();
        let after = |seconds| begin + Duration::from_secs(seconds);
        last.written(5 * second);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(last.get(), after(3));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(last.get(), after(4), "all but a second's bytes earn time");
        last.written(100 * second);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(last.get(), after(9));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(last.get(), begin + MAX_GRACE, "nothing has come");
        last.note();
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(last.get(), after(15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ping_is_no_sign_of_life() {
        let last = LastReceived::new();
        let begin = last.get();
        for _ in 0..100 {
            tokio::time::advance(Duration::from_millis(100)).await;
            last.written(50);
            assert_eq!(last.get(), begin);
        }
    }
}
