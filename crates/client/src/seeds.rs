//! Test support: how many seeds a test runs, and how long recoveries take. The integration tests include this file.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{env, iter, thread};

/// The seeds 0, 1, 2, and so on: as many as `NODETRACKER_SEEDS` says, or as the test says. With `NODETRACKER_SEED`,
/// only that seed. Prints the seed of a test that fails.
pub(crate) struct Seeds(Range<u64>);

impl Seeds {
    pub(crate) fn new(default: u64) -> Self {
        Self(range(default))
    }
}

fn range(default: u64) -> Range<u64> {
    match number("NODETRACKER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("NODETRACKER_SEEDS").unwrap_or(default),
    }
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")),
    )
}

impl Iterator for Seeds {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0.next()
    }
}

impl Drop for Seeds {
    fn drop(&mut self) {
        drop(Running(self.0.start.saturating_sub(1)));
    }
}

/// A seed that runs. Prints the seed if the run fails.
struct Running(u64);

impl Drop for Running {
    fn drop(&mut self) {
        let seed = self.0;
        if thread::panicking() {
            eprintln!("seed {seed}; NODETRACKER_SEED={seed} runs only this seed");
        }
    }
}

/// A fault of a simulation.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    /// The longest recovery, in simulated time.
    pub(crate) bound: Duration,
    /// A seed takes as long as this many seeds of the cheapest faults.
    pub(crate) cost: u64,
    /// Runs a seed.
    pub(crate) recovery: fn(u64) -> Recovery,
}

/// The result of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recovery {
    /// How long the recovery takes.
    pub(crate) time: Duration,
    /// A number that two runs share only if all of their messages are the same.
    pub(crate) trace: u64,
}

/// Makes a test of each fault, in a module that `cargo xtask load recovery` runs. The cheapest faults have `$seeds`
/// seeds.
macro_rules! recoveries {
    ($seeds:expr; $($test:ident: $fault:expr,)*) => {
        mod recovery_of {
            use super::*;

            $(
                #[test]
                fn $test() {
                    crate::seeds::measure(&$fault, $seeds);
                }
            )*
        }
    };
}
pub(crate) use recoveries;

/// Runs a fault on all cores, with `seeds` seeds if the fault is one of the cheapest, and with the first seed twice.
/// Prints a table of the recoveries.
pub(crate) fn measure(fault: &Fault, seeds: u64) {
    let Fault { name, bound, .. } = fault;
    let mut seeds = range(seeds);
    if seeds.start == 0 {
        seeds.end = seeds.end.div_ceil(fault.cost);
    }
    let runs: Vec<_> = iter::once(seeds.start).chain(seeds).collect();
    let recovery = |seed| {
        let recovery = (fault.recovery)(seed);
        let time = recovery.time;
        assert!(time <= *bound, "{name}: {time:?} > {bound:?}, seed {seed}");
        recovery
    };
    let mut recoveries = on_all_cores(&runs, recovery);
    let replay = recoveries.remove(0);
    assert_eq!(replay, recoveries[0], "{name}: seed {} does not replay", runs[0]);
    recoveries.sort_unstable_by_key(|recovery| recovery.time);
    let (count, seconds) = (recoveries.len(), |at: usize| recoveries[at].time.as_secs_f64());
    println!("\n| fault | seeds | median | worst | bound |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    println!(
        "| {name} | {count} | {:.1} s | {:.1} s | {:.1} s |",
        seconds(count / 2),
        seconds(count - 1),
        bound.as_secs_f64(),
    );
}

/// Runs all seeds, and returns their results in the order of the seeds.
fn on_all_cores<T: Send>(seeds: &[u64], run: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let run_some = || {
        // Relaxed: the number guards no data.
        let next = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < seeds.len());
        let run = |at: usize| {
            let _running = Running(seeds[at]);
            (at, run(seeds[at]))
        };
        iter::from_fn(next).map(run).collect::<Vec<_>>()
    };
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run_some)).collect();
        let results = threads
            .into_iter()
            .map(|thread| thread.join().expect("each seed passes"));
        results.flatten().collect()
    });
    results.sort_unstable_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}
