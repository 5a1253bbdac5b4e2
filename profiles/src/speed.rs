//! The budgets of time, and the tables of the recorded times.
//!
//! If there are peers, a budget is a ratio within one run, and binds at one million and ten million routes.

use std::fmt::Write;

use crate::results::{Comparison, Contestant, ContestantKind, Results, Row};

/// The contestants that the table is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Against {
    BestPeer,
    BestThatLocks,
    /// No peer: one thread without synchronisation, or another way to the same result.
    Reference,
    /// A figure of its own, in the row's unit.
    Absolute,
}

/// One row of the table of budgets.
struct Goal {
    what: &'static str,
    operation: &'static str,
    threads: usize,
    order: &'static str,
    against: Against,
    limit: Option<f64>,
}

const fn goal(what: &'static str, operation: &'static str, against: Against, limit: f64) -> Goal {
    Goal {
        what,
        operation,
        threads: 1,
        order: "uniform",
        against,
        limit: Some(limit),
    }
}

impl Goal {
    const fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    const fn order(mut self, order: &'static str) -> Self {
        self.order = order;
        self
    }

    /// Shown, though nothing is asked of it.
    const fn without_limit(mut self) -> Self {
        self.limit = None;
        self
    }
}

const HALF: &str = "half refresh, half look-up";
const TAIL: &str = "p99.99 of a look-up while 3 threads insert and remove";

const GOALS: &[Goal] = &[
    goal("look-up, one at a time", "look-up", Against::BestPeer, 1.0),
    goal("the same, zipf 0.99", "look-up", Against::BestPeer, 1.0)
        .order("zipf")
        .without_limit(),
    goal(
        "look-up in batches of 64",
        "look-up in batches of 64",
        Against::BestPeer,
        0.5,
    ),
    goal(
        "the same, beside one thread's hashbrown",
        "look-up in batches of 64",
        Against::Reference,
        0.8,
    ),
    goal("refresh, one at a time", "refresh", Against::BestPeer, 1.0),
    goal("the same, zipf 0.99", "refresh", Against::BestPeer, 1.0)
        .order("zipf")
        .without_limit(),
    goal(
        "refresh by handle, in batches of 64",
        "refresh in batches of 64 by handle",
        Against::BestPeer,
        0.25,
    )
    .order(""),
    goal(
        "insert from empty, growth included",
        "insert from empty",
        Against::BestPeer,
        1.0,
    )
    .order(""),
    goal(
        "its longest pause, the median of several runs",
        "longest pause of an insert from empty",
        Against::Absolute,
        300.0,
    )
    .order(""),
    goal("half refresh, half look-up, two threads", HALF, Against::BestPeer, 0.9).threads(2),
    goal("the same, zipf 0.99", HALF, Against::BestPeer, 0.6)
        .threads(2)
        .order("zipf"),
    goal("the same, four threads on two cores", HALF, Against::BestPeer, 0.9)
        .threads(4)
        .without_limit(),
    goal(
        "the same, four threads on two cores, zipf 0.99",
        HALF,
        Against::BestPeer,
        0.6,
    )
    .threads(4)
    .order("zipf")
    .without_limit(),
    goal(
        "p99.99 of a look-up while three threads insert and remove",
        TAIL,
        Against::BestPeer,
        1.0,
    )
    .threads(4),
    goal(
        "the same, beside the peers that lock",
        TAIL,
        Against::BestThatLocks,
        0.5,
    )
    .threads(4),
    goal(
        "the same, waits for a core included",
        "p99.99 by the wall of a look-up while 3 threads insert and remove",
        Against::BestPeer,
        1.0,
    )
    .threads(4)
    .without_limit(),
    goal(
        "full sweep, nothing expired (a guide)",
        "sweep, nothing expired",
        Against::Absolute,
        5.0,
    )
    .order(""),
    goal(
        "its longest single step",
        "longest step of a sweep",
        Against::Absolute,
        50.0,
    )
    .order(""),
    goal(
        "bulk build from a snapshot, beside one by one",
        "bulk build from a snapshot",
        Against::Reference,
        0.25,
    )
    .threads(2)
    .order(""),
];

