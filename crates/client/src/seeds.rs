//! Test support: how many seeds a test runs, and how long recoveries take. The integration tests include this file.

use std::ops::Range;
use std::time::Duration;
use std::{env, thread};

/// The seeds 0, 1, 2, and so on: as many as `NODETRACKER_SEEDS` says, or as the test says. Prints the seed of a test
/// that fails.
pub(crate) struct Seeds(Range<u64>);

impl Seeds {
    pub(crate) fn new(default: u64) -> Self {
        Self(0..Self::chosen().unwrap_or(default))
    }

    fn chosen() -> Option<u64> {
        let text = env::var("NODETRACKER_SEEDS").ok()?;
        Some(text.parse().expect("NODETRACKER_SEEDS is a number"))
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

/// A fault of a simulation.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    /// The longest recovery, in simulated time.
    pub(crate) bound: Duration,
    /// A seed takes as long as so many seeds of the cheapest faults.
    pub(crate) cost: u64,
    /// Runs a seed. Returns how long the recovery takes.
    pub(crate) recovery: fn(u64) -> Duration,
}

/// Runs all faults, the cheapest with `default` seeds. Prints a table of their recoveries.
pub(crate) fn measure(faults: &[Fault], default: u64) {
    println!("| fault | seeds | median | worst | bound |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for fault in faults {
        let mut seeds = Seeds::new(default);
        seeds.0.end = seeds.0.end.div_ceil(fault.cost);
        let recovery = |seed| {
            let recovery = (fault.recovery)(seed);
            let Fault { name, bound, .. } = fault;
            assert!(recovery <= *bound, "{name}: {recovery:?} > {bound:?}, seed {seed}");
            recovery
        };
        let mut recoveries: Vec<_> = seeds.map(recovery).collect();
        recoveries.sort_unstable();
        let (count, seconds) = (recoveries.len(), |time: Duration| time.as_secs_f64());
        println!(
            "| {} | {count} | {:.1} s | {:.1} s | {:.1} s |",
            fault.name,
            seconds(recoveries[count / 2]),
            seconds(recoveries[count - 1]),
            seconds(fault.bound),
        );
    }
}
