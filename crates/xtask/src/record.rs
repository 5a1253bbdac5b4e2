//! What profiles/README.md shows.

use std::time::Instant;

use clap::ValueEnum;
use xshell::{Shell, cmd};

use crate::bench;
use crate::task::{Outcome, rounds};

/// A part of the records, with the time that it takes without builds.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum RecordPart {
    /// The budgets of memory; 20 seconds
    Memory,
    /// Bytes per route, beside the peers; 40 seconds
    Bytes,
    /// Instructions, beside the peers; 40 seconds
    Instructions,
    /// Time, beside the peers; 7 minutes
    Speed,
    /// Throughput over threads; 4 minutes
    Scaling,
    /// Rare situations and pages; 3 minutes
    Traps,
    /// A hundred million routes; 1 minute
    HundredMillion,
    /// The plots and tables, from the records; seconds
    Show,
}

pub(crate) fn run(sh: &Shell, parts: Vec<RecordPart>) -> Outcome {
    let _rounds = sh.push_env("ROUNDS", rounds("5"));
    for part in parts {
        println!("\n== {part:?}");
        let begun = Instant::now();
        match part {
            RecordPart::Memory => profiles(sh, &["all"]),
            RecordPart::Bytes => bench::run(sh, "bytes", &["--record", "profiles/recorded/bytes.json"]),
            RecordPart::Instructions => profiles(sh, &["instructions", "record"]),
            RecordPart::Speed => bench::run(sh, "comparison", &["--record", "profiles/recorded"]),
            RecordPart::Scaling => bench::run(sh, "scaling", &["--record", "profiles/recorded"]),
            RecordPart::Traps => ["traps", "pages"].into_iter().try_for_each(|name| {
                let file = format!("profiles/recorded/{name}.json");
                bench::run(sh, name, &["--record", &file])
            }),
            RecordPart::HundredMillion => {
                let file = "profiles/recorded/hundred-million.json";
                bench::run(sh, "hundred_million", &["--record", file])
            }
            RecordPart::Show => profiles(sh, &["show"]),
        }?;
        println!("-- {} s", begun.elapsed().as_secs());
    }
    Ok(())
}

/// Runs the program that measures memory and instructions.
pub(crate) fn profiles(sh: &Shell, args: &[impl AsRef<str>]) -> Outcome {
    let args = args.iter().map(AsRef::as_ref);
    Ok(cmd!(
        sh,
        "cargo run --release --quiet --locked -p nodetracker-profiles -- {args...}"
    )
    .run()?)
}
