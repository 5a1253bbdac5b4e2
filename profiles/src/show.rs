//! Writes the records into the READMEs and the plots.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use crate::results::Results;
use crate::{instructions, plots, proof, speed};

/// Draws the plots and writes the tables again, from the records alone.
pub(crate) fn show(here: &Path) -> Result<(), Box<dyn Error>> {
    let bytes = Results::read(here, "bytes.json")?;
    let speed = of_machines(here, "speed")?
        .into_iter()
        .next()
        .ok_or("no record of speed")?;
    let throughput = plots::throughput(&speed).ok_or("the record of speed lacks a row of the throughput")?;
    fs::write(here.join("throughput.svg"), throughput)?;
    fs::write(here.join("pauses.svg"), plots::pauses(&speed))?;
    fs::write(here.join("bytes-of-peers.svg"), plots::bytes_of_all(&bytes))?;

    if let Some(plot) = largest_scaling(here)? {
        fs::write(here.join("scaling.svg"), plot)?;
    }
    for Section { file, name, text } in sections(here)? {
        write_section(&file, name, &text)?;
    }
    Ok(())
}

/// A section of a README.
struct Section {
    file: PathBuf,
    name: &'static str,
    text: String,
}

/// Every section that follows from the records.
fn sections(here: &Path) -> Result<Vec<Section>, Box<dyn Error>> {
    let read = |name| Results::read(here, name);
    let (bytes, hundred_million) = (read("bytes.json")?, read("hundred-million.json")?);
    let speeds = of_machines(here, "speed")?;
    let machine = format!("{}.\n", speeds.first().ok_or("no record of speed")?.machine());
    let speeds: Vec<_> = speeds
        .iter()
        .map(|speed| {
            format!(
                "{}.\n\n{}\n<details><summary>Every row, contestant by contestant</summary>\n\n{}\n</details>\n",
                speed.machine(),
                speed::budgets(speed),
                speed::all_rows(speed)
            )
        })
        .collect();
    let above = here.parent().ok_or("this directory is in none")?;
    let readme = here.join("README.md");
    let own = [
        ("speed", speeds.join("\n")),
        ("bytes", format!("{}\n{}", speed::bytes(&bytes), speed::values(&bytes))),
        ("instructions", instructions::section(here)?),
        ("traps", speed::calls(&read("traps.json")?)),
        ("pages", speed::calls(&read("pages.json")?)),
        (
            "hundred million",
            format!("{}\n{}.\n", speed::values(&hundred_million), hundred_million.machine()),
        ),
        ("scaling", scaling(here)?),
        ("proof", proof::section(above)?),
    ];
    let mut sections = vec![Section {
        file: above.join("README.md"),
        name: "machine",
        text: machine,
    }];
    sections.extend(own.map(|(name, text)| Section {
        file: readme.clone(),
        name,
        text,
    }));
    Ok(sections)
}

/// The records of a bench on each machine that recorded it.
fn of_machines(here: &Path, bench: &str) -> Result<Vec<Results>, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(here.join("recorded"))? {
        names.extend(entry?.file_name().into_string());
    }
    names.retain(|name| name.ends_with(".json") && name.strip_prefix(bench).is_some_and(|name| name.starts_with('-')));
    names.sort();
    Ok(names
        .iter()
        .map(|name| Results::read(here, name))
        .collect::<Result<_, _>>()?)
}

/// The plot of the machine with the most cores.
fn largest_scaling(here: &Path) -> Result<Option<String>, Box<dyn Error>> {
    let records = of_machines(here, "scaling")?;
    let Some(largest) = records.iter().max_by_key(|record| record.machine.cores) else {
        return Ok(None);
    };
    let plot = plots::scaling(largest).ok_or("the record of scaling lacks a row of its plot")?;
    Ok(Some(plot))
}

/// A table for each machine that recorded `scaling`.
fn scaling(here: &Path) -> Result<String, Box<dyn Error>> {
    let tables: Vec<_> = of_machines(here, "scaling")?.iter().map(speed::scaling).collect();
    Ok(match tables.is_empty() {
        true => "Nothing is recorded yet.\n".into(),
        false => format!(
            "![Throughput over threads, by the wall](scaling.svg)\n\n{}",
            tables.join("\n")
        ),
    })
}

/// Replaces the text between the marks of a section in a file.
pub(crate) fn write_section(file: &Path, name: &str, section: &str) -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(file)?;
    let text = replaced(&text, name, section)
        .ok_or_else(|| format!("{}: the marks around \"{name}\" are gone", file.display()))?;
    fs::write(file, text)?;
    Ok(())
}

/// The text with another section; `None` if its marks are missing.
fn replaced(text: &str, name: &str, section: &str) -> Option<String> {
    let begin = format!("<!-- {name}: written by the program, do not edit -->\n");
    let end = format!("<!-- end of {name} -->");
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{section}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readmes_show_what_is_recorded() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        for Section { file, name, text } in sections(here).expect("all records are there") {
            let readme = fs::read_to_string(&file).expect("a README");
            let shown = replaced(&readme, name, &text).expect("the section has its marks");
            let is_shown = readme == shown;
            assert!(is_shown, "{}, {name}: run `cargo xtask record show`", file.display());
        }
    }

    #[test]
    fn only_the_section_between_the_marks_is_replaced() {
        let text = |inner: &str| {
            format!("a\n<!-- x: written by the program, do not edit -->\n{inner}\n<!-- end of x -->\nz\n")
        };
        assert_eq!(replaced(&text("old"), "x", "new"), Some(text("\nnew")));
        assert_eq!(replaced(&text("old"), "y", "new"), None);
    }
}
