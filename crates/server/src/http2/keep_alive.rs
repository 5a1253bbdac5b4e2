//! Keep-alive: a silent client is pinged, and its connection is closed if the client stays silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use h2::{Ping, PingPong};

use crate::limits::Limits;

/// Pings a silent client, and accepts any bytes as the reply.
pub(super) struct KeepAlive {
    pings: Option<PingPong>,
    read: Arc<AtomicU64>,
    /// The value of `read` at the last sign of life.
    seen: u64,
    is_pinged: bool,
    interval: Duration,
    timeout: Duration,
}

impl KeepAlive {
    /// `read` is the number of bytes that the client has sent.
    pub(super) fn new(pings: Option<PingPong>, read: Arc<AtomicU64>, limits: &Limits) -> Self {
        Self {
            pings,
            seen: read.load(Ordering::Relaxed),
            read,
            is_pinged: false,
            interval: limits.keep_alive_interval,
            timeout: limits.keep_alive_timeout,
        }
    }

    /// Checks for a sign of life. Returns the time until the next check, or `None` if the client is gone.
    pub(super) fn check(&mut self) -> Option<Duration> {
        let pings = self.pings.as_mut()?;
        let read = self.read.load(Ordering::Relaxed);
        if read != self.seen {
            self.seen = read;
            self.is_pinged = false;
            return Some(self.interval);
        }
        if self.is_pinged {
            return None;
        }
        self.is_pinged = true;
        // h2 sends a ping only after the last pong was taken. If that pong has not come yet, the client still owes it, and
        // no second ping is needed.
        let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
        let _ = pings.send_ping(Ping::opaque());
        Some(self.timeout)
    }
}
