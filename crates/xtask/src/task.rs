//! The result of a task, and the settings that tasks take from the environment.

use std::env;
use std::error::Error;
use std::path::PathBuf;

pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// The folder of cargo's builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from)
}

/// The number of rounds from the environment.
pub(crate) fn rounds(default: &str) -> String {
    env::var("ROUNDS").unwrap_or(default.into())
}
