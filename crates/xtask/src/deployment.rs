//! What crates/server/docs show of operations: the capacity of a tracker, the exposure of its unit, and the check of
//! its metrics.

use xshell::{Shell, cmd};

use crate::load::write_section;
use crate::task::{Outcome, target};

const DEPLOYMENT: &str = "crates/server/docs/deployment.md";
const METRICS: &str = "crates/server/docs/metrics.md";

/// Measures the capacity. `args` go to the program that measures.
pub(crate) fn capacity(sh: &Shell, args: &[String]) -> Outcome {
    cmd!(
        sh,
        "cargo build --release --quiet --locked -p nodetracker-server --bin nodetracker --example capacity"
    )
    .run()?;
    let release = target().join("release");
    let (program, server) = (release.join("examples/capacity"), release.join("nodetracker"));
    let measured = cmd!(sh, "{program} --server {server} {args...}").read()?;
    println!("{measured}");
    write_section(sh, DEPLOYMENT, "capacity", "capacity", &measured)
}

/// Checks the units.
pub(crate) fn units(sh: &Shell) -> Outcome {
    let checked = cmd!(sh, "crates/server/ops/check-units").read()?;
    println!("{checked}");
    write_section(sh, DEPLOYMENT, "units", "units", &format!("```console\n{checked}\n```"))
}

/// Checks the metrics, the alerts and the dashboard.
pub(crate) fn promtool(sh: &Shell) -> Outcome {
    cmd!(
        sh,
        "cargo build --quiet --locked -p nodetracker-server --bin nodetracker"
    )
    .run()?;
    let server = target().join("debug/nodetracker");
    let checked = cmd!(sh, "crates/server/ops/check --server {server}").read()?;
    println!("{checked}");
    write_section(
        sh,
        METRICS,
        "promtool",
        "promtool",
        &format!("```console\n{checked}\n```"),
    )
}
