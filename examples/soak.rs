//! A tracker's day in a few minutes: nodes and proxies keep changing, and the table's memory does not grow.
//!
//! ```console
//! $ cargo run --release --example soak -- 600           # seconds; 60 by default
//! $ cargo run --release --example soak -- 60 batches    # batches and handles only
//! ```
//!
//! Two writers add new nodes all the time, refresh them by handle, and give some nodes a second route. Then they remove
//! a third of the nodes, and the routes of another third; the rest expires. Further proxies, the strangers, register
//! with new addresses and report some nodes. Then they are removed, or stop reporting. A reader looks nodes up, walks
//! the table and writes snapshots, a follower takes the changes, and a sweeper sweeps. Every ten seconds, each writer
//! drops all of its nodes at once, so that shards shrink and grow again.
//!
//! With `batches`, the writers use only batches and handles, all routes expire, no thread reads, and the follower never
//! takes a change. Single calls and readers pin often: they would free the garbage of a batch.
//!
//! Ten times a second, the program reads the bytes in use (from a counting allocator) and the process's resident
//! memory. After the first quarter, the maximum of each quarter must be at most a tenth above the second quarter's
//! maximum. In the end, all routes expire: the table must shrink to the bytes of its followers' rings, and to nothing
//! when the table is dropped. Otherwise, the exit code is 1.

#[allow(dead_code, reason = "it uses a part of what it shares with the benches")]
#[path = "../benches/support/counting.rs"]
mod counting;

use std::alloc::System;
use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use counting::Counting;
use fastrand::Rng;
use nodetracker::{NodeId, Proxy, ProxyRef, RouteHandle, RouteTable};
use uuid::Uuid;

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting(System);

const KEEP_ALIVE: Duration = Duration::from_secs(2);
const WRITERS: usize = 2;
/// Proxies that stay.
const PROXIES: usize = 64;
/// Nodes that are brought up at a time.
const BATCH: usize = 500;
/// Batches that a writer keeps alive.
const BATCHES: usize = 200;
/// A writer's time for one batch, if the machine has as much.
const PACE: Duration = Duration::from_millis(25);
/// How often a writer drops its nodes.
const DROP_INTERVAL: Duration = Duration::from_secs(10);
/// The memory that a table without routes may take. It has the last changes for followers, 512 in each of 257 rings,
/// which are some 8 MiB; empty indexes; and the garbage of the last operations.
const EMPTY_BYTES: usize = 12 << 20;
/// The bytes that crossbeam's bags may still hold when the table is gone.
const AFTERWARDS: usize = 1 << 20;

struct Soak {
    table: RouteTable,
    stop: AtomicBool,
    operations: AtomicU64,
    seed: u64,
    batches_only: bool,
}

fn register(table: &RouteTable, id: &str, addr: &str) -> Option<ProxyRef> {
    let cluster_name = "a cluster whose name is too long to be stored inline";
    table.register_proxy(&Proxy { id, cluster_name, addr }).ok()
}

/// A new node: a UUID seven times out of eight, otherwise a name.
fn new_node(rng: &mut Rng) -> NodeId {
    let uuid = Uuid::from_u128(rng.u128(..));
    if rng.u8(..8) == 0 {
        format!("{uuid}.cluster").parse().expect("a name")
    } else {
        uuid.into()
    }
}

/// Nodes of one proxy that a writer keeps alive.
struct Batch {
    proxy: usize,
    nodes: Vec<NodeId>,
    handles: Vec<RouteHandle>,
}

impl Soak {
    fn is_over(&self) -> bool {
        // Relaxed, here and below: a flag alone.
        self.stop.load(Ordering::Relaxed)
    }

    fn count(&self, operations: usize) {
        self.operations.fetch_add(operations as u64, Ordering::Relaxed);
    }

