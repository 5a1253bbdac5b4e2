//! The table beside its peers in one run, in turns. Measures the cost of an operation with one thread or several,
//! growth and its pauses, and the tail of look-ups under churn. Also measures sweeping, and loading a snapshot.
//!
//! ```console
//! $ cargo bench --bench comparison                       # 1,000,000 nodes; some minutes
//! $ NODES=1M,100k,10M cargo bench --bench comparison     # all rows at the first size, the main ones at the others
//! $ cargo bench --bench comparison -- insert sweep       # only the rows whose title has one of these words
//! $ ROUNDS=21 cargo bench --bench comparison -- 'look-up'
//! $ cargo bench --bench comparison -- --record FILE      # all three sizes; writes the results to a file
//! ```
//!
//! The columns are a contestant's median, and the table's ratio to this median: below 1, the table is better. Compare
//! only ratios of one run. A time is a thread's own time: it includes waits for locks, but not waits for a core. A time
//! is divided by the operations, and by the cores if several threads run. Before the measurements, a check compares the
//! answers of all contestants.

#![allow(dead_code, reason = "a bench uses a part of what they share")]

mod peers;
mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use mimalloc::MiMalloc;

use crate::peers::baseline::Baseline;
use crate::peers::nodetracker::{Nodetracker, builder};
use crate::peers::{ContestantKind, Peer, Setting, for_each_peer};
use crate::support::args::Args;
use crate::support::check::all_agree;
use crate::support::contestant::{Work, filled, grow, grow_in_batches, heartbeats, pass, pauses, sweep, tail, threads};
use crate::support::histogram::histogram;
use crate::support::machine;
use crate::support::report::{Measurement, Report, Row, Subject, Who};
use crate::support::steps::{self, BATCH, Step, batches};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const PROXIES: u32 = 1_000;
/// The most steps of a contestant's turn. Before these, the contestant makes as many other steps: the contestant before
/// it has filled the caches with its own data.
const TURN: usize = 1_000_000;

/// One in this many operations on a table that is mostly read is a refresh.
const MOSTLY_READ: usize = 20;

/// The rows to measure, and their results.
struct Run {
    args: Args,
    rounds: usize,
    report: Report,
}

impl Run {
    fn new(args: Args) -> Self {
        let rounds = std::env::var("ROUNDS").map_or(9, |rounds| rounds.parse().expect("ROUNDS is a number"));
        Self {
            args,
            rounds,
            report: Report::default(),
        }
    }

    fn wants(&self, subject: Subject) -> bool {
        self.args.wants(&subject.to_string())
    }

    /// Measures a row, if the command line selects it.
    fn row<'a>(&mut self, subject: Subject, unit: &'static str, entries: impl FnOnce() -> Vec<Measurement<'a>>) {
        if self.wants(subject) {
            let row = Row::measure(subject, unit, 0..self.rounds, entries());
            self.report.row(&row);
        }
    }
}

/// Nodes, and the orders in which they are accessed.
struct Nodes {
    nodes: Vec<Step>,
    uniform: Vec<Step>,
    zipf: Vec<Step>,
    by_proxy: Vec<Step>,
    /// The first size has all rows, the others have the main ones, and no `zipf`.
    is_first: bool,
}

impl Nodes {
    fn new(count: usize, is_first: bool) -> Self {
        let nodes = steps::nodes(count, PROXIES, 1);
        Self {
            uniform: steps::uniform(&nodes),
            zipf: if is_first { steps::zipf(&nodes) } else { Vec::new() },
            by_proxy: steps::by_proxy(&nodes),
            nodes,
            is_first,
        }
    }

    fn subject(&self, operation: &'static str, threads: usize, order: &'static str) -> Subject {
        Subject {
            operation,
            threads,
            order,
            nodes: self.nodes.len(),
        }
    }

