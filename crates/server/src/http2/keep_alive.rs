//! Clients that have gone without a word are noticed by asking them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use h2::{Ping, PingPong};

use crate::limits::Limits;

/// Asks a client that is silent, and then waits for anything that it sends.
pub(super) struct KeepAlive {
    pings: Option<PingPong>,
    read: Arc<AtomicU64>,
    /// What `read` was when the client was last known to be there.
    seen: u64,
    asked: bool,
    interval: Duration,
    timeout: Duration,
}

impl KeepAlive {
    /// `read` counts the bytes that came in.
    pub(super) fn new(pings: Option<PingPong>, read: Arc<AtomicU64>, limits: &Limits) -> Self {
        Self {
            pings,
            seen: read.load(Ordering::Relaxed),
            read,
            asked: false,
            interval: limits.keep_alive_interval,
            timeout: limits.keep_alive_timeout,
        }
    }

    /// Looks after the client; returns how soon to look again, or `None` if it has gone.
    pub(super) fn check(&mut self) -> Option<Duration> {
        let pings = self.pings.as_mut()?;
        let read = self.read.load(Ordering::Relaxed);
        if read != self.seen {
            self.seen = read;
            self.asked = false;
            return Some(self.interval);
        }
        if self.asked {
            return None;
        }
        self.asked = true;
        // Takes the answer to the last ping, without which the next one could not be sent. If there is none yet, the client
        // still owes it, and it will do for this time too.
        let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
        let _ = pings.send_ping(Ping::opaque());
        Some(self.timeout)
    }
}
