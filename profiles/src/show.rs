//! Writes the records into the READMEs and the plots.

use std::error::Error;
use std::fs;
use std::path::Path;

use crate::results::Results;
use crate::{instructions, plots, proof, speed};

/// Draws the plots and writes the tables again, from the records alone.
pub(crate) fn show(here: &Path) -> Result<(), Box<dyn Error>> {
    let [speed, bytes, hundred_million] =
        ["speed.json", "bytes.json", "hundred-million.json"].map(|name| Results::read(here, name));
    let (speed, bytes, hundred_million) = (speed?, bytes?, hundred_million?);

    let throughput = plots::throughput(&speed).ok_or("speed.json lacks a row of the throughput")?;
    fs::write(here.join("throughput.svg"), throughput)?;
    fs::write(here.join("pauses.svg"), plots::pauses(&speed))?;
    fs::write(here.join("bytes-of-peers.svg"), plots::bytes_of_all(&bytes))?;

    let machine = format!("{}.\n", speed.machine());
    let all_rows = format!(
        "<details><summary>Every row, contestant by contestant</summary>\n\n{}\n</details>\n",
        speed::all_rows(&speed)
    );
    let readme = here.join("README.md");
    write_section(&readme, "machine", &machine)?;
    write_section(&readme, "speed", &format!("{}\n{all_rows}", speed::budgets(&speed)))?;
    let bytes = format!("{}\n{}", speed::bytes(&bytes), speed::values(&bytes));
    write_section(&readme, "bytes", &bytes)?;
    write_section(&readme, "instructions", &instructions::section(here)?)?;
    write_section(&readme, "hundred million", &speed::values(&hundred_million))?;
    write_section(&readme, "scaling", &scaling(here)?)?;
    let above = here.parent().ok_or("this directory is in none")?;
    write_section(&readme, "proof", &proof::section(above)?)?;
    write_section(&above.join("README.md"), "machine", &machine)
}

/// A table for each machine that recorded `scaling`. The plot shows the machine with the most cores.
fn scaling(here: &Path) -> Result<String, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(here.join("recorded"))? {
        names.extend(entry?.file_name().into_string());
    }
    names.retain(|name| name.starts_with("scaling-") && name.ends_with(".json"));
    names.sort();
    let records: Vec<_> = names
        .iter()
        .map(|name| Results::read(here, name))
        .collect::<Result<_, _>>()?;
    let Some(largest) = records.iter().max_by_key(|record| record.machine.cores) else {
        return Ok("Nothing is recorded yet.\n".into());
    };
    let plot = plots::scaling(largest).ok_or("the record of scaling lacks a row of its plot")?;
    fs::write(here.join("scaling.svg"), plot)?;
    let tables: Vec<_> = records.iter().map(speed::scaling).collect();
    Ok(format!(
        "![Throughput over threads, by the wall](scaling.svg)\n\n{}",
        tables.join("\n")
    ))
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
    fn only_the_section_between_the_marks_is_replaced() {
        let text = |inner: &str| {
            format!("a\n<!-- x: written by the program, do not edit -->\n{inner}\n<!-- end of x -->\nz\n")
        };
        assert_eq!(replaced(&text("old"), "x", "new"), Some(text("\nnew")));
        assert_eq!(replaced(&text("old"), "y", "new"), None);
    }
}
