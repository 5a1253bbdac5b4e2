//! Keep-alive: the server pings a silent client, and closes the connection if the client stays silent.

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use h2::{Ping, PingPong};

use crate::http2::traffic::Traffic;
use crate::limits::Limits;

/// Pings a silent client, and accepts any sign of life as the reply.
///
/// A ping waits behind the bytes that were written before the ping. A client that takes these bytes is alive, and owes
/// the answer only after it has taken all of them.
pub(super) struct KeepAlive {
    pings: Option<PingPong>,
    traffic: Arc<Traffic>,
    /// The signs of life at the last check.
    seen: u64,
    is_pinged: bool,
    interval: Duration,
    timeout: Duration,
}

impl KeepAlive {
    pub(super) fn new(pings: Option<PingPong>, traffic: Arc<Traffic>, limits: &Limits) -> Self {
        Self {
            pings,
            seen: traffic.signs_of_life(),
            traffic,
            is_pinged: false,
            interval: limits.keep_alive_interval,
            timeout: limits.keep_alive_timeout,
        }
    }

    /// Checks for a sign of life. Returns the time until the next check, or `None` if the client is gone.
    pub(super) fn check(&mut self) -> Option<Duration> {
        let pings = self.pings.as_mut()?;
        let signs = self.traffic.signs_of_life();
        if signs != self.seen {
            self.seen = signs;
            self.is_pinged = false;
            return Some(self.interval);
        }
        if self.is_pinged {
            return None;
        }
        self.is_pinged = true;
        // h2 sends a ping only after the last pong was taken. If the last pong has not arrived, the client still owes
        // the pong, and no second ping is needed.
        let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
        let _ = pings.send_ping(Ping::opaque());
        Some(self.timeout)
    }
}
