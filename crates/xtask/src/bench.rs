//! The benches of the table.

use serde_json::Value;
use xshell::{Shell, cmd};

use crate::task::{Outcome, target};

/// The files of `benches/`.
pub(crate) const NAMES: [&str; 9] = [
    "bytes",
    "comparison",
    "hundred_million",
    "instructions",
    "ops",
    "pages",
    "scaling",
    "snapshot",
    "traps",
];

pub(crate) fn run(sh: &Shell, name: &str, args: &[impl AsRef<str>]) -> Outcome {
    let args = args.iter().map(AsRef::as_ref);
    Ok(cmd!(
        sh,
        "cargo bench --quiet --locked -p nodetracker --bench {name} -- {args...}"
    )
    .run()?)
}

/// Builds a bench, and prints the path of the program. The path has no hash, so it is the same after each build.
pub(crate) fn build(sh: &Shell, name: &str) -> Outcome {
    let messages = cmd!(
        sh,
        "cargo bench --locked -p nodetracker --bench {name} --no-run --message-format=json-render-diagnostics"
    )
    .read()?;
    let executable = |line| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == name).then(|| message["executable"].as_str().map(str::to_owned))?
    };
    let built = messages.lines().find_map(executable).ok_or("cargo named no program")?;
    let program = target().join("release").join(name);
    sh.copy_file(built, &program)?;
    println!("{}", sh.current_dir().join(program).display());
    Ok(())
}
