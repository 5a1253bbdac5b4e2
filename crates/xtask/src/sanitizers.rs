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
    /// The thread sanitizer knows nothing of fences. crossbeam-epoch notices that it is built for it, and does without
    /// those that order what is freed (its build.rs); our own order nothing but atomics. So nothing has to be
    /// suppressed. It sees what an x86 processor hides: with a Relaxed load in `Shard::root` it reports 27 races.
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
            // The standard library is not instrumented, which has another ABI by name only.
            Sanitizer::Address => ("address", "-Cunsafe-allow-abi-mismatch=sanitizer", None),
            // Without an instrumented standard library, its locks and channels would be taken for races.
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
