//! Logs go to stderr, so that stdout stays for what a script wants to read.

use clap::ValueEnum;
use tracing::Level;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Sends this process's logs to stderr from now on. Does nothing where they go somewhere already.
pub(crate) fn init(format: LogFormat) {
    let logs = tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_target(false)
        .with_writer(std::io::stderr)
        // A closed stderr is no reason to stop serving, and nobody could read about it.
        .log_internal_errors(false);
    let _ = match format {
        LogFormat::Text => logs.try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
}
