//! Interleaved rounds, their report, and their record.
//!
//! In each round each contestant runs once, so other load of the machine affects all of them alike. The report has
//! medians, and the median of each round's ratio between the table and the best peer.

use std::fmt;
use std::io;

use hdrhistogram::iterators::IterationValue;

use crate::peers::{ContestantKind, Peer};
use crate::support::args::Args;
use crate::support::histogram::Histogram;
use crate::support::machine;
use crate::support::results::{self, Comparison, Contestant, Results};
use crate::support::steps::size_name;

/// The subject of a row. Its title has all fields; the command line's words select titles.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject {
    pub(crate) operation: &'static str,
    pub(crate) threads: usize,
    /// The order of the nodes; empty if the operation has only one order.
    pub(crate) order: &'static str,
    pub(crate) nodes: usize,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            threads,
            order,
            nodes,
        } = *self;
        write!(
            f,
            "{operation}, {threads} thread{}",
            if threads == 1 { "" } else { "s" }
        )?;
        if !order.is_empty() {
            write!(f, ", {order}")?;
        }
        write!(f, ", {}", size_name(nodes))
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Who {
    pub(crate) name: &'static str,
    pub(crate) kind: ContestantKind,
}

impl Who {
    pub(crate) fn of<P: Peer>() -> Self {
        Self {
            name: P::NAME,
            kind: P::KIND,
        }
    }
}

/// One contestant's part in a row of the report: each call measures it once, in the row's unit.
pub(crate) struct Measurement<'a> {
    pub(crate) who: Who,
    pub(crate) measure: Box<dyn FnMut() -> f64 + 'a>,
}

/// The results of one row. The first contestant is the table.
#[derive(Debug)]
pub(crate) struct Row {
    subject: Subject,
    unit: &'static str,
    whos: Vec<Who>,
    rounds: Vec<Vec<f64>>,
}

impl Row {
    pub(crate) fn new(subject: Subject, unit: &'static str, whos: Vec<Who>) -> Self {
        Self {
            subject,
            unit,
            whos,
            rounds: Vec::new(),
        }
    }

    /// Adds one value for each contestant.
    pub(crate) fn push(&mut self, values: Vec<f64>) {
        assert_eq!(values.len(), self.whos.len(), "a round has a value for each");
        self.rounds.push(values);
    }

    /// Measures each contestant once in each round.
    pub(crate) fn measure(
        subject: Subject,
        unit: &'static str,
        rounds: impl Iterator<Item = usize>,
        mut measurements: Vec<Measurement<'_>>,
    ) -> Self {
        let mut row = Self::new(
            subject,
            unit,
            measurements.iter().map(|measurement| measurement.who).collect(),
        );
        let count = measurements.len();
        for round in rounds {
            let mut values = vec![0.0; count];
            // Another contestant begins each time.
            for at in (0..count).map(|at| (at + round) % count) {
                values[at] = (measurements[at].measure)();
            }
            row.push(values);
        }
        row
    }

    fn median(&self, contestant: usize) -> f64 {
        median(self.rounds.iter().map(|values| values[contestant]).collect())
    }

    /// The table's ratio to a contestant.
    fn ratio(&self, contestant: usize) -> f64 {
        median(
            self.rounds
                .iter()
                .map(|values| values[0] / values[contestant])
                .collect(),
        )
    }

    fn best_peer(&self) -> Option<usize> {
        (1..self.whos.len())
            .filter(|&at| self.whos[at].kind != ContestantKind::Reference)
            .min_by(|&a, &b| self.median(a).total_cmp(&self.median(b)))
    }

    /// Each contestant's name and median, and the table's ratio to the best peer.
    pub(crate) fn medians(&self) -> (impl Iterator<Item = (&'static str, f64)>, f64) {
        let ratio = self.best_peer().map_or(f64::NAN, |best| self.ratio(best));
        let median = |at: usize| (self.whos[at].name, self.median(at));
        ((0..self.whos.len()).map(median), ratio)
    }

    /// One line per contestant: its median, and the table's ratio to it.
    fn print(&self) {
        println!("\n{} ({})", self.subject, self.unit);
        let best = self.best_peer();
        for (at, who) in self.whos.iter().enumerate() {
            let ratio = match at {
                0 => String::new(),
                _ => format!("{:.2}", self.ratio(at)),
            };
            let mark = if Some(at) == best { "  best peer" } else { "" };
            println!("  {:<24}{:>12}  {ratio:>6}{mark}", who.name, figure(self.median(at)));
        }
    }

    fn results(&self) -> Comparison {
        let contestant = |(at, who): (usize, &Who)| Contestant {
            kind: who.kind,
            median: rounded(self.median(at)),
            name: who.name.into(),
            ratio: Some(rounded(self.ratio(at))).filter(|ratio| ratio.is_finite()),
        };
        Comparison {
            contestants: self.whos.iter().enumerate().map(contestant).collect(),
            nodes: self.subject.nodes,
            operation: self.subject.operation.into(),
            order: self.subject.order.into(),
            rounds: self.rounds.len(),
            threads: self.subject.threads,
            unit: self.unit.into(),
        }
    }
}

/// All that a run measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<results::Row>,
}

impl Report {
    /// Prints a row, and keeps it.
    pub(crate) fn row(&mut self, row: &Row) {
        row.print();
        self.keep(row);
    }

    /// Keeps a row.
    pub(crate) fn keep(&mut self, row: &Row) {
        self.rows.push(results::Row::Comparison(row.results()));
    }

    /// Keeps how long single operations took: nanoseconds, and how often.
    pub(crate) fn histogram(&mut self, subject: Subject, who: Who, histogram: &Histogram) {
        let from = |step: IterationValue<u32>| {
            let nanos = histogram.lowest_equivalent(step.value_iterated_to());
            (nanos, step.count_at_value().into())
        };
        self.rows.push(results::Row::Histogram {
            histogram: histogram.iter_recorded().map(from).collect(),
            name: who.name.into(),
            nodes: subject.nodes,
            operation: subject.operation.into(),
        });
    }

    /// Keeps values that belong to sizes: a curve.
    pub(crate) fn curve(&mut self, operation: &'static str, unit: &'static str, who: Who, points: &[(usize, f64)]) {
        self.rows.push(results::Row::Curve {
            curve: points.iter().map(|&(at, value)| (at, rounded(value))).collect(),
            name: who.name.into(),
            operation: operation.into(),
            unit: unit.into(),
        });
    }

    /// Keeps one value of the table's.
    pub(crate) fn value(&mut self, operation: impl Into<String>, nodes: usize, unit: &'static str, value: f64) {
        let operation = operation.into();
        println!("{operation:<60}{:>12} {unit}", figure(value));
        self.rows.push(results::Row::Value {
            nodes,
            operation,
            unit: unit.into(),
            value: rounded(value),
        });
    }

    /// Writes all rows to the file of `--record`, a line for each row.
    pub(crate) fn save(self, args: &Args) -> io::Result<()> {
        let Some(file) = &args.record else { return Ok(()) };
        let results = Results {
            machine: machine::describe(),
            rows: self.rows,
        };
        std::fs::write(file, results.to_json()?)
    }
}

fn figure(value: f64) -> String {
    match value {
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// To four digits: more than a measurement has.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