    fn orders(&self) -> &'static [&'static str] {
        if self.is_first {
            &["uniform", "zipf"]
        } else {
            &["uniform"]
        }
    }

    /// The mean of as many measurements as a turn of few nodes needs: a single measurement takes only milliseconds.
    fn mean(&self, mut measure: impl FnMut() -> f64) -> f64 {
        let times = (TURN / self.nodes.len()).clamp(1, 5);
        (0..times).map(|_| measure()).sum::<f64>() / times as f64
    }

    /// Steps to warm up with, and steps to measure.
    fn turn(&self, order: &str) -> (&[Step], &[Step]) {
        turn(if order == "zipf" { &self.zipf } else { &self.uniform }, TURN)
    }
}

/// The last and the first nodes of all, at most `most` each. They overlap if there are fewer than `2 * most` nodes.
fn turn<T>(all: &[T], most: usize) -> (&[T], &[T]) {
    let len = all.len().min(most);
    (&all[all.len() - len..], &all[..len])
}

/// A filled table, as the rows see it.
trait Contestant {
    fn who(&self) -> Who;
    fn pass(&self, work: Work, steps: &[Step]) -> f64;
    fn sweep(&self, routes: usize) -> (f64, f64);
    fn announce(&self, nodes: &[Step]) -> Vec<u64>;
    fn heartbeats(&self, batches: &[(&[Step], Vec<u64>)]) -> f64;
    /// `None` for a contestant that only one thread can use.
    fn shared(&self) -> Option<&dyn Shared>;
}

trait Shared {
    fn threads(&self, work: Work, count: usize, steps: &[Step]) -> f64;
    /// The quantiles of [`QUANTILES`] in own time, and the last quantile by the wall clock, too; in microseconds.
    fn tail(&self, steps: &[Step], strangers: &[Vec<Step>]) -> [f64; 4];
}

const QUANTILES: [f64; 3] = [0.5, 0.999, 0.9999];

impl<P: Peer + Sync> Shared for P {
    fn threads(&self, work: Work, count: usize, steps: &[Step]) -> f64 {
        threads(self, work, count, steps)
    }

    fn tail(&self, steps: &[Step], strangers: &[Vec<Step>]) -> [f64; 4] {
        let (wall, own) = tail(self, steps, strangers, Duration::from_millis(1_000));
        let [p50, p999, p9999] = QUANTILES.map(|share| own.value_at_quantile(share));
        [p50, p999, p9999, wall.value_at_quantile(QUANTILES[2])].map(|nanos| nanos as f64 / 1_000.0)
    }
}

struct Alone<P>(P);
struct Together<P>(P);

