//! Keep-alive: the server pings a silent client, and closes the connection if the client stays silent.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use h2::{Ping, PingPong};

use crate::http2::socket::SentBytes;
use crate::http2::traffic::Traffic;
use crate::limits::Limits;

/// Pings a silent client, and accepts any bytes as the reply.
///
/// A ping waits behind the bytes that were written before the ping: the system keeps megabytes for a slow client. A
/// client whose system acknowledges some of these bytes is alive, and owes the reply only after it has taken all of
/// them.
pub(super) struct KeepAlive {
    pings: Option<PingPong>,
    traffic: Arc<Traffic>,
    /// The bytes that the client had sent at the last check.
    read: u64,
    /// The bytes that were acknowledged at the last check.
    acknowledged: u64,
    pinged: Pinged,
    interval: Duration,
    timeout: Duration,
}

/// Whether the client owes the reply to a ping.
enum Pinged {
    No,
    /// The ping waits behind bytes that were written before: up to this number of all bytes.
    Waiting {
        written: u64,
    },
    /// The ping has left, so the reply is due at the next check.
    Left,
}

impl KeepAlive {
    pub(super) fn new(pings: Option<PingPong>, traffic: Arc<Traffic>, limits: &Limits) -> Self {
        Self {
            pings,
            read: traffic.read(),
            acknowledged: 0,
            traffic,
            pinged: Pinged::No,
            interval: limits.ping_interval,
            timeout: limits.ping_timeout,
        }
    }

    /// Checks for a sign of life. Returns the time until the next check, or `None` if the client is gone.
    ///
    /// Before the check, [ask](Traffic::ask_sent) for the bytes that were sent, and poll the connection. If the
    /// connection had no turn to read the input that has arrived, the check postpones the judgement.
    pub(super) fn check(&mut self) -> Option<Duration> {
        let pings = self.pings.as_mut()?;
        let Some(SentBytes { written, acknowledged }) = self.traffic.take_sent() else {
            return Some(self.timeout);
        };
        let has_taken = mem::replace(&mut self.acknowledged, acknowledged) != acknowledged;
        let read = self.traffic.read();
        if mem::replace(&mut self.read, read) != read {
            self.pinged = Pinged::No;
            return Some(self.interval);
        }
        let after = |written| match acknowledged < written {
            true => Pinged::Waiting { written },
            false => Pinged::Left,
        };
        match self.pinged {
            Pinged::No => {
                self.pinged = after(written);
                // h2 sends a ping only after the last pong was taken. If the last pong has not arrived, the client
                // still owes the pong, and no second ping is needed.
                let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
                let _ = pings.send_ping(Ping::opaque());
                Some(self.timeout)
            }
            Pinged::Waiting { written } if has_taken => {
                self.pinged = after(written);
                // The client may have to read its own system's buffer before it sees the ping.
                Some(self.interval)
            }
            Pinged::Waiting { .. } | Pinged::Left => None,
        }
    }
}
