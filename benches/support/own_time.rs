//! The time for which a thread worked, or was blocked by other threads that worked on the same table.
//!
//! On a busy machine, the longest of a million operations is the operation during which the scheduler gave the core to
//! another process. Linux reports how long a thread was ready to run without a core; this time does not count. Other
//! systems do not report it.

use std::time::{Duration, Instant};

/// The time of one thread without its waits for a core.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    waited: Duration,
    start: Instant,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        let waited = waited();
        let start = Instant::now();
        Self { waited, start }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed().saturating_sub(waited() - self.waited)
    }
}

/// Shorter times are not corrected: reading the waits costs about as much.
const WORTH_ASKING: Duration = Duration::from_micros(20);

/// Successive times of one thread.
#[derive(Debug)]
pub(crate) struct Laps {
    waited: Duration,
    last: Instant,
}

impl Laps {
    pub(crate) fn start() -> Self {
        Self {
            waited: waited(),
            last: Instant::now(),
        }
    }

    /// Begins a lap without having ended one.
    #[inline]
    pub(crate) fn skip(&mut self) {
        self.last = Instant::now();
    }

    /// Ends a lap and begins the next: its time with and without waits for a core.
    #[inline]
    pub(crate) fn lap(&mut self) -> (Duration, Duration) {
        let now = Instant::now();
        let took = now - self.last;
        self.last = now;
        if took < WORTH_ASKING {
            (took, took)
        } else {
            (took, self.own(took))
        }
    }

    #[cold]
    fn own(&mut self, took: Duration) -> Duration {
        // A lap with a long wait is long, so it comes here. So nearly all of the wait since the last time was in this
        // lap.
        let waited = waited();
        let own = took.saturating_sub(waited - self.waited);
        self.waited = waited;
        self.last = Instant::now();
        own
    }
}

/// How long this thread was ready to run without a core; zero if the system does not report it.
fn waited() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split_whitespace().nth(1).and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
