//! The `nodetracker` command.

#![deny(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use nodetracker_server::Cli;

/// Decision 0011 has the reasons.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The settings of the allocator, so that the memory of a flood returns: one arena for all threads, and thread caches
/// for blocks of up to 4 KiB. Free pages go back to the kernel after a second. The variable `_RJEM_MALLOC_CONF`
/// overrides a setting.
#[expect(unsafe_code, reason = "jemalloc reads its settings from the symbol with this name")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8; 47] = b"narenas:1,lg_tcache_max:12,dirty_decay_ms:1000\0";

fn main() -> ExitCode {
    Cli::parse().run()
}
