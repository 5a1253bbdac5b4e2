//! Instructions and simulated cache misses per operation: counts them, and compares them with the record.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

use serde_json::{Value, json};

/// The number of operations in each count, as in `benches/instructions.rs`.
const OPS: f64 = 100_000.0;

/// The runner must be of the library's version.
const RUNNER: &str = "0.20.0";

/// What callgrind counts, under the names that the record gives it: the instructions, the misses of the first level,
/// and those of the last.
const COUNTS: [(&str, &[&str]); 3] = [
    ("instructions", &["Ir"]),
    ("L1 misses", &["I1mr", "D1mr", "D1mw"]),
    ("LL misses", &["ILmr", "DLmr", "DLmw"]),
];

/// An increase above both tolerances is an error: a proportion, and a number of misses. Smaller differences in misses
/// mean nothing. Tables hash with random keys, so the counts of one program differ by [`WOBBLE`].
const TOLERANCES: [(f64, f64); 3] = [(0.02, 0.0), (0.03, 0.05), (0.03, 0.05)];
const WOBBLE: &str = "half a percent of instructions, and 3 % of misses";

/// Counts per operation, by operation and contestant.
type Counts = BTreeMap<(String, String), [f64; COUNTS.len()]>;

/// The table's name among the benches.
const TABLE: &str = "nodetracker";

/// Checks that the tools for counting are installed. Returns the version of valgrind.
fn check_tools() -> Result<String, Box<dyn Error>> {
    let version = |program: &str| -> Option<String> {
        let output = Command::new(program)
            .arg("--version")
            .stderr(Stdio::null())
            .output()
            .ok()?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_string())
    };
    let mut missing = String::new();
    let valgrind = version("valgrind");
    if valgrind.is_none() {
        missing += "valgrind is missing; on Debian: apt-get install valgrind\n";
    }
    let runner = version("gungraun-runner");
    if runner.as_ref().is_none_or(|found| !found.ends_with(RUNNER)) {
        _ = writeln!(
            missing,
            "gungraun-runner {RUNNER} is missing: cargo install --locked gungraun-runner --version {RUNNER}"
        );
    }
    match valgrind {
        Some(version) if missing.is_empty() => Ok(version),
        _ => Err(missing.trim_end().into()),
    }
}

/// Counts the operations that match the pattern.
fn count(pattern: &str) -> Result<Counts, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "bench",
            "--quiet",
            "--package",
            "nodetracker",
            "--bench",
            "instructions",
            "--",
            pattern,
        ])
        .args(["--output-format=json", "--parallel=auto"])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo bench failed, {}", output.status).into());
    }
    let text = str::from_utf8(&output.stdout)?;
    let counts: Option<Counts> = text.lines().map(parse).collect();
    match counts {
        Some(counts) if !counts.is_empty() => Ok(counts),
        _ => Err(format!("gungraun wrote something else than expected: {text}").into()),
    }
}

/// One line of gungraun's.
fn parse(line: &str) -> Option<((String, String), [f64; COUNTS.len()])> {
    let summary: Value = serde_json::from_str(line).ok()?;
    let metrics = &summary["profiles"][0]["data"]["total"]["metrics"];
    let metric = |name: &&str| metrics[*name]["values"]["new"].as_f64();
    let mut counts = [0.0; COUNTS.len()];
    for (count, (_, names)) in counts.iter_mut().zip(COUNTS) {
        *count = names.iter().map(metric).sum::<Option<f64>>()? / OPS;
    }
    let name = |name: &str| Some(summary[name].as_str()?.to_string());
    Some(((name("function_name")?, name("id")?), counts))
}

fn to_json(valgrind: &str, counts: &Counts) -> String {
    let rows: Vec<_> = counts
        .iter()
        .map(|((operation, of), counts)| {
            let mut row = json!({ "operation": operation, "of": of });
            for ((name, _), count) in COUNTS.iter().zip(counts) {
                row[*name] = json!((count * 100.0).round() / 100.0);
            }
            row.to_string()
        })
        .collect();
    format!(
        "{{\n\"counted by\":\"{valgrind}\",\n\"per operation\":[\n{}\n]}}\n",
        rows.join(",\n")
    )
}

fn from_json(text: &str) -> Option<Counts> {
    let value: Value = serde_json::from_str(text).ok()?;
    let rows = value["per operation"].as_array()?.iter();
    rows.map(|row| {
        let mut counts = [0.0; COUNTS.len()];
        for (count, (name, _)) in counts.iter_mut().zip(COUNTS) {
            *count = row[name].as_f64()?;
        }
        Some(((row["operation"].as_str()?.into(), row["of"].as_str()?.into()), counts))
    })
    .collect()
}

const FILE: &str = "recorded/instructions.json";

fn read(here: &Path) -> Result<Counts, Box<dyn Error>> {
    let file = here.join(FILE);
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    from_json(&text).ok_or_else(|| format!("{}: this is not what is recorded", file.display()).into())
}

/// Counts and records all operations, also those of the peers.
pub(crate) fn record(here: &Path) -> Result<bool, Box<dyn Error>> {
    let valgrind = check_tools()?;
    let counts = count("*")?;
    fs::write(here.join(FILE), to_json(&valgrind, &counts))?;
    print!("{}", table(&counts));
    Ok(true)
}

