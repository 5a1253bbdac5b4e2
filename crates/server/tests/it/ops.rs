//! The dashboard and the alerts: every metric that they name is documented, and promtool accepts them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{stderr, stdout};

fn ops(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ops").join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(ops(file)).unwrap()
}

/// Returns the type of each documented metric.
fn documented() -> BTreeMap<String, String> {
    let text = include_str!("../../docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let columns = rows.map(|row| {
        row.split('|')
            .map(|cell| cell.trim().trim_matches('`'))
            .collect::<Vec<_>>()
    });
    let metrics = columns.filter(|columns| columns.len() > 4);
    metrics
        .map(|columns| (columns[0].to_owned(), columns[1].to_owned()))
        .collect()
}

/// Returns the words of a text that look like names of the server's metrics.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    let is_metric = |word: &&str| word.starts_with("nodetracker_") || word.starts_with("process_");
    words.filter(is_metric).collect()
}

/// Fails the test if a metric of a text is not documented, or is used as another type has it.
fn assert_documented(file: &str, text: &str) -> usize {
    let documented = documented();
    let names = names(text);
    for &name in &names {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix));
        let is_histogram = family.is_some_and(|family| documented.get(family).is_some_and(|kind| kind == "histogram"));
        let is_plain = documented.get(name).is_some_and(|kind| kind != "histogram");
        assert!(is_histogram || is_plain, "{file}: {name} is not in docs/metrics.md");
    }
    names.len()
}

#[test]
fn every_metric_of_the_alerts_is_documented() {
    assert!(assert_documented("alerts.yaml", &read("alerts.yaml")) >= 14);
    assert_documented("alerts_test.yaml", &read("alerts_test.yaml"));
}

#[test]
fn every_metric_of_the_dashboard_is_documented() {
    let text = read("grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut ids = BTreeSet::new();
    let mut expressions = String::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            expressions += target["expr"].as_str().unwrap();
            expressions.push('\n');
        }
    }
    assert_documented("grafana-dashboard.json", &text);
    // The dashboard shows every metric.
    for (name, kind) in documented() {
        let name = if kind == "histogram" { name + "_bucket" } else { name };
        assert!(names(&expressions).contains(name.as_str()), "no panel shows {name}");
    }
}

/// A panel has one axis. A flag beside seconds, or bytes beside counts, cannot be read.
#[test]
fn the_figures_of_a_panel_have_one_unit() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("grafana-dashboard.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array().into_iter().flatten();
        let units = targets.map(|target| {
            let expression = target["expr"].as_str().unwrap();
            let at = expression.find("nodetracker_").or_else(|| expression.find("process_"));
            let name = expression[at.unwrap()..].split('{').next().unwrap();
            let name = name.trim_end_matches("_total").trim_end_matches("_bucket");
            ["_seconds", "_bytes"].into_iter().find(|unit| name.ends_with(unit))
        });
        assert!(units.collect::<BTreeSet<_>>().len() <= 1, "{panel:#}");
    }
}

/// Before the first snapshot, the time of the last snapshot is 0, which would be an age of half a century.
#[test]
fn a_snapshot_that_was_not_written_has_no_age() {
    const TIME: &str = "nodetracker_snapshot_timestamp_seconds";
    let dashboard: serde_json::Value = serde_json::from_str(&read("grafana-dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let ages: Vec<_> = targets
        .map(|target| target["expr"].as_str().unwrap())
        .filter(|expression| expression.contains(TIME))
        .collect();
    assert!(
        !ages.is_empty() && ages.iter().all(|age| age.contains("> 0")),
        "{ages:?}"
    );
}

/// Needs promtool, openssl and Python.
#[test]
fn promtool_accepts_the_metrics_the_alerts_and_the_dashboard_as_documented() {
    for (tool, version) in [("promtool", "--version"), ("openssl", "version")] {
        if Command::new(tool).arg(version).output().is_err() {
            return eprintln!("SKIPPED: {tool} is not installed; promtool is part of Prometheus");
        }
    }
    let check = Command::new(ops("check"))
        .args(["--server", env!("CARGO_BIN_EXE_nodetracker")])
        .output();
    let check = check.expect("Python is installed");
    let printed = stdout(&check);
    assert!(check.status.success(), "{printed}{}", stderr(&check));
    let documented = include_str!("../../docs/metrics.md");
    // Other versions of promtool print other things.
    let version = |text: &str| {
        text.split_once("# promtool ")
            .map(|(_, rest)| rest.lines().next().unwrap().to_owned())
    };
    match version(documented) == version(&printed) {
        true => assert!(documented.contains(&printed), "docs/metrics.md lacks:\n{printed}"),
        false => eprintln!("SKIPPED: docs/metrics.md is about another version of promtool"),
    }
}
