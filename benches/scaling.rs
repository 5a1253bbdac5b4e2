//! What a table and its peers do in a second, over threads, from one to more than there are cores.
//!
//! ```console
//! $ profiles/scaling                                     # 1,000,000 nodes; four minutes
//! $ profiles/scaling --seconds 60 'look-up'              # a minute, for only the rows whose title has one of these words
//! $ profiles/scaling --record profiles/recorded          # and keeps what came of it, under this machine's name
//! $ NODES=100k profiles/scaling
//! ```
//!
//! `profiles/scaling --build-only` leaves a program that needs no other file. With `--bench` before these arguments, another
//! machine runs it; without that, it only shows that it works.
//!
//! What counts is the operations that all threads complete together in a window of time, by the wall; insertions are an
//! exception, whose every table grows from empty to all nodes. The columns are million operations per second, medians of
//! three turns, and the ratio of the table's to the best peer's: above 1, the table does more. The contestants take turns
//! within a row, so a busy machine disturbs all of them alike.

#![allow(dead_code, reason = "a bench uses a part of what they share")]

pub(crate) mod peers;
pub(crate) mod support;

use std::io;
use std::time::{Duration, Instant};

use mimalloc::MiMalloc;

use crate::peers::{Peer, for_each_peer};
use crate::support::args::Args;
use crate::support::check::all_agree;
use crate::support::contestant::{Work, filled, go_through};
use crate::support::machine;
use crate::support::report::{Entry, Report, Row, Subject, Who};
use crate::support::steps::{self, BATCH, Step, batches, size_name};
use crate::support::turn::{growths, window};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const PROXIES: u32 = 1_000;
pub(crate) const THREADS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Turns of each contestant in a row.
const ROUNDS: usize = 3;

/// The budget where the command line names none, in seconds.
const BUDGET: u64 = 240;
/// A smaller budget has as much fewer nodes, for a turn at insertions is no shorter than one table's growth.
const BUDGET_OF_ALL_NODES: u64 = 120;
const FEWEST_NODES: usize = 1_000;
const SHORTEST_TURN: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy)]
enum Job {
    Insert,
    Work(Work),
    RefreshByHandle,
}

const BOTH: &[&str] = &["uniform", "zipf"];
/// The jobs, and the orders in which their nodes come. No node is inserted twice, and a session refreshes all of its routes
/// equally often, so there is nothing for a zipf distribution to say of these two.
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

/// A filled table, as the rows see it. All results are nanoseconds per operation.
trait Contestant {
    fn who(&self) -> Who;
    fn announce(&self, nodes: &[Step]) -> Vec<u64>;
    /// Into new tables of the same kind.
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
            let mut room = P::Room::default();
            move || {
                let steps = parts.next().unwrap_or_default();
                go_through(self, work, steps, &mut room);
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

/// Goes round and round, each thread from a place of its own.
fn endless<I: ExactSizeIterator + Clone>(parts: I, thread: usize, threads: usize) -> impl Iterator<Item = I::Item> {
    let first = parts.len() * thread / threads;
    parts.cycle().skip(first)
}

/// The subjects of all rows with their jobs, those of a line of thread counts together.
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

/// Measures the rows that are wanted, and prints each as it comes.
pub(crate) fn measure(args: &Args, nodes: usize) -> Result<Report, String> {
    let began = Instant::now();
    let seconds = args.seconds.unwrap_or(BUDGET);
    let rounds = if seconds == 0 { 1 } else { ROUNDS };
    let part = seconds.min(BUDGET_OF_ALL_NODES) as usize;
    let count = (nodes * part / BUDGET_OF_ALL_NODES as usize).max(FEWEST_NODES.min(nodes));
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
        if line.replace((subject.operation, subject.order)) != Some((subject.operation, subject.order)) {
            print_head(subject, tables.iter().map(|table| table.who()));
        }
        // What a row took too long is what those after it lack.
        let turns_left = (wanted.len() - at) * tables.len() * rounds;
        let left = Duration::from_secs(seconds).saturating_sub(began.elapsed());
        let turn = (left / turns_left as u32).max(SHORTEST_TURN);
        let threads = subject.threads;
        let steps = if subject.order == "zipf" { &zipf } else { &uniform };
        let entries = tables.iter().zip(&sessions).map(|(table, batches)| Entry {
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

/// The narrowest column.
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

fn main() -> io::Result<()> {
    all_agree();
    println!("all contestants give the same answers");
    let mut args = Args::parse();
    if !args.is_bench {
        args.seconds = Some(0);
        println!("a run to show that it works; --bench measures");
    }
    if let Some(directory) = args.record.as_ref().filter(|file| file.is_dir()) {
        args.record = Some(directory.join(format!("scaling-{}.json", machine::slug())));
    }
    println!("{} cores", machine::cores());
    let report = measure(&args, steps::sizes(&[1_000_000])[0]).map_err(io::Error::other)?;
    report.save(&args)?;
    if let Some(file) = &args.record {
        println!("\nrecorded in {}", file.display());
    }
    Ok(())
}
