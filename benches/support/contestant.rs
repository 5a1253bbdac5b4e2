//! One filled table of any contestant, and the ways to measure it.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::peers::{Peer, Setting};
use crate::support::histogram::{Histogram, histogram};
use crate::support::own_time::{Laps, Stopwatch};
use crate::support::steps::{BATCH, Step, batches};

/// The kind of an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    LookUp,
    Refresh,
    /// One in this many operations is a refresh; the others are look-ups.
    Mixed(usize),
    /// In batches.
    LookUpBatch,
}

/// Makes a table with these nodes, in their order.
pub(crate) fn filled<P: Peer>(nodes: &[Step]) -> P {
    let table = P::new(&Setting::default());
    insert(&table, nodes);
    table
}

fn insert<P: Peer>(table: &P, nodes: &[Step]) {
    for step in nodes {
        table.add(step.node, step.proxy);
    }
}

/// Goes through the steps once; returns the thread's own time.
pub(crate) fn pass<P: Peer>(table: &P, work: Work, steps: &[Step]) -> Duration {
    let watch = Stopwatch::start();
    go_through(table, work, steps);
    watch.elapsed()
}

/// Goes through the steps once.
#[inline]
pub(crate) fn go_through<P: Peer>(table: &P, work: Work, steps: &[Step]) {
    match work {
        Work::LookUp => {
            for step in steps {
                black_box(table.look_up(step.node));
            }
        }
        Work::Refresh => {
            for step in steps {
                black_box(table.add(step.node, step.proxy));
            }
        }
        Work::Mixed(every) => {
            for steps in steps.chunks(every) {
                black_box(table.add(steps[0].node, steps[0].proxy));
                for step in &steps[1..] {
                    black_box(table.look_up(step.node));
                }
            }
        }
        Work::LookUpBatch => {
            for batch in steps.chunks(BATCH) {
                table.look_up_batch(batch);
            }
        }
    }
}

fn per_op(took: Duration, ops: usize) -> f64 {
    took.as_nanos() as f64 / ops as f64
}

/// Nanoseconds per operation if this many threads share the steps: the threads' own time, divided by the number of
/// cores that they have.
pub(crate) fn threads<P: Peer + Sync>(table: &P, work: Work, threads: usize, steps: &[Step]) -> f64 {
    let barrier = Barrier::new(threads);
    let parts: Vec<_> = steps.chunks(steps.len().div_ceil(threads)).collect();
    let own = in_threads(threads, |thread| {
        barrier.wait();
        pass(table, work, parts[thread])
    });
    per_op(own, steps.len()) / cores(threads)
}

fn in_threads(threads: usize, run: impl Fn(usize) -> Duration + Sync) -> Duration {
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        let own = threads
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"));
        own.sum()
    })
}

/// The number of cores that this many threads can use.
fn cores(threads: usize) -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    threads.min(cores) as f64
}

/// Nanoseconds per insertion into a new table, growth included, as in [`threads`].
pub(crate) fn grow<P: Peer + Sync>(threads: usize, nodes: &[Step]) -> f64 {
    let table = P::new(&Setting::default());
    let parts: Vec<_> = nodes.chunks(nodes.len().div_ceil(threads)).collect();
    let own = in_threads(threads, |thread| {
        let watch = Stopwatch::start();
        insert(&table, parts[thread]);
        watch.elapsed()
    });
    per_op(own, nodes.len()) / cores(threads)
}

/// The same in batches, with one thread.
pub(crate) fn grow_in_batches<P: Peer>(by_proxy: &[Step]) -> f64 {
    let table = P::new(&Setting::default());
    let watch = Stopwatch::start();
    for batch in batches(by_proxy) {
        black_box(table.announce(batch));
    }
    per_op(watch.elapsed(), by_proxy.len())
}

/// Nanoseconds per refresh in batches of one proxy, whose handles come with them.
pub(crate) fn heartbeats<P: Peer>(table: &P, batches: &[(&[Step], Vec<u64>)]) -> f64 {
    let watch = Stopwatch::start();
    for (nodes, handles) in batches {
        table.heartbeat(nodes, handles);
    }
    per_op(watch.elapsed(), batches.iter().map(|(nodes, _)| nodes.len()).sum())
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

/// Microseconds of the longest insertion, and how long each took.
pub(crate) fn pauses<P: Peer>(nodes: &[Step]) -> (f64, Histogram) {
    let table = P::new(&Setting::default());
    let mut pauses = histogram();
    let mut longest = Duration::ZERO;
    let mut laps = Laps::start();
    for step in nodes {
        table.add(step.node, step.proxy);
        let (_, own) = laps.lap();
        longest = longest.max(own);
        pauses.saturating_record(nanos(own));
    }
    (longest.as_nanos() as f64 / 1_000.0, pauses)
}

/// Nanoseconds per route of a sweep that finds nothing, and microseconds of its longest step.
pub(crate) fn sweep<P: Peer>(table: &P, routes: usize) -> (f64, f64) {
    let mut laps = Laps::start();
    let mut longest = Duration::ZERO;
    let watch = Stopwatch::start();
    let removed = table.sweep(|| longest = longest.max(laps.lap().1));
    let took = watch.elapsed();
    assert_eq!(removed, 0, "nothing was expired");
    (per_op(took, routes), longest.as_nanos() as f64 / 1_000.0)
}

/// How many nodes a churning thread has in the table at a time.
const WINDOW: usize = 1_000;

/// The times of look-ups, by the wall clock and in own time. Meanwhile, one thread for each list of `strangers` inserts
/// and removes these nodes, for `length`.
pub(crate) fn tail<P: Peer + Sync>(
    table: &P,
    steps: &[Step],
    strangers: &[Vec<Step>],
    length: Duration,
) -> (Histogram, Histogram) {
    let done = AtomicBool::new(false);
    let barrier = Barrier::new(strangers.len() + 1);
    std::thread::scope(|scope| {
        for strangers in strangers {
            let (done, barrier) = (&done, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let mut at = 0;
                while !done.load(Ordering::Relaxed) {
                    let (coming, leaving) = (at % strangers.len(), (at + WINDOW) % strangers.len());
                    table.add(strangers[coming].node, strangers[coming].proxy);
                    table.remove_node(strangers[leaving].node);
                    at += 1;
                }
                for stranger in strangers {
                    table.remove_node(stranger.node);
                }
            });
        }
        let (mut wall, mut own) = (histogram(), histogram());
        barrier.wait();
        let start = Instant::now();
        let mut laps = Laps::start();
        for some in steps.chunks(1_024).cycle() {
            if start.elapsed() > length {
                break;
            }
            laps.skip();
            for step in some {
                black_box(table.look_up(step.node));
                let lap = laps.lap();
                wall.saturating_record(nanos(lap.0));
                own.saturating_record(nanos(lap.1));
            }
        }
        done.store(true, Ordering::Relaxed);
        (wall, own)
    })
}
