//! The tests of many threads under sanitizers.

use clap::ValueEnum;
use xshell::{Shell, cmd};

use crate::task::{Outcome, target};

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Sanitizer {
    /// Memory that is used after its end, and leaks
    Address,
    /// Data races; also needs rust-src
    ///
    /// The thread sanitizer does not know fences. crossbeam-epoch's build.rs detects the sanitizer, and replaces the
    /// fences that order frees. The fences of the table order only atomics. So no report has to be suppressed. The
    /// sanitizer also finds races that an x86 processor hides: with a Relaxed load in `Shard::root`, it reports 27.
    Thread,
}

pub(crate) fn run(sh: &Shell, sanitizers: Vec<Sanitizer>) -> Outcome {
    let version = cmd!(sh, "rustc -vV").quiet().read()?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .ok_or("rustc names no host")?;
    for sanitizer in sanitizers {
        let (name, flags, std) = match sanitizer {
            // The standard library is not instrumented. Its ABI differs in name only.
            Sanitizer::Address => ("address", "-Cunsafe-allow-abi-mismatch=sanitizer", None),
            // If the standard library is not instrumented, the sanitizer reports its locks and channels as races.
            Sanitizer::Thread => ("thread", "", Some("-Zbuild-std")),
        };
        println!("\n== {name} sanitizer");
        cmd!(
            sh,
            "cargo +nightly test -p nodetracker --target {host} {std...} --test it"
        )
        .args(["--", "stress", "linearizability", "feed", "reuse", "takeovers"])
        .env("RUSTFLAGS", format!("-Zsanitizer={name} {flags}"))
        .env("CARGO_TARGET_DIR", target().join(format!("sanitizer-{name}")))
        .env("ASAN_OPTIONS", "detect_leaks=1")
        .run()?;
    }
    Ok(())
}
