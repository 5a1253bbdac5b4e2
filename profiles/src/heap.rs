//! The counts of dhat: the bytes of all requests to the allocator.

use std::path::Path;

use dhat::{HeapStats, Profiler};

/// dhat keeps this many frames of each backtrace: enough to get from an allocation to the call of the table.
const FRAMES: usize = 8;

/// Starts counting, from zero. The counts are saved to `file`, if there is one, when the result is dropped.
#[must_use = "counting ends when this is dropped"]
pub(crate) fn count(file: Option<&Path>) -> Profiler {
    let builder = Profiler::builder().trim_backtraces(Some(FRAMES));
    match file {
        Some(file) => builder.file_name(file).build(),
        None => builder.testing().build(),
    }
}

/// The most bytes that were in use at one time (dhat's t-gmax).
pub(crate) fn peak() -> u64 {
    HeapStats::get().max_bytes as u64
}

/// The bytes that are in use.
pub(crate) fn live() -> u64 {
    HeapStats::get().curr_bytes as u64
}

/// How many allocations there were, reallocations included.
pub(crate) fn allocations() -> u64 {
    HeapStats::get().total_blocks
}
