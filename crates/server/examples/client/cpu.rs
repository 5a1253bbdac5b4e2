//! The CPU time of a process, as the kernel counts it.

use std::fs::read_to_string;
use std::time::Duration;

use crate::client::Failure;

/// Returns the CPU time that a process and the kernel on its behalf have used, to a hundredth of a second.
pub(crate) fn cpu(process: u32) -> Result<Duration, Failure> {
    let stat = read_to_string(format!("/proc/{process}/stat"))?;
    // The command's name may have blanks; utime and stime are the 14th and 15th field, and the name is the second.
    let (_, after_name) = stat.rsplit_once(')').ok_or("an unknown format of stat")?;
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<_, _>>()?;
    Ok(Duration::from_millis(10 * ticks))
}
