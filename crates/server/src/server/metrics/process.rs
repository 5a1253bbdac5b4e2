//! Figures of the process, under the names that Prometheus's client libraries share.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use procfs::process::{LimitValue, Process};
use procfs::{ProcResult, boot_time_secs, page_size, ticks_per_second};

/// The figures are read again at the earliest after this time, and after this many times as long as the reading took.
/// So scrapes take a few percent of the thread at most, however many descriptors there are to count.
const LEAST_AGE: Duration = Duration::from_secs(1);
const REST: u32 = 50;

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
        let figures = ProcessFigures::read()?;
        let until = begun + LEAST_AGE.max(begun.elapsed() * REST);
        *kept = Some(Kept { figures, until });
        Ok(figures)
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
            start_time: boot_time_secs()? as f64 + stat.starttime as f64 / ticks,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

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
