//! The tables: on the terminal, and in the README.

use std::fmt::Write;

use crate::budget::{BUDGETS, Unit, Verdict, measured};
use crate::programs::{Findings, PROGRAMS};
use crate::recorded::Profile;

/// A size at the beginning of each step by 1.25, from 10,000 to a million, and some larger ones.
fn is_listed(routes: u64, before: u64) -> bool {
    let steps = (0..=20).map(|step| (10_000.0 * 1.25_f64.powi(step)) as u64);
    let larger = [1_000_000, 2_000_000, 5_000_000, 10_000_000];
    steps.chain(larger).any(|size| before < size && size <= routes)
}

/// Prints the measurements beside their budgets. Returns whether all budgets hold that should hold.
pub(crate) fn print(findings: &Findings) -> bool {
    let mut before = 0;
    for point in &findings.curve {
        if is_listed(point.routes, before) {
            println!(
                "{:>11} routes: peak {:5.2}, live {:5.2} B",
                point.routes, point.peak, point.live
            );
        }
        before = point.routes;
    }
    let mut all_is_well = true;
    println!("{:>9} {:>9} {:>9}", "measured", "budget", "reach for");
    for budget in BUDGETS {
        let Some(value) = measured(findings, budget.key) else {
            continue;
        };
        let verdict = budget.verdict(value);
        all_is_well &= !verdict.is_failure();
        println!(
            "{:>9} {:>9} {:>9}  {verdict:<7}  {}",
            show_measured(budget.unit, value),
            budget.unit.show(budget.limit),
            budget.reach.map(|reach| budget.unit.show(reach)).unwrap_or_default(),
            budget.what,
        );
    }
    all_is_well
}

/// Prints one digit more than the budget has, so that a broken budget does not look as if it held.
fn show_measured(unit: Unit, value: f64) -> String {
    match unit {
        Unit::PeakPerRoute => format!("{value:.2} B"),
        Unit::Times => format!("{value:.3} x"),
        Unit::Allocations => unit.show(value),
    }
}

/// The README's section: the budgets, and what holds the bytes at the peak of each recorded profile.
pub(crate) fn section(findings: &Findings, profiles: &[(&str, u64, Profile)]) -> String {
    let mut text =
        String::from("| | routes | measured | budget | reach for | |\n| --- | ---: | ---: | ---: | ---: | --- |\n");
    for budget in BUDGETS {
        let Some(value) = measured(findings, budget.key) else {
            continue;
        };
        let is_recorded = PROGRAMS
            .iter()
            .any(|p| p.name == budget.program && p.recorded.is_some());
        let what = match is_recorded {
            true => format!("[{}](recorded/{}.json)", budget.what, budget.program),
            false => budget.what.into(),
        };
        let verdict = match (budget.verdict(value), budget.not_yet) {
            (Verdict::NotYet, Some(why)) => format!("not yet: {why}"),
            (verdict, _) => verdict.to_string(),
        };
        _ = writeln!(
            text,
            "| {what} | {} | {} | {} | {} | {verdict} |",
            budget.routes,
            show_measured(budget.unit, value),
            budget.unit.show(budget.limit),
            budget.reach.map(|reach| budget.unit.show(reach)).unwrap_or_default(),
        );
    }
    text += "\nWhat is in use at the peak, in bytes per route:\n\n| |";
    let parts = profiles
        .first()
        .map(|(.., profile)| profile.at_peak())
        .unwrap_or_default();
    parts.iter().for_each(|(part, _)| _ = write!(text, " {part} |"));
    _ = writeln!(text, "\n| --- |{}", " ---: |".repeat(parts.len()));
    for (name, routes, profile) in profiles {
        _ = write!(text, "| [{name}](recorded/{name}.json) |");
        for (_, bytes) in profile.at_peak() {
            _ = match bytes {
                0 => write!(text, " |"),
                _ => write!(text, " {:.2} |", bytes as f64 / *routes as f64),
            };
        }
        text.push('\n');
    }
    text
}
