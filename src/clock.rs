//! The source of a table's time.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

#[cfg(target_os = "linux")]
use rustix::time::{ClockId, clock_gettime};

/// A source of time for a [`RouteTable`](crate::RouteTable).
///
/// Ages use only the monotonic reading, so a stepped wall clock neither expires nor revives a route. The wall reading
/// is only for display.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// The time since a fixed instant, which the clock chooses. The time should never decrease. If it decreases, the
    /// table continues to use the latest time. A table's own time stops 8.7 years after the table was made; from then
    /// on, no route expires.
    fn monotonic(&self) -> Duration;

    /// The present wall-clock time.
    fn wall(&self) -> SystemTime;
}

/// The operating system's clocks.
///
/// On Linux, the monotonic reading is `CLOCK_BOOTTIME`, which also counts the time for which the machine was suspended.
/// On other systems, it is that of [`Instant`](std::time::Instant).
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SystemClock;

impl SystemClock {
    /// Returns the clock.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Clock for SystemClock {
    #[cfg(target_os = "linux")]
    fn monotonic(&self) -> Duration {
        let reading = clock_gettime(ClockId::Boottime);
        // The reading is positive, and has less than a billion nanoseconds.
        Duration::new(reading.tv_sec as u64, reading.tv_nsec as u32)
    }

    #[cfg(not(target_os = "linux"))]
    fn monotonic(&self) -> Duration {
        static ORIGIN: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        ORIGIN.get_or_init(std::time::Instant::now).elapsed()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that moves only on request, for tests.
///
/// Clones share one reading, so a test can keep a clone of the clock that it gave to a table.
///
/// ```
/// use std::time::Duration;
/// use nodetracker::{Clock, ManualClock};
///
/// let clock = ManualClock::new();
/// clock.advance(Duration::from_secs(3));
/// assert_eq!(clock.monotonic(), Duration::from_secs(3));
/// ```
#[derive(Debug, Clone, Default)]
pub struct ManualClock {
    nanos: std::sync::Arc<AtomicU64>,
}

impl ManualClock {
    /// Returns a clock whose monotonic reading is zero, and whose wall reading is 2021-11-23 00:00:00 UTC.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves both readings forward.
    pub fn advance(&self, by: Duration) {
        // Relaxed: the reading orders nothing by itself; a thread that needs "advanced before" synchronises with the
        // caller.
        self.nanos.fetch_add(nanos(by), Ordering::Relaxed);
    }

    /// Sets the monotonic reading, forwards or backwards; the wall reading moves with it.
    pub fn set(&self, to: Duration) {
        // Relaxed: as in `advance`.
        self.nanos.store(nanos(to), Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn monotonic(&self) -> Duration {
        // Relaxed: as in `advance`.
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_637_625_600) + self.monotonic()
    }
}

/// Nanoseconds of a duration, at most 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(loom), target_os = "linux"))]
mod tests {
    use std::process::Command;

    use super::*;

    /// The name of this test, without the name of the crate.
    const NAME: &str = "clock::tests::time_of_a_suspended_machine_counts";
    const SUSPENDED: Duration = Duration::from_secs(1_000_000);

    /// After a suspension, the boot-time clock is ahead of the monotonic clock. A time namespace can shift the
    /// boot-time clock alone, so the test runs again in a namespace. Without the rights for a namespace, the test is
    /// skipped.
    #[test]
    fn time_of_a_suspended_machine_counts() {
        if std::env::var_os(NAME).is_some() {
            let monotonic = clock_gettime(ClockId::Monotonic);
            let counted = SystemClock::new().monotonic();
            assert!(
                counted >= Duration::new(monotonic.tv_sec as u64, 0) + SUSPENDED,
                "{counted:?}"
            );
            return;
        }
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--time", "--boottime"]);
        command.arg(SUSPENDED.as_secs().to_string());
        command
            .arg(std::env::current_exe().expect("a path"))
            .args(["--exact", NAME]);
        match command.env(NAME, "").output() {
            // A test binary ends with 101 if a test fails, `unshare` with other codes.
            Ok(output) if output.status.code() == Some(101) => panic!("{}", String::from_utf8_lossy(&output.stdout)),
            Ok(output) if output.status.success() => {
                let text = String::from_utf8_lossy(&output.stdout);
                assert!(text.contains("1 passed"), "{text}");
            }
            skipped => eprintln!("no time namespace, so the test is skipped: {skipped:?}"),
        }
    }
}
