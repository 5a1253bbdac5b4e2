//! Figures of the process, under the names that Prometheus's client libraries share.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use procfs::process::{LimitValue, Process};
use procfs::{ProcResult, page_size, ticks_per_second};
use rustix::time::{ClockId, clock_gettime};

/// The figures are read again at the earliest after this time, and after this many times as long as the reading took.
/// So scrapes take a few percent of the thread at most, however many descriptors there are to count.
const LEAST_AGE: Duration = Duration::from_secs(1);
const REST: u32 = 50;

/// If the start of the process differs by this number of seconds, somebody has set the wall clock.
const CLOCK_SET: f64 = 5.0;

/// Reads the figures, and keeps them for a while.
#[derive(Debug, Default)]
pub(super) struct ProcessReader(Mutex<Option<Kept>>);

#[derive(Debug)]
struct Kept {
    figures: ProcessFigures,
    until: Instant,
}

impl ProcessReader {
    /// Returns figures that are not much older than a second.
    pub(super) fn read(&self) -> ProcResult<ProcessFigures> {
        // No critical section leaves the figures half changed.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        if let Some(kept) = kept.as_ref().filter(|kept| begun < kept.until) {
            return Ok(kept.figures);
        }
        let mut figures = ProcessFigures::read()?;
        if let Some(kept) = kept.as_ref() {
            figures.start_time = steady(figures.start_time, kept.figures.start_time);
        }
        let until = begun + LEAST_AGE.max(begun.elapsed() * REST);
        *kept = Some(Kept { figures, until });
        Ok(figures)
    }
}

/// Returns the start of the process. The clocks are read one after the other, and the wall clock is adjusted now and
/// then. So the reported start stays, unless somebody has set the clock: a start that changes looks like a restart.
fn steady(start: f64, before: f64) -> f64 {
    match (start - before).abs() < CLOCK_SET {
        true => before,
        false => start,
    }
}

/// The kernel's figures of this process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ProcessFigures {
    /// CPU time in user and system mode, in seconds.
    pub(super) cpu_seconds: f64,
    /// Bytes of memory that are in RAM.
    pub(super) resident_bytes: u64,
    pub(super) threads: u64,
    /// Open file descriptors, and their limit. `None`: there is no limit.
    pub(super) open_fds: u64,
    pub(super) max_fds: Option<u64>,
    /// When the process started, in seconds since 1970.
    pub(super) start_time: f64,
}

impl ProcessFigures {
    /// Reads a few small files below `/proc`. Counts the descriptors one by one only on kernels before 6.2.
    pub(super) fn read() -> ProcResult<Self> {
        let process = Process::myself()?;
        let stat = process.stat()?;
        let ticks = ticks_per_second() as f64;
        Ok(Self {
            cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
            resident_bytes: stat.rss * page_size(),
            threads: stat.num_threads.try_into().unwrap_or_default(),
            open_fds: process.fd_count()? as u64,
            max_fds: match process.limits()?.max_open_files.soft_limit {
                LimitValue::Value(limit) => Some(limit),
                LimitValue::Unlimited => None,
            },
            start_time: start_time(stat.starttime as f64 / ticks),
        })
    }
}

/// Returns when the process started, in seconds since 1970. `after_boot`: in seconds since the machine was booted.
///
/// procfs returns the boot time of its first call. On a machine without a clock, the clock is set later, and this boot
/// time stays wrong.
fn start_time(after_boot: f64) -> f64 {
    let uptime = clock_gettime(ClockId::Boottime);
    let uptime = uptime.tv_sec as f64 + uptime.tv_nsec as f64 / 1e9;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs_f64() - (uptime - after_boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_of_this_process() {
        let figures = ProcessFigures::read().expect("/proc is there");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        // The kernel counts hundredths of seconds, and the wall clock may be adjusted.
        assert!(
            (0.0..86_400.0 * 7.0).contains(&(now.as_secs_f64() + 5.0 - figures.start_time)),
            "{figures:?}"
        );
        assert!((1 << 20..1 << 40).contains(&figures.resident_bytes), "{figures:?}");
        assert!(figures.open_fds >= 3 && figures.threads >= 1, "{figures:?}");
        assert!(
            figures.max_fds.is_none_or(|most| most >= figures.open_fds),
            "{figures:?}"
        );
        let _held: Vec<_> = (0..10)
            .map(|_| std::fs::File::open("/proc/self/stat").expect("/proc is there"))
            .collect();
        assert!(ProcessFigures::read().expect("/proc is there").open_fds >= 10);
    }

    /// A board without a clock starts in 1970, and learns the time from the network.
    #[test]
    fn the_start_follows_a_clock_that_is_set_and_no_small_adjustment() {
        assert_eq!(steady(1_700_000_000.0, 12.0), 1_700_000_000.0);
        assert_eq!(steady(12.0, 1_700_000_000.0), 12.0);
        assert_eq!(steady(1_700_000_000.2, 1_700_000_000.0), 1_700_000_000.0);

        let reader = ProcessReader::default();
        let start = reader.read().expect("/proc is there").start_time;
        let pretend = |start| {
            let mut kept = reader.0.lock().expect("not poisoned");
            let kept = kept.as_mut().expect("they were read");
            kept.until = Instant::now();
            kept.figures.start_time = start;
        };
        pretend(start - 1.0);
        assert_eq!(reader.read().expect("/proc is there").start_time, start - 1.0);
        pretend(12.0);
        assert!((reader.read().expect("/proc is there").start_time - start).abs() < CLOCK_SET);
    }

    #[test]
    fn the_figures_are_read_again_after_a_while() {
        let reader = ProcessReader::default();
        let read = || reader.read().expect("/proc is there");
        let end_in = |time| {
            let mut kept = reader.0.lock().expect("not poisoned");
            let kept = kept.as_mut().expect("they were read");
            // No process has so many threads.
            kept.figures.threads = u64::MAX;
            kept.until = Instant::now() + time;
        };
        assert_ne!(read().threads, u64::MAX);
        end_in(Duration::from_secs(3600));
        assert_eq!(read().threads, u64::MAX);
        end_in(Duration::ZERO);
        assert_ne!(read().threads, u64::MAX);
    }
}
