//! What the documents of the server and of the clients show of their speed, and the tour.

use std::env;

use clap::ValueEnum;
use xshell::{Shell, cmd};

use crate::task::{Outcome, rounds, target};

/// A section of a document.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LoadPart {
    /// The cost of a route, by each way to report it or to look it up
    Routes,
    /// Beside Redis
    Redis,
    /// Unary calls, beside RFD 47's Go map as a gRPC server
    Compare,
    /// Latencies, beside the same Go map at the same rate
    Latency,
    /// The comparison of unary calls for a build with a profile
    Pgo,
    /// Where the CPU goes
    Instructions,
    /// A tour with grpcurl
    Tour,
    /// What a neighbour notices of attacks (crates/server/docs/attacks.md); 4 minutes
    Attacks,
    /// What a neighbour notices of large but ordinary work (the same file); 5 minutes
    Situations,
    /// Look-ups through a replica, a cache and calls (crates/client/README.md)
    LookUps,
    /// The cost of a proxy's session on the client's side (the same file)
    SessionCost,
    /// How soon sessions, replicas, pools and fleets recover, in simulated time (the same file); 400 seeds
    Recovery,
}

impl LoadPart {
    /// The document with the section.
    fn file(self) -> &'static str {
        match self {
            LoadPart::Attacks | LoadPart::Situations => "crates/server/docs/attacks.md",
            LoadPart::LookUps | LoadPart::SessionCost | LoadPart::Recovery => "crates/client/README.md",
            _ => "crates/server/README.md",
        }
    }
}

pub(crate) fn run(sh: &Shell, parts: Vec<LoadPart>) -> Outcome {
    if parts.iter().any(|part| !matches!(part, LoadPart::Recovery)) {
        cmd!(sh, "cargo build --release --quiet --locked -p nodetracker-server").run()?;
    }
    for part in parts {
        let name = part
            .to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default();
        println!("\n== {name}");
        let measured = measure(sh, part)?;
        println!("{measured}");
        let section = match part {
            LoadPart::Instructions | LoadPart::Attacks | LoadPart::Situations | LoadPart::Recovery => measured,
            LoadPart::Tour => format!("```console\n{measured}\n```"),
            _ => format!("```text\n{measured}\n```"),
        };
        write_section(sh, part.file(), "load", &name, &section)?;
    }
    Ok(())
}

/// Replaces a section of a file, which `cargo xtask TASK` writes.
pub(crate) fn write_section(sh: &Shell, file: &str, task: &str, name: &str, section: &str) -> Outcome {
    let text = replaced(&sh.read_file(file)?, task, name, section);
    let text = text.ok_or_else(|| format!("{file}: the marks around {name:?} are gone"))?;
    Ok(sh.write_file(file, text)?)
}

fn measure(sh: &Shell, part: LoadPart) -> xshell::Result<String> {
    let (server, rounds) = (target().join("release/nodetracker"), rounds("3"));
    let go_map: Vec<String> = env::var("GO_MAP")
        .into_iter()
        .flat_map(|sources| ["-g".to_owned(), sources])
        .collect();
    let beside_go_map = |script: &str, server| {
        let go_map = &go_map;
        cmd!(sh, "crates/server/load/{script} -r {rounds} {go_map...} {server}").read()
    };
    match part {
        LoadPart::Routes => cmd!(sh, "crates/server/load/routes {server}").read(),
        LoadPart::Redis => cmd!(sh, "crates/server/load/redis -r {rounds} {server}").read(),
        LoadPart::Compare => beside_go_map("compare", server),
        LoadPart::Latency => beside_go_map("latency", server),
        LoadPart::Pgo => {
            cmd!(sh, "crates/server/load/pgo").run()?;
            beside_go_map("compare", target().join("pgo/nodetracker"))
        }
        LoadPart::Instructions => cmd!(sh, "crates/server/load/instructions --server {server}").read(),
        LoadPart::Tour => cmd!(sh, "crates/server/docs/tour.sh {server}").read(),
        LoadPart::Attacks => example(sh, "server", "attacks"),
        LoadPart::Situations => example(sh, "server", "situations"),
        LoadPart::LookUps => example(sh, "client", "look_ups"),
        LoadPart::SessionCost => example(sh, "client", "session_cost"),
        LoadPart::Recovery => recovery(sh),
    }
}

/// Runs the simulations of faults, and the random drives of cache and replica. Returns their tables.
fn recovery(sh: &Shell) -> xshell::Result<String> {
    let seeds = env::var("NODETRACKER_SEEDS").unwrap_or_else(|_| "400".to_owned());
    // With the packages and features of CI's tests, so that nothing is built again.
    let test = cmd!(
        sh,
        "cargo test --workspace --all-features --quiet --locked --lib --test it --
        recovery_of no_answer_is_older --nocapture --test-threads=1"
    );
    Ok(joined_tables(&test.env("NODETRACKER_SEEDS", seeds).read()?))
}

/// Returns the tables of a text. Tables with the same header become one table.
fn joined_tables(text: &str) -> String {
    let mut tables: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut rows = text.lines().filter(|line| line.starts_with("| ")).peekable();
    while let Some(row) = rows.next() {
        let is_header = rows.next_if(|next| next.starts_with("| ---"));
        match (is_header, tables.last_mut()) {
            (Some(rule), last) if last.as_ref().is_none_or(|(header, _)| *header != row) => {
                tables.push((row, vec![row, rule]));
            }
            (None, Some((_, table))) => table.push(row),
            _ => {}
        }
    }
    let tables: Vec<_> = tables.into_iter().map(|(_, rows)| rows.join("\n")).collect();
    tables.join("\n\n")
}

/// Runs an example of a crate.
fn example(sh: &Shell, of: &str, name: &str) -> xshell::Result<String> {
    cmd!(
        sh,
        "cargo run --release --quiet --locked -p nodetracker-{of} --example {name}"
    )
    .read()
}

/// Replaces the text between the marks of a section.
fn replaced(text: &str, task: &str, name: &str, section: &str) -> Option<String> {
    let begin = format!("<!-- {name}: written by cargo xtask {task}, do not edit -->\n");
    let end = format!("<!-- end of {name} -->");
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{section}\n\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_one_kind_are_joined() {
        let text = "test a ...\n| x | y |\n| --- | --- |\n| 1 | 2 |\nok\n| x | y |\n| --- | --- |\n| 3 | 4 |\n| z |\n| --- |\n| 5 |\n";
        let expected = "| x | y |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n\n| z |\n| --- |\n| 5 |";
        assert_eq!(joined_tables(text), expected);
    }

    #[test]
    fn a_section_is_replaced_between_its_marks() {
        let text = "a\n<!-- tour: written by cargo xtask load, do not edit -->\n\nold\n\n<!-- end of tour -->\nb\n";
        assert_eq!(replaced(text, "load", "tour", "new"), Some(text.replace("old", "new")));
        assert_eq!(replaced(text, "load", "redis", "new"), None);
    }
}
