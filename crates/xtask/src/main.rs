//! `cargo xtask`: one name for each command that checks or measures this repository.

mod bench;
mod deployment;
mod load;
mod picture;
mod record;
mod sanitizers;
mod task;

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Parser, ValueEnum};
use xshell::{Shell, cmd};

use crate::load::LoadPart;
use crate::record::RecordPart;
use crate::sanitizers::Sanitizer;
use crate::task::{Outcome, target};

/// Checks and measures this repository
///
/// CONTRIBUTING.md lists what each command needs and how long it takes.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
enum Task {
    /// Run the checks that every change must pass (.ci/run)
    Ci,
    /// Check licences, bans and sources of the dependencies (cargo-deny)
    Deny {
        /// Also fetch the known vulnerabilities, and check these
        #[arg(long)]
        advisories: bool,
    },
    /// Check that imports between folders form no circle (proof/imports)
    Imports(Rest),
    /// Run the loom models of the table's protocols, and print their executions
    Models {
        /// Only models whose name contains this word
        #[arg(default_value = "models")]
        word: String,
    },
    /// Weaken the source in one place at a time, and check that a test fails (proof/mutations)
    ///
    /// Takes --list, --apply-only, and words that the name, file or test of a mutation contains.
    Mutations(Rest),
    /// Run the tests of many threads under sanitizers; needs a nightly toolchain
    Sanitizers {
        /// Both if none is named
        sanitizers: Vec<Sanitizer>,
    },
    /// Check the budgets of memory
    ///
    /// `check` runs up to a million routes, in seconds. `all` runs up to ten million, and records profiles, plot and
    /// table. `garbage` plots the objects that wait to be freed. Anything else is the name of a program.
    Memory {
        #[arg(default_value = "check")]
        what: Vec<String>,
    },
    /// Count instructions and cache misses, and compare them with the record; needs valgrind
    Instructions {
        /// Replace the record
        #[arg(long)]
        record: bool,
    },
    /// Run a bench, such as `bench scaling --seconds 60 look-up`
    Bench {
        /// A file of benches/
        #[arg(value_parser = bench::NAMES)]
        name: String,
        /// Only build, and print the path of the program; it runs on another machine with --bench
        #[arg(long)]
        build_only: bool,
        /// The arguments of the bench
        #[command(flatten)]
        rest: Rest,
    },
    /// Measure the figures of profiles/README.md, and write them there
    ///
    /// Needs a machine that does nothing else. ROUNDS=9 makes the medians of `speed` steadier, and takes twice the
    /// time.
    Record {
        /// All if none is named
        parts: Vec<RecordPart>,
    },
    /// Measure the figures in the documents of the server and of the clients, and write them there
    ///
    /// Needs a machine that does nothing else. The environment: ROUNDS (3), and GO_MAP, the sources of the Go peer.
    Load {
        /// All if none is named
        parts: Vec<LoadPart>,
    },
    /// Measure the memory and the CPU that a tracker needs, and write them into crates/server/docs/deployment.md
    ///
    /// Needs a machine that does nothing else, and 2 GB of memory. Arguments go to the program, such as `--seconds 2`.
    Capacity(Rest),
    /// Check the units of systemd, and write their exposure into crates/server/docs/deployment.md
    Units,
    /// Check the metrics, the alerts and the dashboard, and write the output into crates/server/docs/metrics.md
    ///
    /// Needs promtool and openssl.
    Promtool,
    /// Build the server with a profile of its work: target/pgo/nodetracker (crates/server/load/pgo)
    Pgo,
    /// Draw docs/top.svg and write crates/server/README.md: `nodetracker top` beside a tracker under load; needs tmux
    Picture,
    /// Print the first session of the README (crates/server/docs/transcript.sh)
    Transcript,
}

#[derive(Debug, Args)]
struct Rest {
    #[arg(value_name = "ARG", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Outcome {
    let sh = Shell::new()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    sh.change_dir(root.canonicalize()?);
    match task {
        Task::Ci => cmd!(sh, ".ci/run").run()?,
        Task::Deny { advisories } => {
            let checks: &[_] = if advisories {
                &[]
            } else {
                &["bans", "licenses", "sources"]
            };
            cmd!(sh, "cargo deny --locked --workspace check {checks...}").run()?;
        }
        Task::Imports(Rest { args }) => cmd!(sh, "proof/imports {args...}").run()?,
        Task::Models { word } => cmd!(
            sh,
            "cargo test -p nodetracker --release --locked --lib {word} -- --nocapture"
        )
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_TARGET_DIR", target().join("loom"))
        .run()?,
        Task::Mutations(Rest { args }) => cmd!(sh, "proof/mutations {args...}").run()?,
        Task::Sanitizers { sanitizers } => sanitizers::run(&sh, all_if_none(sanitizers))?,
        Task::Memory { what } => record::profiles(&sh, &what)?,
        Task::Instructions { record: true } => record::profiles(&sh, &["instructions", "record"])?,
        Task::Instructions { record: false } => record::profiles(&sh, &["instructions"])?,
        Task::Bench {
            name, build_only: true, ..
        } => bench::build(&sh, &name)?,
        Task::Bench { name, rest, .. } => bench::run(&sh, &name, &rest.args)?,
        Task::Record { parts } => record::run(&sh, all_if_none(parts))?,
        Task::Load { parts } => load::run(&sh, all_if_none(parts))?,
        Task::Capacity(Rest { args }) => deployment::capacity(&sh, &args)?,
        Task::Units => deployment::units(&sh)?,
        Task::Promtool => deployment::promtool(&sh)?,
        Task::Picture => picture::run(&sh)?,
        Task::Pgo => cmd!(sh, "crates/server/load/pgo").run()?,
        Task::Transcript => {
            cmd!(sh, "cargo build --release --quiet --locked").run()?;
            let server = target().join("release/nodetracker");
            cmd!(sh, "crates/server/docs/transcript.sh {server}").run()?;
        }
    }
    Ok(())
}

fn all_if_none<T: ValueEnum + Clone>(named: Vec<T>) -> Vec<T> {
    if named.is_empty() {
        T::value_variants().to_vec()
    } else {
        named
    }
}
