//! The memory of a process, as the kernel counts it.

use std::fs::read_to_string;

use crate::client::Failure;

/// Kilobytes of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// The resident set.
    pub(crate) rss: u64,
    /// The resident set, with a share of each page that several processes use.
    pub(crate) pss: u64,
    /// The part of the resident set in transparent huge pages.
    pub(crate) huge: u64,
}

fn field(text: &str, name: &str) -> Result<u64, Failure> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    value.ok_or_else(|| format!("no {name} in /proc").into())
}

/// Reads the memory that a process holds.
pub(crate) fn memory(process: u32) -> Result<Memory, Failure> {
    let rollup = read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    Ok(Memory {
        rss: field(&rollup, "Rss")?,
        pss: field(&rollup, "Pss")?,
        huge: field(&rollup, "AnonHugePages")?,
    })
}

/// Returns the most kilobytes that a process has held.
pub(crate) fn peak(process: u32) -> Result<u64, Failure> {
    field(&read_to_string(format!("/proc/{process}/status"))?, "VmHWM")
}