    /// Repeats an action at a pace, until the end. A late repetition is not repeated sooner.
    fn at_pace(&self, pace: Duration, mut step: impl FnMut()) {
        while !self.is_over() {
            let next = Instant::now() + pace;
            step();
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    /// A reference of a proxy that stays. If the sweeper has dropped the proxy on a slow machine, registers the proxy
    /// again.
    fn proxy(&self, number: usize) -> ProxyRef {
        register(&self.table, &format!("proxy-{number}"), "proxy:3080").expect("there is room")
    }

    fn bring_up(&self, proxy: usize, nodes: Vec<NodeId>) -> Batch {
        let reference = self.proxy(proxy);
        let added = self.table.add_nodes_with_handles(&nodes, reference);
        let added = added.expect("it was registered just now, and there is room");
        self.count(nodes.len());
        Batch {
            proxy,
            nodes,
            handles: added.handles,
        }
    }

    fn keep_alive(&self, batch: &mut Batch) {
        let refreshed = self.table.refresh_routes(&batch.handles, self.proxy(batch.proxy));
        self.count(batch.handles.len());
        // Nodes whose records have moved, or whose routes expired because this thread was late.
        if refreshed.is_err() || refreshed.is_ok_and(|refreshed| !refreshed.gone.is_empty()) {
            *batch = self.bring_up(batch.proxy, std::mem::take(&mut batch.nodes));
        }
    }

    /// Ends a batch: of each three nodes one is removed, one loses this route, one is left to expire.
    fn let_go(&self, batch: &Batch) {
        if self.batches_only {
            return;
        }
        let proxy = self.proxy(batch.proxy);
        for (number, node) in batch.nodes.iter().enumerate() {
            match number % 3 {
                0 => _ = self.table.remove_node(node),
                1 => _ = self.table.remove_route(node, proxy),
                _ => {}
            }
        }
        self.count(batch.nodes.len());
    }

    fn write(&self, writer: usize) {
        let mut rng = Rng::with_seed(self.seed ^ writer as u64);
        let mut batches: VecDeque<Batch> = VecDeque::new();
        let mut turn = Instant::now();
        // Half of the time that a round of heartbeats needs.
        let beats = BATCHES * 2 * PACE.as_millis() as usize / KEEP_ALIVE.as_millis() as usize + 1;
        self.at_pace(PACE, || {
            let nodes = (0..BATCH).map(|_| new_node(&mut rng)).collect();
            batches.push_back(self.bring_up(rng.usize(..PROXIES), nodes));
            // The oldest beats come first, so that each batch has its turn.
            for _ in 0..beats.min(batches.len()) {
                let mut batch = batches.pop_front().expect("there are as many");
                self.keep_alive(&mut batch);
                batches.push_back(batch);
            }
            // A second route, by another proxy, of some of them.
            let batch = &batches[rng.usize(..batches.len())];
            let some = &batch.nodes[..rng.usize(..batch.nodes.len() / 4)];
            self.table
                .add_nodes(some, self.proxy(rng.usize(..PROXIES)))
                .expect("there is room");
            if batches.len() > BATCHES {
                let at = rng.usize(..batches.len());
                self.let_go(&batches.swap_remove_back(at).expect("there is one"));
            }
            if turn.elapsed() > DROP_INTERVAL {
                turn = Instant::now();
                batches.drain(..).for_each(|batch| self.let_go(&batch));
            }
        });
    }

    fn strangers(&self) {
        let mut rng = Rng::with_seed(!self.seed);
        let mut number = 0_u64;
        self.at_pace(Duration::from_millis(10), || {
            for _ in 0..10 {
                number += 1;
                let (id, addr) = (format!("stranger-{number}"), format!("stranger-{number}.example:3080"));
                // There is room for a while: the silent nodes go after an interval.
                let Some(proxy) = register(&self.table, &id, &addr) else {
                    continue;
                };
                for _ in 0..3 {
                    // The sweeper does not drop one that was registered within the interval.
                    _ = self.table.add_node(&new_node(&mut rng), proxy);
                }
                if rng.bool() {
                    self.table.remove_proxy(proxy);
                }
                self.count(5);
            }
        });
    }

    fn read(&self) {
        let mut rng = Rng::with_seed(self.seed.rotate_left(7));
        let mut known = Vec::new();
        let mut turn = 0_usize;
        self.at_pace(Duration::from_millis(5), || {
            if turn.is_multiple_of(400) {
                known.clear();
                self.table.for_each_route(|node, _| {
                    if known.len() < 10_000 {
                        known.push(node.clone());
                    }
                });
            }
            if turn % 400 == 200 {
                self.table.write_snapshot(io::sink()).expect("a sink takes all");
            }
            turn += 1;
            let some = &known[rng.usize(..=known.len().saturating_sub(200))..];
            let some = &some[..some.len().min(200)];
            self.table.get_proxies_batch(some).for_each(drop);
            some.iter().for_each(|node| _ = self.table.get_proxies(node));
            self.count(2 * some.len());
        });
    }

    fn follow(&self) {
        let mut changes = self.table.subscribe();
        self.at_pace(Duration::from_millis(20), || {
            // A subscriber that lags would read the table again. This subscriber keeps no copy.
            _ = changes.drain_events(100_000, |_| ());
        });
    }

    fn sweep(&self) {
        self.at_pace(Duration::from_millis(1), || _ = self.table.sweep(5_000));
    }
}

/// The most of a figure in each quarter.
#[derive(Default)]
struct Peaks {
    bytes: [usize; 4],
    resident: [usize; 4],
}

impl Peaks {
    fn note(&mut self, quarter: usize, bytes: usize, resident: usize) {
        self.bytes[quarter] = self.bytes[quarter].max(bytes);
        self.resident[quarter] = self.resident[quarter].max(resident);
    }
}

/// The process's resident memory in bytes; zero if the system does not report it.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<usize>().ok())
        .unwrap_or(0)
        << 10
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (seconds, batches_only) = match arguments.as_slice() {
        [] => ("60", false),
        [seconds] => (*seconds, false),
        [seconds, "batches"] => (*seconds, true),
        _ => ("", false),
    };
    let Ok(seconds) = seconds.parse::<u64>() else {
        eprintln!("usage: soak [SECONDS [batches]]");
        return ExitCode::from(2);
    };
    // Quarters are compared, so each has to include a drop of every writer.
    let least = 4 * DROP_INTERVAL.as_secs();
    if seconds < least {
        eprintln!("{seconds} seconds are too few to tell: {least} at least");
        return ExitCode::from(2);
    }
    let seed = env::var("NODETRACKER_SEED").map_or_else(|_| fastrand::u64(..), |text| text.parse().expect("a seed"));
    println!("{seconds} s, NODETRACKER_SEED={seed}");
    let at_first = counting::live();
    let table = RouteTable::builder()
        .keep_alive(KEEP_ALIVE)
        .max_proxies(10_000)
        .build()
        .expect("possible limits");
    let soak = Soak {
        table,
        stop: AtomicBool::new(false),
        operations: AtomicU64::new(0),
        seed,
        batches_only,
    };
    let mut peaks = Peaks::default();
    let (begin, length) = (Instant::now(), Duration::from_secs(seconds));
    thread::scope(|scope| {
        let soak = &soak;
        (0..WRITERS).for_each(|writer| _ = scope.spawn(move || soak.write(writer)));
        let tasks: &[fn(&Soak)] = match batches_only {
            false => &[Soak::strangers, Soak::read, Soak::follow, Soak::sweep],
            true => &[Soak::sweep],
        };
        let _follower = batches_only.then(|| soak.table.subscribe());
        tasks.iter().for_each(|task| _ = scope.spawn(move || task(soak)));
        println!(
            "{:>8} {:>12} {:>9} {:>9} {:>9} {:>12} {:>12}",
            "s", "operations", "routes", "proxies", "garbage", "MiB in use", "MiB resident"
        );
        let mut next = Duration::ZERO;
        while begin.elapsed() < length {
            let (bytes, resident) = (counting::live(), resident());
            let quarter = (begin.elapsed().as_millis() * 4 / length.as_millis().max(1)).min(3) as usize;
            peaks.note(quarter, bytes, resident);
            if begin.elapsed() >= next {
                let (stats, operations) = (soak.table.stats(), soak.operations.load(Ordering::Relaxed));
                let seconds = next.as_secs();
                let (routes, proxies) = (stats.routes, stats.proxies);
                let garbage = stats.garbage;
                println!(
                    "{seconds:>8} {operations:>12} {routes:>9} {proxies:>9} {garbage:>9} {:>12.1} {:>12.1}",
                    mib(bytes),
                    mib(resident)
                );
                next += length / 20;
            }
            thread::sleep(Duration::from_millis(100));
        }
        soak.stop.store(true, Ordering::Relaxed);
    });

    let mut fine = true;
    let mut check = |what: &str, holds: bool| {
        println!("{}: {what}", if holds { "holds" } else { "FAILS" });
        fine &= holds;
    };
    for (what, peaks) in [("bytes in use", peaks.bytes), ("resident memory", peaks.resident)] {
        let [_, second, rest @ ..] = peaks;
        let most = rest.into_iter().max().unwrap_or(0);
        let text = format!(
            "{what}: {:.1} MiB at most in the second quarter, {:.1} after it",
            mib(second),
            mib(most)
        );
        check(&text, most <= second + second / 10);
    }
    // Removes the proxies that stayed too long.
    let end = Instant::now() + 10 * KEEP_ALIVE;
    while Instant::now() < end {
        soak.table.sweep(100_000);
        thread::sleep(Duration::from_millis(1));
    }
    let (stats, low) = (soak.table.stats(), counting::live() - at_first);
    let text = format!(
        "all expired: {} routes, {} proxies, {:.1} MiB",
        stats.routes,
        stats.proxies,
        mib(low)
    );
    check(&text, stats.routes == 0 && stats.proxies == 0 && low < EMPTY_BYTES);
    drop(soak);
    // A thread of its own, which frees the garbage of the ended threads.
    for _ in 0..1_000 {
        let other = RouteTable::new();
        other.sweep(1);
    }
    let left = counting::live().saturating_sub(at_first);
    check(&format!("dropped: {:.1} MiB are left", mib(left)), left < AFTERWARDS);
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
