//! The table beside its peers in one run, all taking turns: what one operation costs with one thread or several, growth
//! and its longest pause, the tail of look-ups under churn, sweeping.
//!
//! ```console
//! $ cargo bench --bench rows                             # 1,000,000 nodes; some minutes
//! $ NODES=100k,1M,10M cargo bench --bench rows
//! $ cargo bench --bench rows -- insert sweep             # only the rows whose title has one of these words
//! $ ROUNDS=21 cargo bench --bench rows -- 'look-up'
//! ```
//!
//! The columns are a contestant's median, and the table's ratio to it: below 1, the table is better. Only ratios within
//! one run mean something. Times are threads' own: without their waits for a core, with their waits for locks; divided by
//! the operations, and by the cores where several threads run. Before anything is measured, all contestants must give the same answers.

#![allow(dead_code, reason = "a bench uses a part of what they share")]

mod peers;
mod support;

use std::time::Duration;

use mimalloc::MiMalloc;

use crate::peers::floor::Floor;
use crate::peers::{Peer, for_each_peer};
use crate::support::check::all_agree;
use crate::support::contestant::{
    Work, filled, grow, grow_in_batches, heartbeats, pass, sweep, tail, threads, worst_insert,
};
use crate::support::report::{Entry, Row};
use crate::support::steps::{self, BATCH, Step, batches, size_name};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const PROXIES: u32 = 1_000;
/// Steps that a contestant goes through in its turn, at most. Before they are timed, it goes through so many others: the
/// contestant before it has left the caches full of its own.
const TURN: usize = 1_000_000;

/// What to measure.
struct Plan {
    words: Vec<String>,
    rounds: usize,
}

impl Plan {
    fn new() -> Self {
        let words = std::env::args().skip(1).filter(|word| !word.starts_with("--"));
        let rounds = std::env::var("ROUNDS").map_or(9, |rounds| rounds.parse().expect("ROUNDS is a number"));
        Self {
            words: words.collect(),
            rounds,
        }
    }

    fn wants(&self, title: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| title.contains(word.as_str()))
    }
}

/// Nodes, and the orders in which they are accessed.
struct Nodes {
    size: String,
    nodes: Vec<Step>,
    uniform: Vec<Step>,
    zipf: Vec<Step>,
    by_proxy: Vec<Step>,
}

impl Nodes {
    fn new(count: usize) -> Self {
        let nodes = steps::nodes(count, PROXIES, 1);
        Self {
            size: size_name(count),
            uniform: steps::uniform(&nodes),
            zipf: steps::zipf(&nodes),
            by_proxy: steps::by_proxy(&nodes),
            nodes,
        }
    }

    fn order(&self, name: &str) -> &[Step] {
        if name == "zipf" { &self.zipf } else { &self.uniform }
    }

    /// Steps to warm up with, and steps to measure.
    fn turn(&self, order: &str) -> (&[Step], &[Step]) {
        turn(self.order(order), TURN)
    }
}

/// The last and the first of all, `most` of them at most: others where there are so many, and the same where not.
fn turn<T>(all: &[T], most: usize) -> (&[T], &[T]) {
    let len = all.len().min(most);
    (&all[all.len() - len..], &all[..len])
}

/// A filled table, as the rows see it.
trait Contestant {
    fn name(&self) -> &'static str;
    fn pass(&self, work: Work, steps: &[Step]) -> f64;
    fn sweep(&self, nodes: &[Step]) -> (f64, f64);
    fn announce(&self, nodes: &[Step]) -> Vec<u64>;
    fn heartbeats(&self, batches: &[(&[Step], Vec<u64>)]) -> f64;
    /// `None` for who can have but one thread.
    fn shared(&self) -> Option<&dyn Shared>;
}

trait Shared {
    fn threads(&self, work: Work, count: usize, steps: &[Step]) -> f64;
    /// The quantiles of [`QUANTILES`] in own time, and the last by the wall too, in microseconds.
    fn tail(&self, steps: &[Step], strangers: &[Vec<Step>]) -> [f64; 4];
}

const QUANTILES: [f64; 3] = [0.5, 0.999, 0.9999];

impl<P: Peer + Sync> Shared for P {
    fn threads(&self, work: Work, count: usize, steps: &[Step]) -> f64 {
        threads(self, work, count, steps)
    }

