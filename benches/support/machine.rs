//! A description of this machine, for the record. It leaves out figures that the system does not report.

use std::fs::read_to_string;
use std::path::PathBuf;

use crate::support::results::Machine;

/// Model and cores of the processor, its caches, and the memory.
pub(crate) fn describe() -> Machine {
    let release = read_to_string("/proc/sys/kernel/osrelease").ok();
    Machine {
        cores: cores(),
        cpu: cpu(),
        l2: cache(2),
        l3: cache(3),
        memory: field("/proc/meminfo", "MemTotal"),
        system: release.map(|release| format!("Linux {}", release.trim())),
    }
}

/// How many cores this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

/// A name for this kind of machine, of processor and cores, that is fit for a file's name.
pub(crate) fn slug() -> String {
    slugged(&format!("{} {} cores", cpu().as_deref().unwrap_or("unknown"), cores()))
}

/// The file of a record, if `to` is the directory of records: one file for each machine.
pub(crate) fn record(to: PathBuf, name: &str) -> PathBuf {
    match to.is_dir() {
        true => to.join(format!("{name}-{}.json", slug())),
        false => to,
    }
}

pub(crate) fn slugged(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    words.join("-").to_ascii_lowercase()
}

/// The first line's value under this name, in a file of lines like `name : value`.
fn field(file: &str, name: &str) -> Option<String> {
    let text = read_to_string(file).ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields
        .find(|(found, _)| found.trim() == name)
        .map(|(_, value)| value.trim().to_string())
}

fn cpu() -> Option<String> {
    let of = |name| field("/proc/cpuinfo", name);
    let model = of("model name")?;
    Some(match (of("cpu family"), of("model")) {
        // A virtual machine may report no more of its processor than the maker's name.
        (Some(family), Some(number)) => format!("{model}, family {family}, model {number}"),
        _ => model,
    })
}

/// The size of the first core's cache of a level.
fn cache(level: u32) -> Option<String> {
    (0..8).find_map(|at| {
        let of = |name| read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{at}/{name}")).ok();
        (of("level")?.trim() == level.to_string())
            .then(|| of("size"))??
            .trim()
            .to_string()
            .into()
    })
}
