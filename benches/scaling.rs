//! Throughput over threads: the table beside its peers, from 1 thread to more threads than a machine has cores.
//!
//! ```console
//! $ cargo xtask bench scaling                             # 1,000,000 nodes, about 1 GB of memory; four minutes
//! $ cargo xtask bench scaling --seconds 60 'look-up'      # one minute, only the rows whose title has one of these words
//! $ cargo xtask bench scaling --record profiles/recorded  # writes the results to a file named after this machine
//! $ NODES=100k cargo xtask bench scaling
//! ```
//!
//! `cargo xtask bench --build-only scaling` prints the path of the program, a single file that runs on another machine
//! without cargo. The program needs `--bench` before these arguments; without `--bench` it runs each row once, as short
//! as possible.
//!
//! The threads of a turn start together, and their operations count over a fixed window of the wall clock. Insertions
//! are an exception: threads insert all nodes into a new table, and repeat that until the turn is over. The columns are
//! million operations per second of all threads together, medians of three turns. The last column is the ratio of the
//! table's throughput to the best peer's: above 1, the table is faster. The contestants take turns within a row, so a
//! busy machine disturbs all contestants alike.

#![allow(dead_code, reason = "a bench uses a part of what they share")]

pub(crate) mod peers;
pub(crate) mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use mimalloc::MiMalloc;

use crate::peers::{Peer, for_each_peer};
use crate::support::args::Args;
use crate::support::check::all_agree;
use crate::support::contestant::{Work, filled, go_through};
use crate::support::machine;
use crate::support::report::{Measurement, Report, Row, Subject, Who};
use crate::support::steps::{self, BATCH, Step, batches, size_name};
use crate::support::turn::{growths, window};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const PROXIES: u32 = 1_000;
const THREADS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Turns of each contestant in a row. A row that has used up its share of the budget ends earlier, but not before the
/// first.
const ROUNDS: usize = 3;

/// The default budget, in seconds.
const BUDGET: u64 = 240;
/// A smaller budget, in seconds, measures fewer nodes in proportion: a turn of insertions takes at least the growth of
/// one table.
const BUDGET_OF_ALL_NODES: u64 = 120;
const SHORTEST_TURN: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy)]
enum Job {
    Insert,
    Work(Work),
    RefreshByHandle,
}

const BOTH: &[&str] = &["uniform", "zipf"];
/// The jobs, and the orders of their nodes. Two jobs have no zipf order: no node is inserted twice, and a session
/// refreshes all of its routes equally often.
const JOBS: [(&str, Job, &[&str]); 6] = [
    ("insert from empty", Job::Insert, &[""]),
    ("look-up", Job::Work(Work::LookUp), BOTH),
    ("look-up in batches of 64", Job::Work(Work::LookUpBatch), BOTH),
    ("refresh", Job::Work(Work::Refresh), BOTH),
    ("refresh in batches of 64 by handle", Job::RefreshByHandle, &[""]),
    ("half refresh, half look-up", Job::Work(Work::Mixed(2)), BOTH),
];

/// Nodes of one proxy, and the handles of their routes.
type Batch<'a> = (&'a [Step], Vec<u64>);

