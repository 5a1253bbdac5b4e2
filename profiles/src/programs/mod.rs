//! The programs. Each fills a table in one way, and reports the memory. Each runs in its own process, so that the
//! counts include no other program, and include allocations that a process makes only once.

mod calls;
mod churn;
mod expiry;
mod fill;
mod restore;

use std::fmt::Write;
use std::str::FromStr;

/// One way to fill a table.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Findings),
    /// If its profile is kept: the number of routes of the table at its peak.
    pub(crate) recorded: Option<u64>,
}

const fn recorded(name: &'static str, routes: u64, run: fn(&mut Findings)) -> Program {
    Program {
        name,
        run,
        recorded: Some(routes),
    }
}

pub(crate) const PROGRAMS: &[Program] = &[
    recorded("one-million", 1_000_000, fill::one_million),
    recorded("ten-thousand", 10_000, fill::ten_thousand),
    Program {
        name: "every-size",
        run: fill::every_size,
        recorded: None,
    },
    recorded("two-routes", 2_000_000, fill::two_routes),
    recorded("prototype", 1_000_000, fill::prototype),
    recorded("names", 1_000_000, fill::names),
    recorded("churn", 1_000_000, churn::churn),
    recorded("churn-under-way", 1_000_000, churn::churn_under_way),
    recorded("mass-expiry", 1_000_000, expiry::mass_expiry),
    Program {
        name: "restore",
        run: restore::restore,
        recorded: None,
    },
    Program {
        name: "calls",
        run: calls::calls,
        recorded: None,
    },
];

/// The memory of a table at one size, in bytes per route.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub(crate) routes: u64,
    pub(crate) peak: f64,
    pub(crate) live: f64,
}

/// The measurements of a program.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The largest table to make, for programs that make one of every size.
    pub(crate) largest: u64,
    /// Values by the key of their budget.
    pub(crate) figures: Vec<(String, f64)>,
    pub(crate) curve: Vec<Point>,
}

impl Findings {
    pub(crate) fn found(&mut self, key: &str, value: f64) {
        self.figures.push((key.into(), value));
    }

    /// Findings as text, for the process that started this process.
    pub(crate) fn to_lines(&self) -> String {
        let mut lines = String::new();
        for (key, value) in &self.figures {
            _ = writeln!(lines, "figure {key} {value}");
        }
        for Point { routes, peak, live } in &self.curve {
            _ = writeln!(lines, "point {routes} {peak} {live}");
        }
        lines
    }

    /// Adds the output of another process; `None` if [`to_lines`](Self::to_lines) did not write it.
    pub(crate) fn add_lines(&mut self, text: &str) -> Option<()> {
        fn next<'a, T: FromStr>(words: &mut impl Iterator<Item = &'a str>) -> Option<T> {
            words.next()?.parse().ok()
        }
        for line in text.lines() {
            let mut words = line.split(' ');
            match words.next()? {
                "figure" => self.figures.push((next(&mut words)?, next(&mut words)?)),
                "point" => self.curve.push(Point {
                    routes: next(&mut words)?,
                    peak: next(&mut words)?,
                    live: next(&mut words)?,
                }),
                _ => return None,
            }
        }
        Some(())
    }
}
