//! Interleaved rounds, and what is told of them.
//!
//! In each round each contestant runs once, so what else the machine does meets all of them alike. Told are medians, and
//! the median of each round's ratio between the table and the best peer.

/// One contestant's part in a row of the report: each call measures it once, in the row's unit.
pub(crate) struct Entry<'a> {
    pub(crate) name: &'static str,
    pub(crate) measure: Box<dyn FnMut() -> f64 + 'a>,
}

/// What came of one row: the first contestant is the table.
#[derive(Debug)]
pub(crate) struct Row {
    title: String,
    unit: &'static str,
    names: Vec<&'static str>,
    rounds: Vec<Vec<f64>>,
}

impl Row {
    pub(crate) fn new(title: impl Into<String>, unit: &'static str, names: Vec<&'static str>) -> Self {
        Self {
            title: title.into(),
            unit,
            names,
            rounds: Vec::new(),
        }
    }

    /// Adds one value for each contestant.
    pub(crate) fn push(&mut self, values: Vec<f64>) {
        assert_eq!(values.len(), self.names.len(), "a round has a value for each");
        self.rounds.push(values);
    }

    /// Measures each contestant so many times.
    pub(crate) fn measure(
        title: impl Into<String>,
        unit: &'static str,
        rounds: usize,
        mut entries: Vec<Entry<'_>>,
    ) -> Self {
        let mut row = Self::new(title, unit, entries.iter().map(|entry| entry.name).collect());
        let count = entries.len();
        for round in 0..rounds {
            let mut values = vec![0.0; count];
            // Another one begins each time.
            for at in (0..count).map(|at| (at + round) % count) {
                values[at] = (entries[at].measure)();
            }
            row.push(values);
        }
        row
    }

    fn median_of(&self, contestant: usize) -> f64 {
        median(self.rounds.iter().map(|values| values[contestant]).collect())
    }

    /// One line per row: each contestant's median, and the table's ratio to the best peer. What has one thread only is no
    /// peer.
    pub(crate) fn print(&self, not_a_peer: &str) {
        println!("\n{} ({})", self.title, self.unit);
        let best = (1..self.names.len())
            .filter(|&at| self.names[at] != not_a_peer)
            .min_by(|&a, &b| self.median_of(a).total_cmp(&self.median_of(b)));
        for (at, name) in self.names.iter().enumerate() {
            let ratios = median(self.rounds.iter().map(|values| values[0] / values[at]).collect());
            let (mark, ratio) = match at {
                0 => ("", String::new()),
                _ => (
                    if Some(at) == best { "  best peer" } else { "" },
                    format!("{ratios:>6.2}"),
                ),
            };
            println!("  {name:<24}{:>12}  {ratio:>6}{mark}", figure(self.median_of(at)));
        }
    }
}

fn figure(value: f64) -> String {
    match value {
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
