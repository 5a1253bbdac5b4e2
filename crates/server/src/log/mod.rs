//! Logs go to stderr, so that scripts can read stdout.

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

/// Sends the process's logs to stderr. Does nothing if a logger is installed already.
pub(crate) fn init(format: LogFormat) {
    let logs = tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_target(false)
        .with_writer(std::io::stderr)
        // A closed stderr must not stop the server, and nobody could read the error.
        .log_internal_errors(false);
    let _ = match format {
        LogFormat::Text => logs.try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
}
