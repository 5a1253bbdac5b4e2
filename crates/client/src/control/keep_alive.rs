//! When to ping the other end of a silent connection, and when the connection is broken.
//!
//! Only messages of the control stream delay a ping, because the other end needs signs of life on that stream, too. But
//! a ping and its answer may wait behind the bytes of other streams. So a connection is not broken while any bytes
//! come.

use std::time::{Duration, Instant};

use crate::clock::after;

/// The times of a [`KeepAlive`]. A connection that is half open is noticed within `interval + timeout` after its last
/// byte. If a tunnel has written many bytes, and `interval` is below 10 s, the connection is noticed within 10 s +
/// `timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAliveTimes {
    /// After how long a silence the other end is pinged.
    pub interval: Duration,
    /// How long after the ping any bytes must come. Otherwise, the connection is broken.
    pub timeout: Duration,
}

impl Default for KeepAliveTimes {
    /// A ping after 10 s, and 5 s for the answer.
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
        }
    }
}

/// The keep-alive of one connection.
#[derive(Debug, Clone)]
pub struct KeepAlive {
    times: KeepAliveTimes,
    /// The longest interval that is allowed at present.
    max_interval: Duration,
    heard: Instant,
    /// When any bytes came last.
    received: Instant,
    /// The ping without an answer: since when any bytes have been awaited.
    pinged: Option<Instant>,
}

/// The next step of a keep-alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Send a ping.
    Ping,
    /// Send another ping: the answer is late, but bytes have come. The other end is alive, and may hear nothing else.
    PingAgain,
    /// The connection is broken.
    Broken,
}

impl KeepAlive {
    /// Begins at a message of the other end.
    #[must_use]
    pub fn new(times: KeepAliveTimes, now: Instant) -> Self {
        Self {
            times,
            max_interval: Duration::MAX,
            heard: now,
            received: now,
            pinged: None,
        }
    }

    /// Pings after a silence of `interval`, if this is shorter than the configured interval. Replaces the interval of
    /// an earlier call. With `None`, the configured interval counts again.
    pub fn ping_within(&mut self, interval: Option<Duration>) {
        self.max_interval = interval.unwrap_or(Duration::MAX);
    }

    /// Records that the other end has sent any message.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = None;
    }

    /// Records when the other end has last sent bytes, of any stream.
    pub fn bytes_received(&mut self, at: Instant) {
        self.received = self.received.max(at);
    }

    /// When [`KeepAlive::due`] has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Instant {
        match self.pinged {
            None => after(self.heard, self.times.interval.min(self.max_interval)),
            // After a stall of this process, the other end still has its time to answer.
            Some(pinged) => after(pinged, self.times.timeout),
        }
    }

    /// Returns what is due; [`Due::Ping`] once for each silence of the control stream.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        if now < self.next_timeout() {
            return None;
        }
        let received = self.received;
        Some(match &mut self.pinged {
            None => {
                self.pinged = Some(now);
                Due::Ping
            }
            Some(pinged) if received > *pinged => {
                *pinged = received;
                Due::PingAgain
            }
            Some(_) => Due::Broken,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_pinged_once_and_then_broken() {
        let times = KeepAliveTimes::default();
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(times, start);
        let ms = Duration::from_millis(1);
        assert_eq!(keep_alive.due(start + times.interval - ms), None);
        assert_eq!(keep_alive.due(start + times.interval), Some(Due::Ping));
        assert_eq!(keep_alive.due(start + times.interval + times.timeout - ms), None);
        assert_eq!(
            keep_alive.due(start + times.interval + times.timeout),
            Some(Due::Broken)
        );
    }

    #[test]
    fn after_a_stall_the_peer_still_has_time_to_answer() {
        let times = KeepAliveTimes::default();
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(times, start);
        let late = start + 10 * times.interval;
        assert_eq!(keep_alive.due(late), Some(Due::Ping));
        assert_eq!(keep_alive.due(late), None);
        assert_eq!(keep_alive.next_timeout(), late + times.timeout);
    }

    #[test]
    fn any_message_begins_a_new_interval() {
        let times = KeepAliveTimes::default();
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(times, start);
        assert_eq!(keep_alive.due(start + times.interval), Some(Due::Ping));
        let heard = start + times.interval + times.timeout / 2;
        keep_alive.heard(heard);
        assert_eq!(keep_alive.next_timeout(), heard + times.interval);
        assert_eq!(keep_alive.due(heard + times.interval), Some(Due::Ping));
    }

    #[test]
    fn a_connection_is_broken_only_after_its_last_byte() {
        let times = KeepAliveTimes::default();
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(times, start);
        let mut received = start + times.interval / 2;
        keep_alive.bytes_received(received);
        let mut now = start + times.interval;
        assert_eq!(keep_alive.due(now), Some(Due::Ping), "bytes delay no ping");
        for _ in 0..3 {
            received = now + times.timeout / 2;
            keep_alive.bytes_received(received);
            now = keep_alive.next_timeout();
            assert_eq!(keep_alive.due(now), Some(Due::PingAgain));
        }
        assert_eq!(keep_alive.next_timeout(), received + times.timeout);
        assert_eq!(keep_alive.due(received + times.timeout), Some(Due::Broken));
    }

    #[test]
    fn a_shorter_interval_changes_the_pings_until_it_ends() {
        let times = KeepAliveTimes::default();
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(times, start);
        keep_alive.ping_within(Some(2 * times.interval));
        assert_eq!(keep_alive.next_timeout(), start + times.interval);
        keep_alive.ping_within(Some(times.interval / 10));
        let pinged = start + times.interval / 10;
        assert_eq!(keep_alive.due(pinged), Some(Due::Ping));
        keep_alive.heard(pinged);
        for (interval, expected) in [
            (Some(times.interval / 2), times.interval / 2),
            (Some(6 * times.interval), times.interval),
            (Some(times.interval / 10), times.interval / 10),
            (None, times.interval),
        ] {
            keep_alive.ping_within(interval);
            assert_eq!(keep_alive.next_timeout(), pinged + expected, "{interval:?}");
        }
    }
}