    fn tail(&self, steps: &[Step], strangers: &[Vec<Step>]) -> [f64; 4] {
        let (wall, own) = tail(self, steps, strangers, Duration::from_millis(1_000));
        let [p50, p999, p9999] = QUANTILES.map(|share| own.quantile(share));
        [p50, p999, p9999, wall.quantile(QUANTILES[2])].map(|nanos| nanos / 1_000.0)
    }
}

struct Alone<P>(P);
struct Together<P>(P);

macro_rules! contestant {
    ($wrapper:ident, $($bound:ident)+, $shared:expr) => {
        impl<P: $($bound +)+> Contestant for $wrapper<P> {
            fn name(&self) -> &'static str {
                P::NAME
            }

            fn pass(&self, work: Work, steps: &[Step]) -> f64 {
                pass(&self.0, work, steps).as_nanos() as f64 / steps.len() as f64
            }

            fn sweep(&self, nodes: &[Step]) -> (f64, f64) {
                sweep(&self.0, nodes)
            }

            fn announce(&self, nodes: &[Step]) -> Vec<u64> {
                self.0.announce(nodes)
            }

            fn heartbeats(&self, batches: &[(&[Step], Vec<u64>)]) -> f64 {
                heartbeats(&self.0, batches)
            }

            fn shared(&self) -> Option<&dyn Shared> {
                let shared: fn(&P) -> Option<&dyn Shared> = $shared;
                shared(&self.0)
            }
        }
    };
}
contestant!(Alone, Peer, |_| None);
contestant!(Together, Peer Sync, |peer| Some(peer));

fn one_thread(plan: &Plan, nodes: &Nodes, tables: &[Box<dyn Contestant>]) {
    let works = [
        ("look-up", Work::LookUp),
        ("look-up in batches of 64", Work::LookUpBatch),
        ("refresh", Work::Refresh),
    ];
    for (work_name, work) in works {
        for order in ["uniform", "zipf"] {
            let title = format!("{work_name}, one thread, {order}, {}", nodes.size);
            if !plan.wants(&title) {
                continue;
            }
            let entry = |table| {
                let table: &dyn Contestant = table;
                Entry {
                    name: table.name(),
                    measure: Box::new(move || {
                        let (warm_up, timed) = nodes.turn(order);
                        table.pass(work, warm_up);
                        table.pass(work, timed)
                    }),
                }
            };
            let entries = tables.iter().map(|table| entry(table.as_ref())).collect();
            Row::measure(title, "ns", plan.rounds, entries).print(Floor::NAME);
        }
    }
}

fn sessions(plan: &Plan, nodes: &Nodes, tables: &[Box<dyn Contestant>]) {
    let title = format!("refresh in batches of 64 by handle, one thread, {}", nodes.size);
    if !plan.wants(&title) {
        return;
    }
    let entry = |table: &dyn Contestant| {
        let batches: Vec<_> = batches(&nodes.by_proxy)
            .map(|nodes| (nodes, table.announce(nodes)))
            .collect();
        (table.name(), batches)
    };
    let sessions: Vec<_> = tables.iter().map(|table| entry(table.as_ref())).collect();
    let entries = tables.iter().zip(&sessions).map(|(table, (name, batches))| Entry {
        name,
        measure: Box::new(|| {
            let (warm_up, timed) = turn(batches, TURN / BATCH);
            table.heartbeats(warm_up);
            table.heartbeats(timed)
        }),
    });
    Row::measure(title, "ns", plan.rounds, entries.collect()).print(Floor::NAME);
}

fn several_threads(plan: &Plan, nodes: &Nodes, tables: &[Box<dyn Contestant>]) {
    let works = [
        ("look-up", Work::LookUp),
        ("refresh", Work::Refresh),
        ("half refresh, half look-up", Work::Half),
    ];
    for (work_name, work) in works {
        for count in [2, 4] {
            for order in ["uniform", "zipf"] {
                let title = format!("{work_name}, {count} threads, {order}, {}", nodes.size);
                if !plan.wants(&title) {
                    continue;
                }
                let entry = |table| {
                    let table: &dyn Contestant = table;
                    let shared = table.shared()?;
                    Some(Entry {
                        name: table.name(),
                        measure: Box::new(move || {
                            let (warm_up, timed) = nodes.turn(order);
                            shared.threads(work, count, warm_up);
                            shared.threads(work, count, timed)
                        }),
                    })
                };
                let entries = tables.iter().filter_map(|table| entry(table.as_ref())).collect();
                Row::measure(title, "ns", plan.rounds, entries).print("");
            }
        }
    }
}