/// The sizes, and whether a budget binds there.
const SIZES: [(usize, bool); 3] = [(100_000, false), (1_000_000, true), (10_000_000, true)];
/// The size whose times are shown.
const MILLION: usize = 1_000_000;

impl Goal {
    fn row<'a>(&self, record: &'a Results, nodes: usize) -> Option<&'a Comparison> {
        record.comparison(self.operation, self.threads, self.order, nodes)
    }

    /// The peer to compare the table with: the fastest of the selected peers.
    fn other<'a>(&self, row: &'a Comparison) -> Option<&'a Contestant> {
        match self.against {
            Against::BestPeer | Against::Absolute => row.best(Contestant::is_peer),
            Against::BestThatLocks => row.best(|figure| figure.kind == ContestantKind::Locks),
            Against::Reference => row.best(|figure| figure.kind == ContestantKind::Reference),
        }
    }

    /// The kind of figure that the limit binds.
    fn value(&self, row: &Comparison) -> Option<f64> {
        match self.against {
            Against::Absolute => row.table().map(|table| table.median),
            _ => self.other(row)?.ratio,
        }
    }

    /// Whether the limit holds at all sizes at which it binds; `None` without a limit or a measurement.
    fn holds(&self, record: &Results) -> Option<bool> {
        let limit = self.limit?;
        let bound = SIZES.iter().filter(|(_, binds)| *binds);
        let values: Vec<_> = bound
            .filter_map(|&(nodes, _)| self.value(self.row(record, nodes)?))
            .collect();
        (!values.is_empty()).then(|| values.iter().all(|&value| value <= limit))
    }

    fn show_limit(&self, unit: &str) -> String {
        match (self.limit, self.against) {
            (None, _) => String::new(),
            (Some(limit), Against::Absolute) => time(limit, unit),
            (Some(limit), _) => limit.to_string(),
        }
    }
}

/// A time to the digits that it deserves.
fn time(value: f64, unit: &str) -> String {
    let unit = unit.strip_suffix(" per route").unwrap_or(unit);
    match value {
        v if v < 10.0 => format!("{} {unit}", (v * 10.0).round() / 10.0),
        v if unit == "µs" && v >= 1_000.0 => time(v / 1_000.0, "ms"),
        v => format!("{v:.0} {unit}"),
    }
}

/// A name that Markdown takes for no tag.
fn name(of: &str) -> String {
    of.replace('<', "&lt;").replace('>', "&gt;")
}

/// The table of budgets.
pub(crate) fn budgets(record: &Results) -> String {
    let mut text = String::from(
        "| | at most | the table, 1M | the other, 1M | 100k | 1M | 10M | |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n",
    );
    for goal in GOALS {
        let Some(row) = goal.row(record, MILLION) else { continue };
        let unit = row.unit.as_str();
        let table = row.table().map_or(String::new(), |table| time(table.median, unit));
        let other = goal.other(row).map_or(String::new(), |other| {
            format!("{} ({})", time(other.median, unit), name(&other.name))
        });
        _ = write!(
            text,
            "| {} | {} | {table} | {other} |",
            goal.what,
            goal.show_limit(unit)
        );
        for (nodes, _) in SIZES {
            let value = goal.row(record, nodes).and_then(|row| goal.value(row));
            _ = match (value, goal.against) {
                (None, _) => write!(text, " |"),
                (Some(value), Against::Absolute) => write!(text, " {} |", time(value, unit)),
                (Some(ratio), _) => write!(text, " {ratio:.2} |"),
            };
        }
        let verdict = match goal.holds(record) {
            None => "",
            Some(true) => "holds",
            Some(false) => "not yet",
        };
        _ = writeln!(text, " {verdict} |");
    }
    text
}

