//! The CPU time of the generator, and of a server on the same machine.

use std::time::Duration;

use procfs::process::Process;
use procfs::{ProcResult, ticks_per_second};
use tokio::time::Instant;

use crate::cli::commands::CommandError;

/// CPU times of the two processes, or the differences of two readings.
#[derive(Debug)]
pub(super) struct CpuTimes {
    pub(super) at: Instant,
    /// The time between two readings.
    pub(super) elapsed: Duration,
    pub(super) generator: Duration,
    pub(super) server: Option<Duration>,
}

impl CpuTimes {
    pub(super) fn read(server: Option<&Process>) -> Result<Self, CommandError> {
        let read = || {
            Ok(Self {
                at: Instant::now(),
                elapsed: Duration::ZERO,
                generator: cpu_time(&Process::myself()?)?,
                server: server.map(cpu_time).transpose()?,
            })
        };
        read().map_err(CommandError::CpuTime)
    }

    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            at: self.at,
            elapsed: self.at - before.at,
            generator: self.generator.saturating_sub(before.generator),
            server: self
                .server
                .zip(before.server)
                .map(|(now, before)| now.saturating_sub(before)),
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
