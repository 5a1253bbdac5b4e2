//! Files for shells and for `man`, made from the command line's own description.

use std::fs;
use std::io::{self, Write};
use std::iter;
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

/// Returns the page of a command, with the version at its foot.
fn page_of(command: Command) -> Man {
    Man::new(command).source(concat!("nodetracker ", env!("CARGO_PKG_VERSION")))
}

/// Prints a manual page, or writes all manual pages.
pub(super) fn man(command: Command, ManPage { command: wanted, dir }: ManPage) -> Result<(), CommandError> {
    // Without `help`, which has a page for each command again.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    if let Some(dir) = dir {
        let all = iter::once(&command).chain(command.get_subcommands());
        let written = fs::create_dir_all(&dir).and_then(|()| {
            let mut pages = all.cloned().map(page_of);
            pages.try_for_each(|page| page.generate_to(&dir).map(drop))
        });
        return written.map_err(|error| CommandError::Usage(format!("--dir {}: {error}", dir.display())));
    }
    let described = match wanted {
        None => command,
        Some(wanted) => match command.find_subcommand(&wanted) {
            Some(found) => found.clone(),
            None => {
                let reason = format!("there is no command {wanted:?}: `{NAME} help` lists all of them");
                return Err(CommandError::Usage(reason));
            }
        },
    };
    let mut page = Vec::new();
    page_of(described).render(&mut page)?;
    Ok(io::stdout().lock().write_all(&page)?)
}