fn tails(plan: &Plan, nodes: &Nodes, tables: &[Box<dyn Contestant>]) {
    let title = |quantile| format!("look-up while 3 threads insert and remove, {quantile}, {}", nodes.size);
    if !plan.wants(&title("tail")) {
        return;
    }
    let strangers: Vec<_> = (0..3)
        .map(|thread| steps::nodes(1 << 16, PROXIES, 100 + thread))
        .collect();
    let shared: Vec<_> = tables
        .iter()
        .filter_map(|table| Some((table.name(), table.shared()?)))
        .collect();
    let names: Vec<_> = shared.iter().map(|(name, _)| *name).collect();
    let mut rows =
        ["p50", "p99.9", "p99.99", "p99.99 by the wall"].map(|quantile| Row::new(title(quantile), "µs", names.clone()));
    for _ in 0..plan.rounds {
        let tails: Vec<_> = shared
            .iter()
            .map(|(_, table)| table.tail(&nodes.uniform, &strangers))
            .collect();
        for (at, row) in rows.iter_mut().enumerate() {
            row.push(tails.iter().map(|tail| tail[at]).collect());
        }
    }
    rows.iter().for_each(|row| row.print(""));
}

fn sweeps(plan: &Plan, nodes: &Nodes, tables: &[Box<dyn Contestant>]) {
    let title = format!("sweep, nothing expired, {}", nodes.size);
    if !plan.wants(&title) {
        return;
    }
    let names: Vec<_> = tables.iter().map(|table| table.name()).collect();
    let mut whole = Row::new(title.as_str(), "ns per route", names.clone());
    let mut step = Row::new(format!("{title}, longest step"), "µs", names);
    for _ in 0..plan.rounds {
        let (per_route, longest) = tables.iter().map(|table| table.sweep(&nodes.nodes)).unzip();
        whole.push(per_route);
        step.push(longest);
    }
    whole.print(Floor::NAME);
    step.print(Floor::NAME);
}

fn growth(plan: &Plan, nodes: &Nodes) {
    for count in [1, 2] {
        let title = format!("insert from empty, threads: {count}, {}", nodes.size);
        if plan.wants(&title) {
            let mut entries = Vec::new();
            for_each_peer!(P => {
                entries.push(Entry { name: P::NAME, measure: Box::new(|| grow::<P>(count, &nodes.nodes)) });
            });
            Row::measure(title, "ns", plan.rounds, entries).print("");
        }
    }
    let title = format!("insert from empty in batches of 64, one thread, {}", nodes.size);
    if plan.wants(&title) {
        let mut entries = Vec::new();
        for_each_peer!(P => {
            entries.push(Entry { name: P::NAME, measure: Box::new(|| grow_in_batches::<P>(&nodes.by_proxy)) });
        });
        Row::measure(title, "ns", plan.rounds, entries).print("");
    }
    // Room for what the table is to get: loading a snapshot.
    let title = format!("insert from empty, longest pause, {}", nodes.size);
    if plan.wants(&title) {
        let mut entries = Vec::new();
        for_each_peer!(single-threaded P => {
            entries.push(Entry { name: P::NAME, measure: Box::new(|| worst_insert::<P>(&nodes.nodes)) });
        });
        Row::measure(title, "µs", plan.rounds, entries).print(Floor::NAME);
    }
}

fn main() {
    all_agree();
    println!("all contestants give the same answers");
    // Without this, cargo wants to know only whether it works.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let plan = Plan::new();
    for count in steps::sizes(&[1_000_000]) {
        let nodes = Nodes::new(count);
        growth(&plan, &nodes);
        let mut tables: Vec<Box<dyn Contestant>> = Vec::new();
        for_each_peer!(P => { tables.push(Box::new(Together(filled::<P>(&nodes.nodes)))); });
        tables.push(Box::new(Alone(filled::<Floor>(&nodes.nodes))));
        one_thread(&plan, &nodes, &tables);
        sessions(&plan, &nodes, &tables);
        several_threads(&plan, &nodes, &tables);
        sweeps(&plan, &nodes, &tables);
        tails(&plan, &nodes, &tables);
    }
}