/// Counts the table's operations, and compares them with the record. Returns whether all counts are within the
/// tolerance.
pub(crate) fn compare(here: &Path) -> Result<bool, Box<dyn Error>> {
    let recorded = read(here)?;
    check_tools()?;
    let counted = count(&format!("*::{TABLE}"))?;
    let (text, is_well) = comparison(&recorded, &counted);
    print!("{text}");
    Ok(is_well)
}

fn comparison(recorded: &Counts, counted: &Counts) -> (String, bool) {
    let mut text = String::new();
    let mut is_well = true;
    for (key, new) in counted {
        let Some(old) = recorded.get(key) else {
            _ = writeln!(text, "{:<20} is not in the record", key.0);
            is_well = false;
            continue;
        };
        _ = write!(text, "{:<20}", key.0);
        for (at, (name, _)) in COUNTS.iter().enumerate() {
            let (share, least) = TOLERANCES[at];
            let is_more = new[at] > old[at] * (1.0 + share) + least;
            is_well &= !is_more;
            let mark = if is_more { " MORE" } else { "" };
            let change = (new[at] / old[at] - 1.0) * 100.0;
            _ = write!(
                text,
                "  {:>8.2} -> {:>8.2} {name} ({change:+.1} %{mark})",
                old[at], new[at]
            );
        }
        text.push('\n');
    }
    for (operation, of) in recorded.keys().filter(|key| key.1 == TABLE) {
        if !counted.contains_key(&(operation.clone(), of.clone())) {
            _ = writeln!(text, "{operation} is recorded, but was not counted");
            is_well = false;
        }
    }
    _ = writeln!(
        text,
        "Too much is {:.0} % of instructions, {:.0} % and {} more of misses. Counts wobble by {WOBBLE}.",
        TOLERANCES[0].0 * 100.0,
        TOLERANCES[1].0 * 100.0,
        TOLERANCES[1].1
    );
    (text, is_well)
}

/// The README's table of the record.
pub(crate) fn section(here: &Path) -> Result<String, Box<dyn Error>> {
    Ok(table(&read(here)?))
}

fn table(counts: &Counts) -> String {
    let mut others: Vec<_> = counts
        .keys()
        .map(|(_, of)| of.as_str())
        .filter(|of| *of != TABLE)
        .collect();
    others.sort_unstable();
    others.dedup();
    let whos: Vec<_> = std::iter::once(TABLE).chain(others).collect();
    let mut text = String::from("| per operation |");
    for (name, _) in COUNTS {
        for who in &whos {
            _ = write!(text, " {name}, {who} |");
        }
    }
    _ = writeln!(text, "\n| --- |{}", " ---: |".repeat(COUNTS.len() * whos.len()));
    let mut operations: Vec<_> = counts.keys().map(|(operation, _)| operation).collect();
    operations.dedup();
    for operation in operations {
        _ = write!(text, "| {} |", operation.replace('_', " "));
        for at in 0..COUNTS.len() {
            for who in &whos {
                let count = counts.get(&(operation.clone(), (*who).into()));
                _ = match count {
                    Some(count) if at == 0 => write!(text, " {:.0} |", count[at]),
                    Some(count) => write!(text, " {:.2} |", count[at]),
                    None => write!(text, " |"),
                };
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(instructions: f64, misses: f64) -> Counts {
        let key = |of: &str| ("look_up_one".to_string(), of.to_string());
        [
            (key(TABLE), [instructions, misses, 1.0]),
            (key("dashmap"), [200.0, 3.0, 2.0]),
        ]
        .into()
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let counts = counts(495.25, 4.93);
        assert_eq!(from_json(&to_json("valgrind-3", &counts)), Some(counts));
        assert_eq!(from_json("{}"), None);
    }

    #[test]
    fn more_than_the_tolerance_is_not_well() {
        let old = counts(500.0, 4.0);
        assert!(comparison(&old, &counts(509.0, 4.15)).1);
        assert!(comparison(&old, &counts(300.0, 2.0)).1);
        assert!(!comparison(&old, &counts(511.0, 4.0)).1);
        assert!(!comparison(&old, &counts(500.0, 4.4)).1);
        assert!(!comparison(&Counts::new(), &old).1);
        assert!(!comparison(&old, &Counts::new()).1);
    }

    #[test]
    fn a_line_of_gungraun_is_understood() {
        let value = |n: u64| json!({"values": {"new": n}});
        let metrics = json!({
            "Ir": value(50_000_000), "I1mr": value(0), "D1mr": value(300_000), "D1mw": value(100_000),
            "ILmr": value(0), "DLmr": value(100_000), "DLmw": value(0),
        });
        let line = json!({
            "function_name": "look_up_one", "id": TABLE,
            "profiles": [{"data": {"total": {"metrics": metrics}}}],
        });
        let expected = (("look_up_one".into(), TABLE.into()), [500.0, 4.0, 1.0]);
        assert_eq!(parse(&line.to_string()), Some(expected));
        assert_eq!(parse("{}"), None);
    }
}
