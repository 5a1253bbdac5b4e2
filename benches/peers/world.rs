//! The time, and the proxies that are alive: both decide which routes of a peer are valid.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use nodetracker::{Clock, ManualClock, SystemClock};

use crate::peers::Setting;

#[derive(Debug)]
enum Time {
    System(SystemClock),
    Manual(ManualClock),
}

/// Time and proxies of one peer.
#[derive(Debug)]
pub(crate) struct World {
    time: Time,
    wall_of_zero: SystemTime,
    /// In milliseconds.
    keep_alive: u64,
    /// For each proxy, its generation. The lowest bit says whether the proxy is alive.
    lives: Box<[AtomicU32]>,
}

const ALIVE: u32 = 1;

impl World {
    pub(crate) fn new(setting: &Setting) -> Self {
        let (time, clock): (Time, &dyn Clock) = match &setting.clock {
            Some(clock) => (Time::Manual(clock.clone()), clock),
            None => (Time::System(SystemClock::new()), &SystemClock::new()),
        };
        Self {
            wall_of_zero: clock.wall() - clock.monotonic(),
            time,
            keep_alive: setting.keep_alive.as_millis() as u64,
            lives: (0..setting.proxies).map(|_| AtomicU32::new(ALIVE)).collect(),
        }
    }

    /// Milliseconds since the peer was made.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        let since = match &self.time {
            Time::System(clock) => clock.monotonic(),
            Time::Manual(clock) => clock.monotonic(),
        };
        since.as_millis() as u64
    }

    #[inline]
    pub(crate) fn wall(&self, ms: u64) -> SystemTime {
        self.wall_of_zero + Duration::from_millis(ms)
    }

    /// Whether a route of this age is not expired.
    #[inline]
    pub(crate) fn is_fresh(&self, time: u64, now: u64) -> bool {
        now.saturating_sub(time) <= self.keep_alive
    }

    /// The proxy's generation; `None` if the proxy is not alive.
    #[inline]
    pub(crate) fn life(&self, proxy: u32) -> Option<u32> {
        // Acquire: a caller would read the proxy's data next.
        let life = self.lives.get(proxy as usize)?.load(Ordering::Acquire);
        (life & ALIVE != 0).then_some(life)
    }

    pub(crate) fn remove_proxy(&self, proxy: u32) {
        // Release: as in `life`.
        self.lives[proxy as usize].fetch_and(!ALIVE, Ordering::Release);
    }
}
