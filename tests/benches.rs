//! The benches' own parts, without measuring time: their command lines, and the work and the records of `scaling`.

use std::collections::HashSet;

use serde_json::Value;

#[path = "../benches/scaling.rs"]
mod scaling;
// By the names that the benches have for them.
use scaling::{peers, support};

use support::args::Args;
use support::check::all_agree;
use support::machine::{slug, slugged};

fn args(words: &str) -> Result<Args, String> {
    Args::read(words.split_whitespace().map(String::from))
}

#[test]
fn a_command_line_is_read_in_any_order() {
    let expected = Args {
        words: vec!["insert".into(), "zipf".into()],
        record: Some("a/file.json".into()),
        seconds: Some(10),
        is_bench: true,
    };
    for words in [
        "--bench --seconds 10 --record a/file.json insert zipf",
        "insert --record a/file.json zipf --seconds 10 --bench",
    ] {
        assert_eq!(args(words).as_ref(), Ok(&expected), "{words}");
    }
    assert_eq!(args(""), Ok(Args::default()));
    // Those of cargo's own tests.
    assert_eq!(args("--nocapture"), Ok(Args::default()));
}

#[test]
fn an_error_names_the_wrong_word_of_a_command_line() {
    for (words, named) in [
        ("--record", "--record"),
        ("--seconds", "--seconds"),
        ("--seconds soon", "\"soon\""),
        ("--seconds -1", "\"-1\""),
        ("--seconds 1.5", "\"1.5\""),
    ] {
        let error = args(words).unwrap_err();
        assert!(error.contains(named), "{words}: {error}");
    }
}

#[test]
fn a_machine_has_a_name_that_a_file_can_have() {
    assert_eq!(
        slugged("Intel(R) Xeon(R) @ 2.10GHz, family 6, model 143; 16 cores"),
        "intel-r-xeon-r-2-10ghz-family-6-model-143-16-cores"
    );
    assert_eq!(slugged(&slug()), slug());
}

/// A budget of no time: each turn is as short as possible.
fn smallest(words: &[&str]) -> Args {
    Args {
        words: words.iter().map(|word| (*word).into()).collect(),
        seconds: Some(0),
        ..Args::default()
    }
}

#[test]
fn a_run_of_scaling_records_every_row_that_is_wanted_with_every_contestant() {
    all_agree();
    let file = std::env::temp_dir().join(format!("nodetracker-scaling-{}.json", std::process::id()));
    let args = Args {
        record: Some(file.clone()),
        // Without the rows that keep many threads busy for long.
        ..smallest(&["1 thread", "8 threads"])
    };
    scaling::measure(&args, 1_000_000).unwrap().save(&args).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();

    assert!(record["machine"]["cores"].as_u64() >= Some(1), "{record}");
    let rows = record["rows"].as_array().unwrap();
    let subject = |row: &Value| [&row["operation"], &row["order"], &row["threads"]].map(Value::to_string);
    let subjects: HashSet<_> = rows.iter().map(subject).collect();
    // Four operations in two orders and two in one, with one thread and with eight.
    assert_eq!((rows.len(), subjects.len()), (20, 20));
    for row in rows {
        assert_eq!((&row["unit"], &row["nodes"]), (&"ns".into(), &1_000.into()), "{row}");
        let contestants = row["contestants"].as_array().unwrap();
        let names: HashSet<_> = contestants.iter().map(|each| each["name"].as_str()).collect();
        assert_eq!((contestants.len(), names.len()), (6, 6), "{row}");
        assert_eq!(contestants[0]["name"], "nodetracker", "{row}");
        let is_figure = |each: &Value| each["median"].as_f64().is_some_and(|nanos| nanos > 0.0);
        assert!(contestants.iter().all(is_figure), "{row}");
    }
}

#[test]
fn a_run_of_scaling_that_would_measure_nothing_names_the_words() {
    let error = scaling::measure(&smallest(&["looking"]), 1_000).unwrap_err();
    assert!(error.contains("looking"), "{error}");
}
