//! What the benches recorded, read back.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// The record of one bench.
#[derive(Debug)]
pub(crate) struct Record {
    machine: Value,
    rows: Vec<Value>,
}

/// One contestant's part of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) median: f64,
    /// The table's ratio to it.
    pub(crate) ratio: f64,
}

/// A row of several contestants, the table first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a>(&'a Value);

impl Record {
    /// Reads a record of this directory; the error says which file is missing or damaged.
    pub(crate) fn read(directory: &Path, name: &str) -> Result<Self, String> {
        let file = directory.join("recorded").join(name);
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        Self::parse(&text).ok_or_else(|| format!("{}: this is not what a bench records", file.display()))
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut value: Value = serde_json::from_str(text).ok()?;
        let Value::Array(rows) = value.get_mut("rows")?.take() else {
            return None;
        };
        Some(Self {
            machine: value["machine"].take(),
            rows,
        })
    }

    /// What machine it was, in a line.
    pub(crate) fn machine(&self) -> String {
        let text = |name: &str| self.machine[name].as_str().unwrap_or("unknown");
        let size = |name| {
            let (digits, unit) = text(name).split_at(text(name).find(|c: char| !c.is_ascii_digit()).unwrap_or(0));
            let kib: u64 = digits.parse().ok()?;
            Some(match (unit.trim(), kib) {
                ("K" | "kB", kib) if kib >= 1 << 20 => format!("{} GiB", (kib + (1 << 19)) >> 20),
                ("K" | "kB", kib) if kib >= 1 << 10 => format!("{} MiB", kib >> 10),
                _ => text(name).to_string(),
            })
        };
        let size = |name| size(name).unwrap_or_else(|| "unknown".into());
        format!(
            "{}; {} cores, an L2 of {} each, an L3 of {}; {} of memory; {}",
            text("cpu"),
            self.machine["cores"],
            size("l2"),
            size("l3"),
            size("memory"),
            text("system"),
        )
    }

    fn of<'a>(&'a self, operation: &'a str) -> impl Iterator<Item = &'a Value> {
        self.rows.iter().filter(move |row| row["operation"] == operation)
    }

    pub(crate) fn row<'a>(&'a self, operation: &'a str, threads: u64, order: &str, nodes: u64) -> Option<Row<'a>> {
        let is_it = |row: &&Value| row["threads"] == threads && row["order"] == order && row["nodes"] == nodes;
        self.of(operation).find(is_it).map(Row)
    }

    /// All rows of several contestants.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().filter(|row| row["contestants"].is_array()).map(Row)
    }

    /// The thread counts of the rows of several contestants, in ascending order.
    pub(crate) fn threads(&self) -> Vec<u64> {
        let threads: BTreeSet<_> = self.rows().map(|row| row.number("threads")).collect();
        threads.into_iter().collect()
    }

    /// The number of nodes in the first row of several contestants.
    pub(crate) fn nodes(&self) -> Option<u64> {
        self.rows().next().map(|row| row.number("nodes"))
    }

    /// The number of cores of the machine.
    pub(crate) fn cores(&self) -> u64 {
        self.machine["cores"].as_u64().unwrap_or_default()
    }

    /// Single values, with their units and the number of nodes.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&str, f64, &str, u64)> {
        self.rows.iter().filter_map(|row| {
            Some((
                row["operation"].as_str()?,
                row["value"].as_f64()?,
                row["unit"].as_str()?,
                row["nodes"].as_u64()?,
            ))
        })
    }

    /// By contestant, the points under a name: `"curve"`, or `"histogram"`.
    pub(crate) fn points(&self, kind: &str) -> Vec<(&str, Vec<(f64, f64)>)> {
        let read = |row: &Value| {
            let points = row[kind]
                .as_array()?
                .iter()
                .map(|point| Some((point[0].as_f64()?, point[1].as_f64()?)));
            points.collect::<Option<Vec<_>>>()
        };
        let rows = self.rows.iter();
        rows.filter_map(|row| Some((row["name"].as_str()?, read(row)?)))
            .collect()
    }
}

impl Figure<'_> {
    /// Million operations per second, where the figure is nanoseconds per operation.
    pub(crate) fn mops(&self) -> f64 {
        1_000.0 / self.median
    }
}

impl<'a> Row<'a> {
    pub(crate) fn text(self, name: &str) -> &'a str {
        self.0[name].as_str().unwrap_or_default()
    }

    pub(crate) fn number(self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or_default()
    }

    pub(crate) fn figures(self) -> Vec<Figure<'a>> {
        let contestants = self.0["contestants"].as_array();
        let figure = |value: &'a Value| {
            Some(Figure {
                name: value["name"].as_str()?,
                kind: value["kind"].as_str()?,
                median: value["median"].as_f64()?,
                // Where it took no time that could be told, there is none.
                ratio: value["ratio"].as_f64().unwrap_or(f64::NAN),
            })
        };
        contestants.into_iter().flatten().filter_map(figure).collect()
    }

    /// The best of the peers that several threads can share.
    pub(crate) fn best_peer(self) -> Option<Figure<'a>> {
        self.best(|figure| matches!(figure.kind, "locks" | "lock-free"))
    }

    /// The best of the contestants that are meant, the table not among them.
    pub(crate) fn best(self, is_meant: impl Fn(&Figure<'_>) -> bool) -> Option<Figure<'a>> {
        let others = self.figures().into_iter().filter(|figure| is_meant(figure));
        others.min_by(|a, b| a.median.total_cmp(&b.median))
    }

    pub(crate) fn table(self) -> Option<Figure<'a>> {
        self.figures().into_iter().find(|figure| figure.kind == "table")
    }
}