/// Every row that was recorded, contestant by contestant.
pub(crate) fn all_rows(record: &Results) -> String {
    let mut names = Vec::new();
    for figure in record.comparisons().flat_map(|row| &row.contestants) {
        if !names.contains(&figure.name.as_str()) && figure.name != "the same one by one" {
            names.push(&figure.name);
        }
    }
    let mut text = String::from("| |");
    names.iter().for_each(|of| _ = write!(text, " {} |", name(of)));
    _ = writeln!(text, "\n| --- |{}", " ---: |".repeat(names.len()));
    for row in record.comparisons() {
        if row.of("dashmap").is_none() {
            continue;
        }
        let order = match row.order.as_str() {
            "" => String::new(),
            order => format!(", {order}"),
        };
        let plural = if row.threads == 1 { "" } else { "s" };
        _ = write!(
            text,
            "| {}, {} thread{plural}{order}, {} |",
            row.operation,
            row.threads,
            size(row.nodes)
        );
        for name in &names {
            _ = match row.of(name) {
                Some(figure) => write!(text, " {} |", time(figure.median, &row.unit)),
                None => write!(text, " |"),
            };
        }
        text.push('\n');
    }
    text
}

/// A short name of a size.
pub(crate) fn size(nodes: usize) -> String {
    match nodes {
        n if n % 1_000_000 == 0 => format!("{}M", n / 1_000_000),
        n if n % 1_000 == 0 => format!("{}k", n / 1_000),
        n => n.to_string(),
    }
}

