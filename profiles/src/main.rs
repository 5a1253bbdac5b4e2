//! Measures the memory of tables against budgets, counts instructions and compares them with a record, and shows the
//! records of the benches.

mod budget;
mod chart;
mod figures;
mod garbage;
mod heap;
mod input;
mod instructions;
mod plots;
mod programs;
mod proof;
mod recorded;
mod report;
#[allow(dead_code, reason = "the readers need some of the fields")]
#[path = "../../benches/support/results.rs"]
mod results;
mod show;
mod speed;

use std::error::Error;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

use crate::budget::BUDGETS;
use crate::programs::{Findings, PROGRAMS, Program};
use crate::recorded::Profile;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const USAGE: &str = "\
Usage: nodetracker-profiles check            check the budgets, up to a million routes
       nodetracker-profiles all              check all of them, and record profiles, plot and table
       nodetracker-profiles PROGRAM...       check those of some programs
       nodetracker-profiles garbage          plot how much waits to be freed over time
       nodetracker-profiles instructions     count them, and compare with the record
       nodetracker-profiles instructions record
       nodetracker-profiles show             draw plots and write tables from what the benches recorded";

/// The largest table of a quick check, and of a full check.
const QUICK: u64 = 1_000_000;
const FULL: u64 = 10_000_000;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = |name: &&str| PROGRAMS.iter().find(|program| program.name == *name);
    let outcome = match arguments.as_slice() {
        ["run", name, largest, file @ ..] if let Some(program) = named(name) => run(program, largest, file.first()),
        ["check"] => check(PROGRAMS.iter(), QUICK),
        ["all"] => record_all(here),
        ["garbage"] => garbage::plot(here),
        ["instructions"] => instructions::compare(here),
        ["instructions", "record"] => instructions::record(here),
        ["show"] => show::show(here).map(|()| true),
        names if !names.is_empty() && names.iter().all(|name| named(name).is_some()) => {
            check(names.iter().filter_map(named), FULL)
        }
        _ => {
            eprintln!("{USAGE}\nPrograms:");
            PROGRAMS.iter().for_each(|program| eprintln!("  {}", program.name));
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Runs a program in this process, and prints its results for the parent process.
fn run(program: &Program, largest: &str, file: Option<&&str>) -> Result<bool, Box<dyn Error>> {
    let mut findings = Findings {
        largest: largest.parse()?,
        // The findings themselves are not counted, as long as they are not moved.
        figures: Vec::with_capacity(16),
        curve: Vec::with_capacity(1_000),
    };
    let counting = heap::count(file.map(Path::new));
    (program.run)(&mut findings);
    drop(counting);
    print!("{}", findings.to_lines());
    Ok(true)
}

/// Runs a program in a process of its own.
fn start(program: &Program, findings: &mut Findings, file: Option<&Path>) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["run", program.name, &findings.largest.to_string()]);
    command.args(file).stderr(Stdio::piped());
    let output = command.output()?;
    let understood = findings.add_lines(str::from_utf8(&output.stdout)?);
    if !output.status.success() || understood.is_none() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{} failed, {}: {why}", program.name, output.status).into());
    }
    Ok(())
}

fn check<'a>(programs: impl Iterator<Item = &'a Program>, largest: u64) -> Result<bool, Box<dyn Error>> {
    let mut findings = Findings {
        largest,
        ..Findings::default()
    };
    for program in programs {
        start(program, &mut findings, None)?;
    }
    Ok(report::print(&findings))
}

/// Runs everything, and writes the records of this directory.
fn record_all(here: &Path) -> Result<bool, Box<dyn Error>> {
    let mut findings = Findings {
        largest: FULL,
        ..Findings::default()
    };
    let mut profiles = Vec::new();
    for program in PROGRAMS {
        let Some(routes) = program.recorded else {
            start(program, &mut findings, None)?;
            continue;
        };
        let file = here.join("recorded").join(program.name).with_extension("json");
        start(program, &mut findings, Some(&file))?;
        let mut profile =
            Profile::parse(&fs::read_to_string(&file)?).ok_or("dhat wrote another format than expected")?;
        profile.name(program.name);
        fs::write(&file, profile.to_json())?;
        profiles.push((program.name, routes, profile));
    }
    let limit = |key| {
        BUDGETS
            .iter()
            .find(|budget| budget.key == key)
            .map(|budget| budget.limit)
    };
    let budgets: Vec<_> = [(1e4, "from-10k"), (1e5, "from-100k")]
        .into_iter()
        .filter_map(|(from, key)| Some((from, limit(key)?)))
        .collect();
    fs::write(
        here.join("bytes-per-route.svg"),
        plots::bytes_of_table(&findings.curve, &budgets),
    )?;
    show::write_section(
        &here.join("README.md"),
        "measured",
        &report::section(&findings, &profiles),
    )?;
    Ok(report::print(&findings))
}
