//! A contestant's turn: what several threads do together, by the wall.
//!
//! The threads start together, behind a barrier. They may be more than there are cores: a thread's waits for a core count.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::peers::{Peer, Setting};
use crate::support::steps::Step;

/// The part of a turn in which nothing counts: the contestant before has left the caches full of its own.
const WARM_UP: f64 = 0.2;
/// Nodes that a thread takes at a time to insert them.
const SHARE: usize = 512;

const WARMING_UP: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

/// Nanoseconds per operation of all threads together, over a window of time. `start` makes a thread's work: each call does
/// some operations, and returns how many.
pub(crate) fn window<W: FnMut() -> usize>(threads: usize, turn: Duration, start: impl Fn(usize) -> W + Sync) -> f64 {
    // Relaxed, all: a thread's count comes with the end of the thread, and the phase says no more than the time.
    let phase = AtomicU8::new(WARMING_UP);
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
        std::thread::sleep(turn - warm_up);
        phase.store(OVER, Ordering::Relaxed);
        let took = began.elapsed();
        let counted = threads
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"));
        // Where none was done, the first would have taken longer than this.
        took.as_nanos() as f64 / counted.sum::<usize>().max(1) as f64
    })
}

/// Nanoseconds per insertion of all threads together, into one new table after the other, each from empty to all of these
/// nodes: one table at least, and more while the turn lasts.
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

/// From the first thread's start to the last one's end.
fn growth<P: Peer + Sync>(threads: usize, nodes: &[Step]) -> Duration {
    let table = P::new(&Setting::default());
    let taken = AtomicUsize::new(0);
    let barrier = Barrier::new(threads);
    let insert = || {
        barrier.wait();
        let began = Instant::now();
        loop {
            // Relaxed: each share goes to one thread, and the nodes were there before the threads.
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
