//! Reads the records of the benches.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::results::{Comparison, Contestant, ContestantKind, Results, Row};

/// The points of one contestant.
pub(crate) type Line<'a> = (&'a str, Vec<(f64, f64)>);

impl Results {
    /// Reads a record of this directory; the error says which file is missing or damaged.
    pub(crate) fn read(directory: &Path, name: &str) -> Result<Self, String> {
        let file = directory.join("recorded").join(name);
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// What machine it was, in a line.
    pub(crate) fn machine(&self) -> String {
        fn or_unknown(text: &Option<String>) -> &str {
            text.as_deref().unwrap_or("unknown")
        }
        let size = |text| {
            let text = or_unknown(text);
            let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(0));
            match (unit.trim(), digits.parse::<u64>()) {
                ("K" | "kB", Ok(kib)) if kib >= 1 << 20 => format!("{} GiB", (kib + (1 << 19)) >> 20),
                ("K" | "kB", Ok(kib)) if kib >= 1 << 10 => format!("{} MiB", kib >> 10),
                _ => text.to_owned(),
            }
        };
        let machine = &self.machine;
        format!(
            "{}; {} cores, an L2 of {} each, an L3 of {}; {} of memory; {}",
            or_unknown(&machine.cpu),
            machine.cores,
            size(&machine.l2),
            size(&machine.l3),
            size(&machine.memory),
            or_unknown(&machine.system),
        )
    }

    pub(crate) fn comparisons(&self) -> impl Iterator<Item = &Comparison> {
        self.rows.iter().filter_map(|row| match row {
            Row::Comparison(row) => Some(row),
            _ => None,
        })
    }

    pub(crate) fn comparison(&self, operation: &str, threads: usize, order: &str, nodes: usize) -> Option<&Comparison> {
        self.comparisons().find(|row| {
            row.operation == operation && row.threads == threads && row.order == order && row.nodes == nodes
        })
    }

    /// The thread counts of the comparisons, in ascending order.
    pub(crate) fn threads(&self) -> Vec<usize> {
        let threads: BTreeSet<_> = self.comparisons().map(|row| row.threads).collect();
        threads.into_iter().collect()
    }

    /// The number of nodes in the first comparison.
    pub(crate) fn nodes(&self) -> Option<usize> {
        self.comparisons().next().map(|row| row.nodes)
    }

    pub(crate) fn curves(&self) -> Vec<Line<'_>> {
        self.rows
            .iter()
            .filter_map(|row| match row {
                Row::Curve { name, curve, .. } => {
                    let points = curve.iter().map(|&(size, value)| (size as f64, value));
                    Some((name.as_str(), points.collect()))
                }
                _ => None,
            })
            .collect()
    }

    pub(crate) fn histograms(&self) -> Vec<Line<'_>> {
        self.rows
            .iter()
            .filter_map(|row| match row {
                Row::Histogram { name, histogram, .. } => {
                    let points = histogram.iter().map(|&(nanos, count)| (nanos as f64, count as f64));
                    Some((name.as_str(), points.collect()))
                }
                _ => None,
            })
            .collect()
    }
}

impl Contestant {
    /// Million operations per second, if the figure is nanoseconds per operation.
    pub(crate) fn mops(&self) -> f64 {
        1_000.0 / self.median
    }

    pub(crate) fn is_peer(&self) -> bool {
        matches!(self.kind, ContestantKind::Locks | ContestantKind::LockFree)
    }
}

impl Comparison {
    /// The best of the contestants that are meant.
    pub(crate) fn best(&self, is_meant: impl Fn(&Contestant) -> bool) -> Option<&Contestant> {
        let others = self.contestants.iter().filter(|contestant| is_meant(contestant));
        others.min_by(|a, b| a.median.total_cmp(&b.median))
    }

    pub(crate) fn of(&self, name: &str) -> Option<&Contestant> {
        self.contestants.iter().find(|contestant| contestant.name == name)
    }

    pub(crate) fn table(&self) -> Option<&Contestant> {
        self.best(|contestant| contestant.kind == ContestantKind::Table)
    }
}