/// A filled table of any type. All results are nanoseconds per operation.
trait Contestant {
    fn who(&self) -> Who;
    fn announce(&self, nodes: &[Step]) -> Vec<u64>;
    /// Inserts into new tables of the same type.
    fn insert(&self, nodes: &[Step], threads: usize, turn: Duration) -> f64;
    fn work(&self, work: Work, steps: &[Step], threads: usize, turn: Duration) -> f64;
    fn refresh_by_handle(&self, batches: &[Batch<'_>], threads: usize, turn: Duration) -> f64;
}

impl<P: Peer + Sync> Contestant for P {
    fn who(&self) -> Who {
        Who::of::<P>()
    }

    fn announce(&self, nodes: &[Step]) -> Vec<u64> {
        Peer::announce(self, nodes)
    }

    fn insert(&self, nodes: &[Step], threads: usize, turn: Duration) -> f64 {
        growths::<P>(threads, turn, nodes)
    }

    fn work(&self, work: Work, steps: &[Step], threads: usize, turn: Duration) -> f64 {
        window(threads, turn, |thread| {
            let mut parts = endless(steps.chunks(BATCH), thread, threads);
            move || {
                let steps = parts.next().unwrap_or_default();
                go_through(self, work, steps);
                steps.len()
            }
        })
    }

    fn refresh_by_handle(&self, batches: &[Batch<'_>], threads: usize, turn: Duration) -> f64 {
        window(threads, turn, |thread| {
            let mut batches = endless(batches.iter(), thread, threads);
            move || {
                let Some((nodes, handles)) = batches.next() else {
                    return 0;
                };
                self.heartbeat(nodes, handles);
                nodes.len()
            }
        })
    }
}

/// Repeats the parts without end; each thread begins at a different part.
fn endless<I: ExactSizeIterator + Clone>(parts: I, thread: usize, threads: usize) -> impl Iterator<Item = I::Item> {
    let first = parts.len() * thread / threads;
    parts.cycle().skip(first)
}

/// The subjects of all rows, with their jobs.
fn rows(nodes: usize) -> Vec<(Subject, Job)> {
    let mut rows = Vec::new();
    for (operation, job, orders) in JOBS {
        for order in orders {
            rows.extend(THREADS.map(|threads| {
                let subject = Subject {
                    operation,
                    threads,
                    order,
                    nodes,
                };
                (subject, job)
            }));
        }
    }
    rows
}

/// The number of nodes that a budget is enough for, in thousands if that is fewer than `all`.
fn nodes_for(seconds: u64, all: usize) -> usize {
    if seconds >= BUDGET_OF_ALL_NODES {
        return all;
    }
    let part = all as u64 * seconds / BUDGET_OF_ALL_NODES;
    (part as usize / 1_000 * 1_000).max(1_000).min(all)
}

/// Measures the rows whose titles `args` selects, and prints each row at once.
pub(crate) fn measure(args: &Args, nodes: usize) -> Result<Report, String> {
    let began = Instant::now();
    let seconds = args.seconds.unwrap_or(BUDGET);
    if nodes == 0 {
        return Err("there must be at least one node".into());
    }
    let count = nodes_for(seconds, nodes);
    let mut wanted = rows(count);
    wanted.retain(|(subject, _)| args.wants(&subject.to_string()));
    if wanted.is_empty() {
        return Err(format!("no row's title has any of {:?}", args.words));
    }

    let nodes = steps::nodes(count, PROXIES, 1);
    let (uniform, zipf, by_proxy) = (steps::uniform(&nodes), steps::zipf(&nodes), steps::by_proxy(&nodes));
    let mut tables: Vec<Box<dyn Contestant>> = Vec::new();
    for_each_peer!(P => { tables.push(Box::new(filled::<P>(&nodes))); });
    let sessions: Vec<Vec<Batch<'_>>> = tables
        .iter()
        .map(|table| batches(&by_proxy).map(|nodes| (nodes, table.announce(nodes))).collect())
        .collect();

    let mut report = Report::default();
    let mut line = None;
    for (at, &(subject, job)) in wanted.iter().enumerate() {
        let this = Some((subject.operation, subject.order));
        if line != this {
            line = this;
            print_head(subject, tables.iter().map(|table| table.who()));
        }
        // If a row exceeds its share, the later rows get less.
        let share = Duration::from_secs(seconds).saturating_sub(began.elapsed()) / (wanted.len() - at) as u32;
        let turn = (share / (tables.len() * ROUNDS) as u32).max(SHORTEST_TURN);
        let row_began = Instant::now();
        let rounds = (0..ROUNDS).take_while(|&round| round == 0 || row_began.elapsed() < share);
        let threads = subject.threads;
        let steps = if subject.order == "zipf" { &zipf } else { &uniform };
        let entries = tables.iter().zip(&sessions).map(|(table, batches)| Measurement {
            who: table.who(),
            measure: match job {
                Job::Insert => Box::new(|| table.insert(&nodes, threads, turn)) as Box<dyn FnMut() -> f64>,
                Job::Work(work) => Box::new(move || table.work(work, steps, threads, turn)),
                Job::RefreshByHandle => Box::new(move || table.refresh_by_handle(batches, threads, turn)),
            },
        });
        let row = Row::measure(subject, "ns", rounds, entries.collect());
        print_row(threads, &row);
        report.keep(&row);
    }
    Ok(report)
}

/// The least width of a column.
const COLUMN: usize = 8;

fn print_head(subject: Subject, whos: impl Iterator<Item = Who>) {
    let order = if subject.order.is_empty() { "" } else { ", " };
    println!(
        "\n{}{order}{}, {}: million operations per second",
        subject.operation,
        subject.order,
        size_name(subject.nodes)
    );
    print!("threads");
    whos.for_each(|who| print!("  {:>COLUMN$}", who.name));
    println!("  to the best peer");
}

fn print_row(threads: usize, row: &Row) {
    print!("{threads:>7}");
    let (medians, ratio) = row.medians();
    for (name, nanos) in medians {
        print!("  {:>1$.2}", 1e3 / nanos, name.len().max(COLUMN));
    }
    println!("  {:>14.2} x", 1.0 / ratio);
}

fn run() -> Result<(), String> {
    let mut args = Args::parse();
    all_agree();
    println!("all contestants give the same answers");
    if !args.is_bench {
        args.seconds = Some(0);
        println!("each row once, as short as possible; --bench measures");
    }
    args.record = args.record.map(|to| machine::record(to, "scaling"));
    println!("{} cores", machine::cores());
    let report = measure(&args, steps::sizes(&[1_000_000])[0])?;
    report
        .save(&args)
        .map_err(|error| format!("the record cannot be written: {error}"))?;
    if let Some(file) = &args.record {
        println!("\nrecorded in {}", file.display());
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
