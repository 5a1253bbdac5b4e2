//! Figures of the process, under the names that Prometheus's client libraries share.

use procfs::process::{LimitValue, Process};
use procfs::{ProcResult, boot_time_secs, page_size, ticks_per_second};

/// What the kernel says about this process.
#[derive(Debug)]
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
}
