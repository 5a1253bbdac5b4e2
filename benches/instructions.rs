//! Instructions and simulated cache misses of each operation, counted by callgrind (gungraun). The counts do not depend
//! on the load of the machine.
//!
//! ```console
//! $ cargo xtask instructions                       # beside the record
//! $ cargo bench --bench instructions               # gungraun's report of all operations
//! $ cargo bench --bench instructions -- '*::look_up_one::*'
//! ```
//!
//! The bench needs valgrind, and gungraun's runner in the library's version. The first command says how to get both.
//!
//! A count covers [`OPS`] operations in a row, on nodes in random order, in a table that was filled and used before.
//! The count includes the loop around the operations, and nothing else. The clock is a manual clock, which advances by
//! a millisecond before the operations begin. valgrind would count a reading of the system's clock as a system call.

#![allow(dead_code, reason = "a bench uses a part of what they share")]
#![allow(missing_docs, reason = "what gungraun's macros make is public")]

mod peers;
mod support;

use std::hint::black_box;
use std::time::Duration;

use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use mimalloc::MiMalloc;
use nodetracker::{ManualClock, NodeId, Proxy};

use crate::peers::baseline::Baseline;
use crate::peers::nodetracker::Nodetracker;
use crate::peers::{Peer, Setting, dashmap};
use crate::support::contestant::{Work, pass};
use crate::support::steps::{self, Step, batches};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The divisor of the counts. `profiles/src/instructions.rs` has the same number.
const OPS: usize = 100_000;
/// Nodes that are in the table but not in the operations.
const OTHERS: usize = 100_000;
const PROXIES: u32 = 1_000;

type Dashmap = dashmap::Default;

/// The operations to count, with their data. The bench returns them, so that dropping them does not count.
type Counted = Box<dyn FnMut()>;

/// A filled table, the steps of the operations, and others.
struct Filled<P> {
    table: P,
    clock: ManualClock,
    steps: Vec<Step>,
    others: Vec<Step>,
}

impl<P: Peer + 'static> Filled<P> {
    fn empty() -> Self {
        let clock = ManualClock::new();
        clock.advance(Duration::from_secs(1));
        let setting = Setting {
            clock: Some(clock.clone()),
            ..Setting::default()
        };
        let mut steps = steps::uniform(&steps::nodes(OPS + OTHERS, PROXIES, 1));
        let others = steps.split_off(OPS);
        Self {
            table: P::new(&setting),
            clock,
            steps,
            others,
        }
    }

    fn new() -> Self {
        let filled = Self::empty();
        let all = filled.others.iter().chain(&filled.steps);
        all.for_each(|step| _ = filled.table.add(step.node, step.proxy));
        filled
    }

    /// The operations, on a table on which similar operations have run.
    fn pass(self, work: Work) -> Counted {
        pass(&self.table, work, &self.others[..OTHERS / 10]);
        self.clock.advance(Duration::from_millis(1));
        Box::new(move || _ = pass(&self.table, work, &self.steps))
    }
}

fn prepare<P: Peer + 'static>(work: Work) -> Counted {
    Filled::<P>::new().pass(work)
}

fn two_routes<P: Peer + 'static>() -> Counted {
    let filled = Filled::<P>::new();
    filled.clock.advance(Duration::from_millis(1));
    for step in filled.others.iter().chain(&filled.steps) {
        filled.table.add(step.node, (step.proxy + 1) % PROXIES);
    }
    filled.pass(Work::LookUp)
}

fn by_handle<P: Peer + 'static>() -> Counted {
    let mut filled = Filled::<P>::new();
    filled.steps = steps::by_proxy(&filled.steps);
    let handles: Vec<_> = batches(&filled.steps)
        .map(|batch| filled.table.announce(batch))
        .collect();
    filled.clock.advance(Duration::from_millis(1));
    Box::new(move || {
        for (batch, handles) in batches(&filled.steps).zip(&handles) {
            filled.table.heartbeat(batch, handles);
        }
    })
}

/// Batches that add a third route to each node. Each addition replaces a list, and retires the replaced list.
///
/// A thread that retires flushes, and so frees objects that other calls have retired. To see what the flushes cost, set
/// `FLUSH_OBJECTS` and `FLUSH_BYTES` in `src/sync/epoch.rs` to their types' maximum, and count again.
fn third_route() -> Counted {
    let mut filled = Filled::<Nodetracker>::new();
    let others = |step: &Step, more| (step.proxy + more) % PROXIES;
    filled.clock.advance(Duration::from_millis(1));
    for step in &filled.steps {
        filled.table.add(step.node, others(step, 1));
    }
    filled.clock.advance(Duration::from_millis(1));
    for step in &mut filled.steps {
        step.proxy = others(step, 2);
    }
    filled.steps = steps::by_proxy(&filled.steps);
    Box::new(move || {
        for batch in batches(&filled.steps) {
            black_box(filled.table.announce(batch));
        }
    })
}

fn from_empty<P: Peer + 'static>() -> Counted {
    let filled = Filled::<P>::empty();
    Box::new(move || {
        for step in &filled.steps {
            black_box(filled.table.add(step.node, step.proxy));
        }
    })
}

