//! A contestant's turn: the throughput of several threads together, by the wall clock.
//!
//! The threads start together, behind a barrier. If there are more threads than cores, the threads' waits for a core
//! count.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::peers::{Peer, Setting};
use crate::support::steps::Step;

/// The part of a turn before operations count: the previous contestant has evicted this contestant's cache lines.
const WARM_UP: f64 = 0.2;
/// Nodes that a thread takes from the common supply at a time.
const SHARE: usize = 512;

const WARMING_UP: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

/// Nanoseconds per operation of all threads together, over a window of time. `start` returns a thread's work; each call
/// of the work does some operations, at least one, and returns their number. If no thread gets a core in the window,
/// the window is repeated.
pub(crate) fn window<W: FnMut() -> usize>(threads: usize, turn: Duration, start: impl Fn(usize) -> W + Sync) -> f64 {
    // Relaxed, all: neither atomic publishes other data; the counts are read after the threads have been joined.
    let phase = AtomicU8::new(WARMING_UP);
    let has_counted = AtomicBool::new(false);
    let barrier = Barrier::new(threads + 1);
    let count = |thread| {
        let mut work = start(thread);
        let mut counted = 0;
        barrier.wait();
        loop {
            let phase = phase.load(Ordering::Relaxed);
            if phase == OVER {
                return counted;
            }
            let done = work();
            if phase == COUNTING {
                if counted == 0 {
                    has_counted.store(true, Ordering::Relaxed);
                }
                counted += done;
            }
        }
    };
    std::thread::scope(|scope| {
        let count = &count;
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || count(thread))).collect();
        barrier.wait();
        let warm_up = turn.mul_f64(WARM_UP);
        std::thread::sleep(warm_up);
        let began = Instant::now();
        phase.store(COUNTING, Ordering::Relaxed);
        while !has_counted.load(Ordering::Relaxed) || began.elapsed() < turn - warm_up {
            std::thread::sleep(turn - warm_up);
        }
        phase.store(OVER, Ordering::Relaxed);
        let took = began.elapsed();
        let counted = threads
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"));
        took.as_nanos() as f64 / counted.sum::<usize>() as f64
    })
}

/// Nanoseconds per insertion of all threads together, from an empty table to all `nodes`. Further tables follow until
/// the turn is over.
pub(crate) fn growths<P: Peer + Sync>(threads: usize, turn: Duration, nodes: &[Step]) -> f64 {
    let began = Instant::now();
    let mut took = Duration::ZERO;
    let mut inserted = 0;
    while inserted == 0 || began.elapsed() < turn {
        took += growth::<P>(threads, nodes);
        inserted += nodes.len();
    }
    took.as_nanos() as f64 / inserted as f64
}

/// The time from the first thread's start to the last thread's end.
fn growth<P: Peer + Sync>(threads: usize, nodes: &[Step]) -> Duration {
    let table = P::new(&Setting::default());
    let taken = AtomicUsize::new(0);
    let barrier = Barrier::new(threads);
    let insert = || {
        barrier.wait();
        let began = Instant::now();
        loop {
            // Relaxed: atomicity alone gives each share to one thread; the nodes were written before the threads
            // started.
            let from = taken.fetch_add(SHARE, Ordering::Relaxed);
            let Some(rest) = nodes.get(from..) else { break };
            for step in &rest[..rest.len().min(SHARE)] {
                table.add(step.node, step.proxy);
            }
        }
        (began, Instant::now())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(insert)).collect();
        let times = threads
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"));
        let (began, ended): (Vec<_>, Vec<_>) = times.unzip();
        match (began.into_iter().min(), ended.into_iter().max()) {
            (Some(began), Some(ended)) => ended - began,
            _ => Duration::ZERO,
        }
    })
}
