//! Files for shells and for `man`, made from the command line's own description.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::commands::CommandError;

/// The name of the command.
const NAME: &str = "nodetracker";

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub(super) struct ManPage {
    /// The command to describe; without it, all of nodetracker
    #[arg(conflicts_with = "dir")]
    command: Option<String>,
    /// Write a page for each command into this directory, instead of one page to stdout
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints a script that completes the command line.
pub(super) fn completions(command: &mut Command, Completions { shell }: Completions) -> Result<(), CommandError> {
    // clap_complete panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, command, NAME, &mut script);
    Ok(io::stdout().lock().write_all(&script)?)
}

/// Prints a manual page, or writes all of them.
pub(super) fn man(command: Command, ManPage { command: wanted, dir }: ManPage) -> Result<(), CommandError> {
    // Without `help`, which has a page for each command again.
    let mut command = command.disable_help_subcommand(true);
    if let Some(dir) = dir {
        let written = fs::create_dir_all(&dir).and_then(|()| clap_mangen::generate_to(command, &dir));
        return written.map_err(|error| CommandError::Usage(format!("--dir {}: {error}", dir.display())));
    }
    command.build();
    let described = match wanted {
        None => command,
        Some(wanted) => match command.find_subcommand(&wanted) {
            Some(found) => found.clone(),
            None => return Err(CommandError::Usage(format!("there is no command {wanted:?}"))),
        },
    };
    let mut page = Vec::new();
    Man::new(described).render(&mut page)?;
    Ok(io::stdout().lock().write_all(&page)?)
}
