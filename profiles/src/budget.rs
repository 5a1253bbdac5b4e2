//! The budget of each program, and the result.

use std::fmt;

use crate::programs::Findings;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Unit {
    /// The most bytes in use at one time, per route.
    PeakPerRoute,
    /// As a multiple of the budget.
    Times,
    /// Not bytes, but how many.
    Allocations,
}

/// One row of the table of budgets.
pub(crate) struct Budget {
    /// The figure that it limits.
    pub(crate) key: &'static str,
    /// The program that measures it.
    pub(crate) program: &'static str,
    pub(crate) what: &'static str,
    pub(crate) routes: &'static str,
    pub(crate) unit: Unit,
    pub(crate) limit: f64,
    /// The goal.
    pub(crate) reach: Option<f64>,
    /// If the budget is known not to hold yet, the reason. A check passes nevertheless.
    pub(crate) not_yet: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Holds,
    Broken,
    /// Broken, and known to be broken.
    NotYet,
    /// Holds, although it is marked as broken.
    HoldsNow,
}

impl Budget {
    pub(crate) fn verdict(&self, measured: f64) -> Verdict {
        match (measured <= self.limit, self.not_yet.is_some()) {
            (true, false) => Verdict::Holds,
            (false, false) => Verdict::Broken,
            (false, true) => Verdict::NotYet,
            (true, true) => Verdict::HoldsNow,
        }
    }
}

impl Verdict {
    /// Whether a check fails. A figure that is known to vary about its limit does not fail.
    pub(crate) fn is_failure(self) -> bool {
        self == Verdict::Broken
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Holds => "holds",
            Verdict::Broken => "BROKEN",
            Verdict::NotYet => "not yet",
            Verdict::HoldsNow => "holds, though it is said not to",
        })
    }
}

impl Unit {
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Unit::PeakPerRoute => format!("{value:.1} B"),
            Unit::Times => format!("{value:.2} x"),
            Unit::Allocations => format!("{value:.0}"),
        }
    }
}

/// The value that was found for a key.
pub(crate) fn measured(findings: &Findings, key: &str) -> Option<f64> {
    let found = findings.figures.iter().find(|(found, _)| found == key);
    found.map(|&(_, value)| value)
}

const NO_ALLOCATION: Budget = Budget {
    key: "",
    program: "calls",
    what: "",
    routes: "100,000",
    unit: Unit::Allocations,
    limit: 0.0,
    reach: None,
    not_yet: None,
};

pub(crate) const BUDGETS: &[Budget] = &[
    Budget {
        key: "one-million",
        program: "one-million",
        what: "a million nodes with UUIDs, over 1,000 proxies",
        routes: "1,000,000",
        unit: Unit::PeakPerRoute,
        limit: 30.0,
        reach: Some(29.0),
        not_yet: None,
    },
    Budget {
        key: "from-100k",
        program: "every-size",
        what: "the worst of every size from 100,000 up",
        routes: "100,000 to 10,000,000",
        unit: Unit::PeakPerRoute,
        limit: 31.0,
        reach: None,
        not_yet: None,
    },
    Budget {
        key: "from-10k",
        program: "every-size",
        what: "the worst of every size from 10,000 to 100,000",
        routes: "10,000 to 100,000",
        unit: Unit::PeakPerRoute,
        limit: 40.0,
        reach: None,
        not_yet: None,
    },
    Budget {
        key: "two-routes",
        program: "two-routes",
        what: "a million nodes with two routes each",
        routes: "2,000,000",
        unit: Unit::PeakPerRoute,
        limit: 32.0,
        reach: Some(27.0),
        not_yet: None,
    },
    Budget {
        key: "prototype",
        program: "prototype",
        what: "a million nodes, each with a proxy of its own",
        routes: "1,000,000",
        unit: Unit::PeakPerRoute,
        limit: 100.0,
        reach: Some(64.0),
        not_yet: None,
    },
    Budget {
        key: "names",
        program: "names",
        what: "a million nodes with names of 20 bytes",
        routes: "1,000,000",
        unit: Unit::PeakPerRoute,
        limit: 96.0,
        reach: Some(56.0),
        not_yet: None,
    },
    Budget {
        key: "churn",
        program: "churn",
        what: "ten rounds in which a tenth goes, the sweeper passes, and as many come; against the peak before",
        routes: "1,000,000",
        unit: Unit::Times,
        limit: 1.1,
        reach: Some(1.03),
        not_yet: None,
    },
    Budget {
        key: "churn-under-way",
        program: "churn-under-way",
        what: "the same with all three at once",
        routes: "1,000,000",
        unit: Unit::Times,
        limit: 1.1,
        reach: Some(1.03),
        not_yet: Some("a removed node's record is free only after the next visit of the sweeper, and a grace period"),
    },
    Budget {
        key: "mass-expiry",
        program: "mass-expiry",
        what: "after nine in ten nodes have expired, against a new table of that size",
        routes: "100,000",
        unit: Unit::Times,
        limit: 1.3,
        reach: None,
        not_yet: None,
    },
    Budget {
        key: "restore",
        program: "restore",
        what: "loading a snapshot of a million nodes, against the loaded table",
        routes: "1,000,000",
        unit: Unit::Times,
        limit: 1.1,
        reach: Some(1.05),
        not_yet: None,
    },
    Budget {
        key: "refresh",
        what: "allocations in 100,000 refreshes",
        ..NO_ALLOCATION
    },
    Budget {
        key: "refresh-named",
        what: "allocations in 100,000 refreshes of nodes with names",
        ..NO_ALLOCATION
    },
    Budget {
        key: "refresh-of-two",
        what: "allocations in 100,000 refreshes of nodes with two routes",
        ..NO_ALLOCATION
    },
    Budget {
        key: "look-up",
        what: "allocations in 100,000 look-ups of UUIDs, of names, and of what is not there",
        ..NO_ALLOCATION
    },
    Budget {
        key: "look-up-of-two",
        what: "allocations in 100,000 look-ups of nodes with two routes",
        ..NO_ALLOCATION
    },
    Budget {
        key: "look-up-batch",
        what: "allocations in 1,000 look-ups of 100 nodes each",
        ..NO_ALLOCATION
    },
    Budget {
        key: "refresh-batch",
        what: "allocations in 1,000 refreshes of 100 nodes each, and as many by handle",
        ..NO_ALLOCATION
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::PROGRAMS;

    #[test]
    fn every_budget_has_a_program_and_every_program_a_budget() {
        for budget in BUDGETS {
            assert!(PROGRAMS.iter().any(|program| program.name == budget.program));
        }
        for program in PROGRAMS.iter().filter(|program| program.name != "ten-thousand") {
            assert!(BUDGETS.iter().any(|budget| program.name == budget.program));
        }
    }
}
