//! The file that a bench writes with `--record`. The program in `profiles/` includes this module to read the file.

use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) rows: Vec<Row>,
}

/// The machine, as far as the system describes it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) cpu: Option<String>,
    pub(crate) l2: Option<String>,
    pub(crate) l3: Option<String>,
    pub(crate) memory: Option<String>,
    pub(crate) system: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Row {
    Comparison(Comparison),
    /// How long single operations took: nanoseconds, and how often.
    Histogram {
        histogram: Vec<(u64, u64)>,
        name: String,
        nodes: usize,
        operation: String,
    },
    /// Values that belong to sizes.
    Curve {
        curve: Vec<(usize, f64)>,
        name: String,
        operation: String,
        unit: String,
    },
    /// A value of the table.
    Value {
        nodes: usize,
        operation: String,
        unit: String,
        value: f64,
    },
}

/// The same operation by several contestants, the table first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) contestants: Vec<Contestant>,
    pub(crate) nodes: usize,
    pub(crate) operation: String,
    pub(crate) order: String,
    pub(crate) rounds: usize,
    pub(crate) threads: usize,
    pub(crate) unit: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Contestant {
    pub(crate) kind: ContestantKind,
    pub(crate) median: f64,
    pub(crate) name: String,
    /// The table's ratio to this contestant. `None` if the operation took no measurable time.
    pub(crate) ratio: Option<f64>,
}

/// The kind of a contestant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ContestantKind {
    Table,
    /// Has a lock that one thread can make another wait for.
    Locks,
    LockFree,
    /// No peer, but a reference: one thread only, or another way to the same result.
    Reference,
}

impl Results {
    /// Writes a line for each row.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        let rows: serde_json::Result<Vec<_>> = self.rows.iter().map(serde_json::to_string).collect();
        let machine = serde_json::to_string(&self.machine)?;
        Ok(format!(
            "{{\n\"machine\":{machine},\n\"rows\":[\n{}\n]}}\n",
            rows?.join(",\n")
        ))
    }
}