macro_rules! contestant {
    ($wrapper:ident, $($bound:ident)+, $shared:expr) => {
        impl<P: $($bound +)+> Contestant for $wrapper<P> {
            fn who(&self) -> Who {
                Who::of::<P>()
            }

            fn pass(&self, work: Work, steps: &[Step]) -> f64 {
                pass(&self.0, work, steps).as_nanos() as f64 / steps.len() as f64
            }

            fn sweep(&self, routes: usize) -> (f64, f64) {
                sweep(&self.0, routes)
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

type Tables = [Box<dyn Contestant>];

fn one_thread(run: &mut Run, nodes: &Nodes, tables: &Tables) {
    let works = [
        ("look-up", Work::LookUp),
        ("look-up in batches of 64", Work::LookUpBatch),
        ("refresh", Work::Refresh),
    ];
    for (operation, work) in works {
        for order in nodes.orders() {
            run.row(nodes.subject(operation, 1, order), "ns", || {
                let entries = tables.iter().map(|table| Measurement {
                    who: table.who(),
                    measure: Box::new(move || {
                        let (warm_up, timed) = nodes.turn(order);
                        table.pass(work, warm_up);
                        nodes.mean(|| table.pass(work, timed))
                    }),
                });
                entries.collect()
            });
        }
    }
}

fn sessions(run: &mut Run, nodes: &Nodes, tables: &Tables) {
    let subject = nodes.subject("refresh in batches of 64 by handle", 1, "");
    if !run.wants(subject) {
        return;
    }
    let sessions: Vec<Vec<_>> = tables
        .iter()
        .map(|table| {
            batches(&nodes.by_proxy)
                .map(|nodes| (nodes, table.announce(nodes)))
                .collect()
        })
        .collect();
    run.row(subject, "ns", || {
        let entries = tables.iter().zip(&sessions).map(|(table, batches)| Measurement {
            who: table.who(),
            measure: Box::new(move || {
                let (warm_up, timed) = turn(batches, TURN / BATCH);
                table.heartbeats(warm_up);
                nodes.mean(|| table.heartbeats(timed))
            }),
        });
        entries.collect()
    });
}

fn several_threads(run: &mut Run, nodes: &Nodes, tables: &Tables) {
    let mostly_read = ("one refresh in twenty, else look-up", Work::Mixed(MOSTLY_READ));
    let half = ("half refresh, half look-up", Work::Mixed(2));
    let (look_up, refresh) = (("look-up", Work::LookUp), ("refresh", Work::Refresh));
    // Also with one thread, if the rows make a curve.
    let all: &[(_, &[usize])] = &[
        (look_up, &[2, 4]),
        (refresh, &[2, 4]),
        (mostly_read, &[1, 2, 4]),
        (half, &[1, 2, 4]),
    ];
    let main: &[(_, &[usize])] = &[(half, &[2])];
    for &((operation, work), counts) in if nodes.is_first { all } else { main } {
        for &count in counts {
            for order in nodes.orders() {
                run.row(nodes.subject(operation, count, order), "ns", || {
                    let entries = tables.iter().filter_map(|table| {
                        let who = table.who();
                        let table = table.shared()?;
                        Some(Measurement {
                            who,
                            measure: Box::new(move || {
                                let (warm_up, timed) = nodes.turn(order);
                                table.threads(work, count, warm_up);
                                nodes.mean(|| table.threads(work, count, timed))
                            }),
                        })
                    });
                    entries.collect()
                });
            }
        }
    }
}

fn tails(run: &mut Run, nodes: &Nodes, tables: &Tables) {
    let titles = [
        "p50 of a look-up while 3 threads insert and remove",
        "p99.9 of a look-up while 3 threads insert and remove",
        "p99.99 of a look-up while 3 threads insert and remove",
        "p99.99 by the wall of a look-up while 3 threads insert and remove",
    ];
    let subjects = titles.map(|operation| nodes.subject(operation, 4, "uniform"));
    if !nodes.is_first || !subjects.iter().any(|&subject| run.wants(subject)) {
        return;
    }
    let strangers: Vec<_> = (0..3)
        .map(|thread| steps::nodes(1 << 16, PROXIES, 100 + thread))
        .collect();
    let shared: Vec<_> = tables
        .iter()
        .filter_map(|table| Some((table.who(), table.shared()?)))
        .collect();
    let whos: Vec<_> = shared.iter().map(|(who, _)| *who).collect();
    let mut rows = subjects.map(|subject| Row::new(subject, "µs", whos.clone()));
    for _ in 0..run.rounds {
        let tails: Vec<_> = shared
            .iter()
            .map(|(_, table)| table.tail(&nodes.uniform, &strangers))
            .collect();
        for (at, row) in rows.iter_mut().enumerate() {
            row.push(tails.iter().map(|tail| tail[at]).collect());
        }
    }
    rows.iter().for_each(|row| run.report.row(row));
}

fn sweeps(run: &mut Run, nodes: &Nodes, tables: &Tables) {
    let whole = nodes.subject("sweep, nothing expired", 1, "");
    let step = nodes.subject("longest step of a sweep", 1, "");
    if !run.wants(whole) && !run.wants(step) {
        return;
    }
    let whos: Vec<_> = tables.iter().map(|table| table.who()).collect();
    let mut whole = Row::new(whole, "ns per route", whos.clone());
    let mut step = Row::new(step, "µs", whos);
    for _ in 0..run.rounds {
        let (per_route, longest) = tables.iter().map(|table| table.sweep(nodes.nodes.len())).unzip();
        whole.push(per_route);
        step.push(longest);
    }
    run.report.row(&whole);
    run.report.row(&step);
}

fn growth(run: &mut Run, nodes: &Nodes) {
    for count in [1, 2] {
        run.row(nodes.subject("insert from empty", count, ""), "ns", || {
            let mut entries = Vec::new();
            for_each_peer!(P => {
                entries.push(Measurement { who: Who::of::<P>(), measure: Box::new(|| grow::<P>(count, &nodes.nodes)) });
            });
            entries
        });
    }
    run.row(nodes.subject("insert from empty in batches of 64", 1, ""), "ns", || {
        let mut entries = Vec::new();
        for_each_peer!(P => {
            entries.push(Measurement { who: Who::of::<P>(), measure: Box::new(|| grow_in_batches::<P>(&nodes.by_proxy)) });
        });
        entries
    });
    let subject = nodes.subject("longest pause of an insert from empty", 1, "");
    let mut histograms = Vec::new();
    for_each_peer!(P => { histograms.push((Who::of::<P>(), histogram())); });
    run.row(subject, "µs", || {
        let mut entries = Vec::new();
        let mut histograms = histograms.iter_mut();
        for_each_peer!(P => {
            let (who, histogram) = histograms.next().expect("there is one for each");
            let measure = Box::new(|| {
                let (longest, each) = pauses::<P>(&nodes.nodes);
                histogram.add(&each).expect("the bounds are the same");
                longest
            });
            entries.push(Measurement { who: *who, measure });
        });
        entries
    });
    if run.wants(subject) {
        for (who, histogram) in &histograms {
            run.report.histogram(subject, *who, histogram);
        }
    }
}

/// Reads a snapshot of the table into a new table; for comparison, adds the routes one by one.
fn snapshots(run: &mut Run, nodes: &Nodes) {
    let subject = nodes.subject("bulk build from a snapshot", rayon::current_num_threads(), "");
    if !run.wants(subject) {
        return;
    }
    let mut snapshot = Vec::new();
    filled::<Nodetracker>(&nodes.nodes)
        .table()
        .write_snapshot(&mut snapshot)
        .expect("memory can be written to");
    let per_route = |took: Duration| took.as_nanos() as f64 / nodes.nodes.len() as f64;
    run.row(subject, "ns per route", || {
        vec![
            Measurement {
                who: Who::of::<Nodetracker>(),
                measure: Box::new(|| {
                    let table = builder(&Setting::default()).build().expect("possible limits");
                    let start = Instant::now();
                    table.read_snapshot(snapshot.as_slice()).expect("the snapshot is good");
                    let took = start.elapsed();
                    black_box(table);
                    per_route(took)
                }),
            },
            Measurement {
                who: Who {
                    name: "the same one by one",
                    kind: ContestantKind::Reference,
                },
                measure: Box::new(|| {
                    let start = Instant::now();
                    let table = filled::<Nodetracker>(&nodes.nodes);
                    let took = start.elapsed();
                    black_box(table);
                    per_route(took)
                }),
            },
        ]
    });
}

fn main() -> std::io::Result<()> {
    all_agree();
    println!("all contestants give the same answers");
    let mut args = Args::parse();
    if !args.is_bench {
        return Ok(());
    }
    args.record = args.record.map(|to| machine::record(to, "speed"));
    let sizes: &[usize] = match args.record {
        Some(_) => &[1_000_000, 100_000, 10_000_000],
        None => &[1_000_000],
    };
    let mut run = Run::new(args);
    for (at, count) in steps::sizes(sizes).into_iter().enumerate() {
        let nodes = Nodes::new(count, at == 0);
        if nodes.is_first {
            growth(&mut run, &nodes);
            snapshots(&mut run, &nodes);
        }
        let mut tables: Vec<Box<dyn Contestant>> = Vec::new();
        for_each_peer!(P => { tables.push(Box::new(Together(filled::<P>(&nodes.nodes)))); });
        tables.push(Box::new(Alone(filled::<Baseline>(&nodes.nodes))));
        one_thread(&mut run, &nodes, &tables);
        sessions(&mut run, &nodes, &tables);
        several_threads(&mut run, &nodes, &tables);
        sweeps(&mut run, &nodes, &tables);
        tails(&mut run, &nodes, &tables);
    }
    run.report.save(&run.args)
}