fn removal<P: Peer + 'static>() -> Counted {
    let filled = Filled::<P>::new();
    Box::new(move || {
        for step in &filled.steps {
            black_box(filled.table.remove_node(step.node));
        }
    })
}

/// Of a table that has the operations' nodes only.
fn whole_sweep<P: Peer + 'static>() -> Counted {
    let filled = Filled::<P>::empty();
    for step in &filled.steps {
        filled.table.add(step.node, step.proxy);
    }
    Box::new(move || assert_eq!(filled.table.sweep(|| {}), 0))
}

/// Nodes with names of 20 bytes, which only the table keeps beside UUIDs.
fn names() -> Counted {
    let Filled { table, .. } = Filled::<Nodetracker>::empty();
    let proxy = Proxy {
        id: "proxy",
        cluster_name: "main",
        addr: "10.0.0.1:3080",
    };
    let proxy = table.table().register_proxy(&proxy).expect("the limit is far");
    let name = |n| -> NodeId { format!("node-{n:07}.cluster").parse().expect("it is a name") };
    let mut nodes: Vec<_> = (0..OPS).map(name).collect();
    fastrand::Rng::with_seed(2).shuffle(&mut nodes);
    for node in &nodes {
        table.table().add_node(node, proxy).expect("the limit is far");
    }
    Box::new(move || {
        for node in &nodes {
            black_box(table.table().get_proxies(node));
        }
    })
}

#[library_benchmark]
#[bench::nodetracker(prepare::<Nodetracker>(Work::LookUp))]
#[bench::dashmap(prepare::<Dashmap>(Work::LookUp))]
#[bench::hashbrown(prepare::<Baseline>(Work::LookUp))]
fn look_up_one(mut counted: Counted) -> Counted {
    counted();
    counted
}

#[library_benchmark]
#[bench::nodetracker(prepare::<Nodetracker>(Work::LookUpBatch))]
#[bench::dashmap(prepare::<Dashmap>(Work::LookUpBatch))]
#[bench::hashbrown(prepare::<Baseline>(Work::LookUpBatch))]
fn look_up_in_batches(mut counted: Counted) -> Counted {
    counted();
    counted
}

#[library_benchmark]
#[bench::nodetracker(two_routes::<Nodetracker>())]
#[bench::dashmap(two_routes::<Dashmap>())]
#[bench::hashbrown(two_routes::<Baseline>())]
fn look_up_two_routes(mut counted: Counted) -> Counted {
    counted();
    counted
}

#[library_benchmark]
#[bench::nodetracker(names())]
fn look_up_name(mut counted: Counted) -> Counted {
    counted();
    counted
}

#[library_benchmark]
#[bench::nodetracker(prepare::<Nodetracker>(Work::Refresh))]
#[bench::dashmap(prepare::<Dashmap>(Work::Refresh))]
#[bench::hashbrown(prepare::<Baseline>(Work::Refresh))]
fn refresh_one(mut counted: Counted) -> Counted {
    counted();
    counted
}

#[library_benchmark]
#[bench::nodetracker(by_handle::<Nodetracker>())]
#[bench::dashmap(by_handle::<Dashmap>())]
#[bench::hashbrown(by_handle::<Baseline>())]
fn refresh_by_handle(mut counted: Counted) -> Counted {
    counted();
    counted
}

#[library_benchmark]
#[bench::nodetracker(third_route())]
fn add_third_route_in_batches(mut counted: Counted) -> Counted {
    counted();
    counted
}

#[library_benchmark]
#[bench::nodetracker(from_empty::<Nodetracker>())]
#[bench::dashmap(from_empty::<Dashmap>())]
#[bench::hashbrown(from_empty::<Baseline>())]
fn insert_from_empty(mut counted: Counted) -> Counted {
    counted();
    counted
}

#[library_benchmark]
#[bench::nodetracker(removal::<Nodetracker>())]
#[bench::dashmap(removal::<Dashmap>())]
#[bench::hashbrown(removal::<Baseline>())]
fn remove_node(mut counted: Counted) -> Counted {
    counted();
    counted
}

#[library_benchmark]
#[bench::nodetracker(whole_sweep::<Nodetracker>())]
#[bench::dashmap(whole_sweep::<Dashmap>())]
#[bench::hashbrown(whole_sweep::<Baseline>())]
fn sweep_route(mut counted: Counted) -> Counted {
    counted();
    counted
}

library_benchmark_group!(
    name = operations,
    benchmarks = [
        look_up_one,
        look_up_in_batches,
        look_up_two_routes,
        look_up_name,
        refresh_one,
        refresh_by_handle,
        add_third_route_in_batches,
        insert_from_empty,
        remove_node,
        sweep_route,
    ]
);

main!(
    config = LibraryBenchmarkConfig::default()
        // The first level has the size that most processors have. The last has about the size of a core's own cache.
        .tool(Callgrind::with_args([
            "--I1=32768,8,64",
            "--D1=32768,8,64",
            "--LL=1048576,16,64"
        ])),
    library_benchmark_groups = operations
);
