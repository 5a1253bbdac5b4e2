//! The `validate` command: checks a configuration file without starting a tracker.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::cli::commands::CommandError;
use crate::cli::{FAILURE, code_of, exit_code, fail, print};
use crate::config::Config;
use crate::log::{self, LogFormat};
use crate::tls::Certificates;

/// Arguments of `validate`.
#[derive(Debug, Args)]
pub(super) struct Validate {
    /// The YAML file, as for `serve --config`
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Checks the file and the files that it names.
pub(super) fn validate(Validate { file }: Validate) -> ExitCode {
    // For certificates that are out of their dates, which `serve` logs too.
    let _log = match log::init(LogFormat::Text, "warn".parse().unwrap_or_default()) {
        Ok(log) => log,
        Err(error) => return fail(FAILURE, &error),
    };
    let checked = Config::read_with_changes(&file).and_then(|(config, changes)| {
        config.check_ports()?;
        Certificates::load(&config)?;
        Ok(changes)
    });
    let changes = match checked {
        Ok(changes) => changes,
        Err(error) => return fail(code_of(&error), &error),
    };
    let mut lines = format!("{}: valid\n", file.display());
    for (key, value) in changes {
        lines += &format!("{key}: {}\n", print::visible(&value));
    }
    let written = io::stdout().lock().write_all(lines.as_bytes());
    exit_code(written.map_err(CommandError::from))
}
