//! The checks that prove the table correct, counted in the sources.

use std::fs;
use std::io;
use std::path::Path;

/// The table of proofs. The command of a row prints the figures that only a run has.
pub(crate) fn section(root: &Path) -> io::Result<String> {
    let mut models = 0;
    in_each_file(&root.join("src"), &mut |name, text| {
        if name == "models.rs" {
            models += text.matches("#[test]").count();
        }
    })?;
    let mut targets = 0;
    in_each_file(&root.join("fuzz/fuzz_targets"), &mut |_, _| targets += 1)?;
    let mutations = fs::read_to_string(root.join("proof/mutations.txt"))?;
    let mutations = mutations.lines().filter(|line| line.starts_with("name:")).count();
    let histories = histories(&fs::read_to_string(root.join("tests/it/linearizability.rs"))?);
    let rows = [
        (
            "loom models of the protocols, reclamation included; each prints how many executions it took",
            models.to_string(),
            "cargo xtask models",
        ),
        (
            "histories of two to four real threads, checked for linearizability, in a normal run",
            thousands(histories),
            "cargo test --test it linearizability",
        ),
        (
            "weakenings of the source, each caught by the test that it names",
            mutations.to_string(),
            "cargo xtask mutations",
        ),
        (
            "fuzz targets; [executions and coverage](../fuzz/README.md)",
            targets.to_string(),
            "cargo +nightly fuzz run ops",
        ),
        (
            "a thread stopped at each step, while the others run",
            "every step".into(),
            "cargo test --lib failpoints",
        ),
        (
            "random operations against a model that is a plain map, shrunk where they fail",
            String::new(),
            "cargo test --test it model",
        ),
        (
            "sanitizers, under the tests of many threads",
            "address, thread".into(),
            "cargo xtask sanitizers",
        ),
        (
            "churn, with an eye on the memory",
            "as long as you like".into(),
            "cargo run --release --example soak -- 600",
        ),
    ];
    let mut text = String::from("| | | command |\n| --- | ---: | --- |\n");
    for (what, count, command) in rows {
        text += &format!("| {what} | {count} | `{command}` |\n");
    }
    Ok(text)
}

/// Calls `each` with the name and the text of every file below a directory.
fn in_each_file(directory: &Path, each: &mut impl FnMut(&str, &str)) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            in_each_file(&path, each)?;
        } else {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            each(&name, &fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// The sum of the counts in the calls of `check_histories(threads, count * scale())`.
fn histories(source: &str) -> u64 {
    let count = |call: &str| -> Option<u64> {
        let (count, _) = call.split_once(" * scale()")?;
        let (_, count) = count.split_once(", ")?;
        count.replace('_', "").parse().ok()
    };
    source.split("check_histories(").skip(1).filter_map(count).sum()
}

/// With a comma between the thousands.
fn thousands(n: u64) -> String {
    match n {
        n if n < 1_000 => n.to_string(),
        n => format!("{},{:03}", thousands(n / 1_000), n % 1_000),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn histories_are_added_up_where_the_test_asks_for_them() {
        let source = "fn check_histories(threads: usize, count: usize) {}\n\
                      check_histories(2, 12_000 * scale());\ncheck_histories(3, 500 * scale());\n";
        assert_eq!(histories(source), 12_500);
    }

    #[test]
    fn every_proof_is_found() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let section = section(root).unwrap();
        assert!(!section.contains("| 0 |"), "{section}");
    }

    /// A row of two cells, the second a number with commas.
    fn counted(row: &str) -> Option<(&str, u64)> {
        let (name, count) = row.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
        Some((name, count.replace(',', "").parse().ok()?))
    }

    /// The names and the sums in `proof/README.md` are those of the models and of the mutations.
    #[test]
    fn the_readme_of_the_proof_has_every_model_and_the_counts_of_mutations() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let readme = fs::read_to_string(root.join("proof/README.md")).unwrap();
        let (mut listed, mut groups, mut mutations) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        for (name, count) in readme.lines().filter_map(counted) {
            if let Some(group) = name.strip_prefix("**") {
                groups.push((group, count, 0));
            } else if let Some(kind) = ["loom models", "unit tests", "integration tests"]
                .iter()
                .find(|kind| **kind == name)
            {
                mutations.insert(*kind, count);
            } else {
                groups.last_mut().expect("a model is in a group").2 += count;
                let function = name.replace(' ', "_").replace('\'', "");
                assert!(listed.insert(function, count).is_none(), "{name} is listed twice");
            }
        }
        for (group, count, sum) in &groups {
            assert_eq!(count, sum, "{group}");
        }
        let total: u64 = listed.values().sum();
        let heading = format!("{} loom models, {} executions", listed.len(), thousands(total));
        assert!(readme.contains(&heading), "the first table should have {heading:?}");

        let mut models = Vec::new();
        in_each_file(&root.join("src"), &mut |file, text| {
            let tests = text.split("#[test]\nfn ").skip(1).filter(|_| file == "models.rs");
            models.extend(tests.filter_map(|test| Some(test.split_once('(')?.0.to_owned())));
        })
        .unwrap();
        models.sort();
        assert_eq!(listed.into_keys().collect::<Vec<_>>(), models);

        let records = fs::read_to_string(root.join("proof/mutations.txt")).unwrap();
        let mut kinds = BTreeMap::new();
        for test in records.lines().filter_map(|line| line.strip_prefix("test: ")) {
            let kind = match test.split(' ').next() {
                Some("loom") => "loom models",
                Some("lib") => "unit tests",
                _ => "integration tests",
            };
            *kinds.entry(kind).or_insert(0) += 1;
        }
        assert_eq!(mutations, kinds);
        let heading = format!("{} weakenings", kinds.values().sum::<u64>());
        assert!(readme.contains(&heading), "the first table should have {heading:?}");
    }

    #[test]
    fn thousands_have_commas() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(thousands),
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
