//! How many seeds a test runs. `tests/it` includes this file.

use std::ops::Range;
use std::{env, thread};

/// The seeds 0, 1, 2, and so on: as many as `NODETRACKER_SEEDS` says, or as the test says. Prints the seed of a test
/// that fails.
pub(crate) struct Seeds(Range<u64>);

impl Seeds {
    pub(crate) fn new(default: u64) -> Self {
        let count =
            env::var("NODETRACKER_SEEDS").map_or(default, |text| text.parse().expect("NODETRACKER_SEEDS is a number"));
        Self(0..count)
    }
}

impl Iterator for Seeds {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0.next()
    }
}

impl Drop for Seeds {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("seed {}", self.0.start.saturating_sub(1));
        }
    }
}
