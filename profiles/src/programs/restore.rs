//! A table that is loaded from a snapshot.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::{env, process};

use nodetracker::{ManualClock, RouteTable};

use crate::heap::{live, peak};
use crate::input::{Fleet, KEEP_ALIVE};
use crate::programs::Findings;

const NODES: u64 = 1_000_000;

/// The peak of filling a table, writing a snapshot to a file and loading another table from the file, against the
/// loaded table. The two tables do not exist at the same time.
pub(crate) fn restore(findings: &mut Findings) {
    let path = env::temp_dir().join(format!("nodetracker-profiles-{}.snapshot", process::id()));
    let fleet = Fleet::with_nodes(NODES);
    let mut to = BufWriter::new(File::create(&path).expect("a file can be made"));
    fleet
        .table
        .write_snapshot(&mut to)
        .expect("the file takes the snapshot");
    to.flush().expect("the file takes the snapshot");
    drop((fleet, to));
    let from = File::open(&path).expect("the file is there");
    fs::remove_file(&path).expect("the file is there");
    let before = live();
    let table = RouteTable::builder()
        .keep_alive(KEEP_ALIVE)
        // As the clock of the first table.
        .clock(ManualClock::new())
        .build()
        .expect("possible limits");
    let report = table.read_snapshot(BufReader::new(from)).expect("a good snapshot");
    assert_eq!(report.inserted, NODES);
    findings.found("restore", peak() as f64 / (live() - before) as f64);
}
