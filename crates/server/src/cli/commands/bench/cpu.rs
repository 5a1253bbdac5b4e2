//! The CPU time of the generator, and of a server on the same machine.

use std::time::Duration;

use procfs::process::Process;
use procfs::{ProcResult, ticks_per_second};
use tokio::time::Instant;

/// The CPU times at a point in time.
#[derive(Debug)]
pub(super) struct CpuReading {
    at: Instant,
    generator: Duration,
    server: Option<Duration>,
}

/// The CPU times between two readings.
#[derive(Debug)]
pub(super) struct CpuUse {
    pub(super) elapsed: Duration,
    pub(super) generator: Duration,
    /// `None` if no server was named, or if the server ended.
    pub(super) server: Option<Duration>,
}

impl CpuReading {
    pub(super) fn take(server: Option<i32>) -> ProcResult<Self> {
        Ok(Self {
            at: Instant::now(),
            generator: cpu_time(&Process::myself()?)?,
            server: server.and_then(|pid| cpu_time(&Process::new(pid).ok()?).ok()),
        })
    }

    pub(super) fn until(&self, end: &Self) -> CpuUse {
        let server = self.server.zip(end.server);
        CpuUse {
            elapsed: end.at - self.at,
            generator: end.generator.saturating_sub(self.generator),
            server: server.map(|(begin, end)| end.saturating_sub(begin)),
        }
    }
}

/// Returns the CPU time that a process and the kernel on its behalf have used, to the tick, which is usually 10 ms.
fn cpu_time(process: &Process) -> ProcResult<Duration> {
    let stat = process.stat()?;
    Ok(Duration::from_secs_f64(
        (stat.utime + stat.stime) as f64 / ticks_per_second() as f64,
    ))
}
