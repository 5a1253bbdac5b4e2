//! The `nodetracker` command.

use std::process::ExitCode;

use clap::Parser;
use nodetracker_server::Cli;

/// Calls allocate and free small blocks all the time, which glibc's allocator pays for with page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
