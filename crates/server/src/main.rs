//! The `nodetracker` command.

use std::process::ExitCode;

use clap::Parser;
use nodetracker_server::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