/// The table's throughput on one machine, over threads, with its ratio to the best peer's throughput.
pub(crate) fn scaling(record: &Results) -> String {
    let threads = record.threads();
    let mut lines = Vec::new();
    for row in record.comparisons() {
        let line = [&row.operation, &row.order];
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    let nodes = record.nodes().unwrap_or_default();
    let mut text = format!("{}; {} routes.\n\n| threads |", record.machine(), size(nodes));
    threads.iter().for_each(|count| _ = write!(text, " {count} |"));
    _ = writeln!(text, "\n| --- |{}", " ---: |".repeat(threads.len()));
    for [operation, order] in lines {
        let comma = if order.is_empty() { "" } else { ", " };
        _ = write!(text, "| {operation}{comma}{order} |");
        for &count in &threads {
            let cell = record.comparison(operation, count, order, nodes).and_then(|row| {
                let ratio = 1.0 / row.best(Contestant::is_peer)?.ratio?;
                Some(format!(" {:.1}, {ratio:.2} x |", row.table()?.mops()))
            });
            text += cell.as_deref().unwrap_or(" |");
        }
        text.push('\n');
    }
    text
}

/// Single values without sizes, one a line, and the machine.
pub(crate) fn calls(record: &Results) -> String {
    let mut text = String::from("| | |\n| --- | ---: |\n");
    for row in &record.rows {
        if let Row::Value {
            operation, unit, value, ..
        } = row
        {
            _ = writeln!(text, "| {operation} | {} |", time(*value, unit));
        }
    }
    _ = writeln!(text, "\n{}.", record.machine());
    text
}

/// Single values, one a line.
pub(crate) fn values(record: &Results) -> String {
    let mut text = String::from("| | routes | |\n| --- | ---: | ---: |\n");
    for row in &record.rows {
        let Row::Value {
            nodes,
            operation,
            unit,
            value,
        } = row
        else {
            continue;
        };
        let value = match unit.strip_prefix("B") {
            Some(_) => format!("{value:.1} B per route"),
            None => time(*value, unit),
        };
        _ = writeln!(text, "| {operation} | {} | {value} |", size(*nodes));
    }
    text
}

/// The peak bytes per route of each contestant, at some sizes.
pub(crate) fn bytes(record: &Results) -> String {
    let sizes = [10_000, 100_000, 1_000_000, 10_000_000];
    let mut text = String::from("| |");
    sizes.iter().for_each(|&nodes| _ = write!(text, " {} |", size(nodes)));
    _ = writeln!(text, "\n| --- |{}", " ---: |".repeat(sizes.len()));
    for (of, points) in record.curves() {
        _ = write!(text, "| {} |", name(of));
        for nodes in sizes {
            // The sizes are steps: the first from there on.
            let point = points.iter().find(|&&(routes, _)| routes >= nodes as f64);
            _ = match point {
                Some((_, bytes)) => write!(text, " {bytes:.1} B |"),
                None => write!(text, " |"),
            };
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(at_ten_million: f64) -> Results {
        let row = |nodes: usize, ratio: f64| {
            serde_json::json!({
                "operation": "look-up", "threads": 1, "order": "uniform", "nodes": nodes, "unit": "ns", "rounds": 3,
                "contestants": [
                    {"name": "nodetracker", "kind": "table", "median": 90.0, "ratio": 1.0},
                    {"name": "dashmap", "kind": "locks", "median": 100.0, "ratio": ratio},
                    {"name": "scc", "kind": "locks", "median": 120.0, "ratio": 0.1},
                    {"name": "hashbrown", "kind": "reference", "median": 50.0, "ratio": 0.1},
                ],
            })
        };
        let rows = [row(100_000, 7.0), row(1_000_000, 0.9), row(10_000_000, at_ten_million)];
        serde_json::from_value(serde_json::json!({"machine": {"cores": 2}, "rows": rows})).unwrap()
    }

    #[test]
    fn a_budget_is_for_the_ratio_to_the_best_peer_at_a_million_and_more() {
        let goal = &GOALS[0];
        assert_eq!(goal.holds(&record(0.95)), Some(true));
        assert_eq!(goal.holds(&record(1.01)), Some(false));
        assert_eq!(GOALS[1].holds(&record(0.95)), None);
        let table = budgets(&record(0.95));
        let line = table
            .lines()
            .find(|line| line.contains("look-up, one at a time"))
            .unwrap();
        assert_eq!(
            line,
            "| look-up, one at a time | 1 | 90 ns | 100 ns (dashmap) | 7.00 | 0.90 | 0.95 | holds |"
        );
    }

    #[test]
    fn a_machine_has_a_line_for_each_operation_and_order_and_a_column_for_each_thread_count() {
        let row = |operation: &str, order: &str, threads: usize| {
            serde_json::json!({
                "operation": operation, "threads": threads, "order": order, "nodes": 1_000_000, "unit": "ns", "rounds": 3,
                "contestants": [
                    {"name": "nodetracker", "kind": "table", "median": 100.0 / threads as f64, "ratio": 1.0},
                    {"name": "dashmap", "kind": "locks", "median": 90.0, "ratio": 0.8},
                    {"name": "papaya", "kind": "lock-free", "median": 120.0, "ratio": 0.1},
                ],
            })
        };
        let rows = [
            row("insert from empty", "", 1),
            row("look-up", "zipf", 1),
            row("look-up", "zipf", 16),
            row("look-up", "uniform", 1),
        ];
        let record = serde_json::json!({"machine": {"cores": 16, "cpu": "a processor"}, "rows": rows});
        let text = scaling(&serde_json::from_value(record).unwrap());
        assert!(text.starts_with("a processor; 16 cores, "), "{text}");
        let lines: Vec<_> = text.lines().skip_while(|line| !line.starts_with('|')).collect();
        assert_eq!(
            lines,
            [
                "| threads | 1 | 16 |",
                "| --- | ---: | ---: |",
                "| insert from empty | 10.0, 1.25 x | |",
                "| look-up, zipf | 10.0, 1.25 x | 160.0, 1.25 x |",
                "| look-up, uniform | 10.0, 1.25 x | |",
            ]
        );
    }

    #[test]
    fn times_have_the_digits_that_they_deserve() {
        assert_eq!(time(5.04, "ns per route"), "5 ns");
        assert_eq!(time(99.6, "ns"), "100 ns");
        assert_eq!(time(20_100.0, "µs"), "20 ms");
        assert_eq!(time(3_520.0, "µs"), "3.5 ms");
    }
}
