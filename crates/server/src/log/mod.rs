//! Logs go to stderr, so that scripts can read stdout.
//!
//! No thread waits for stderr: lines go through a bounded [`queue`]. No client can flood the log: [`rate`] limits the
//! lines from each place in the code. Lines that are left out are counted, and the count is logged. The [`level`] may
//! change while the process runs: see [`filter`]. Lines about a client name the [`peer`].

mod filter;
mod level;
pub(crate) mod peer;
mod queue;
mod rate;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{io, panic, thread};

use tracing::{Subscriber, error};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::log::filter::LevelControl;
use crate::log::queue::Queue;
use crate::log::rate::RateLimit;

pub use level::LogLevel;

/// The target of the lines of refusals. At the level info, these have a limit of their own.
pub(crate) const SELF_LIMITED: &str = concat!(env!("CARGO_CRATE_NAME"), "::refusal");

/// The level of the log that this module has installed.
static LEVEL: OnceLock<LevelControl> = OnceLock::new();

/// Returns the level of the process's log. `None` if the process has another logger, or none.
pub(crate) fn level() -> Option<&'static LevelControl> {
    LEVEL.get()
}

/// How long the end of the process may wait for lines that stderr has not taken.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The process's log. On drop, waits up to a second until stderr has taken all lines.
#[derive(Debug)]
pub(crate) struct Log {
    queue: Arc<Queue>,
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.flush(FLUSH_TIMEOUT);
    }
}

impl Log {
    /// Returns a function that waits up to a second until stderr has taken all lines.
    pub(crate) fn flusher(&self) -> impl FnOnce() + Send + 'static {
        let queue = Arc::clone(&self.queue);
        move || queue.flush(FLUSH_TIMEOUT)
    }
}

/// Sends the process's logs, and its panics, to stderr. A logger that is installed already stays.
pub(crate) fn init(format: LogFormat, level: LogLevel) -> io::Result<Log> {
    let control = LevelControl::new(level);
    let queue = Arc::new(Queue::default());
    let reports = control.filter();
    queue::start(Arc::clone(&queue), io::stderr(), move |writer| {
        tracing_subscriber::registry()
            .with(reports)
            .with(lines(format, writer))
            .into()
    })?;
    let installed = tracing_subscriber::registry()
        .with(control.filter())
        .with(RateLimit::new(Arc::clone(&queue)))
        .with(lines(format, Arc::clone(&queue)))
        .try_init();
    if installed.is_ok() {
        let _ = LEVEL.set(control);
    }
    // The default hook writes to stderr from the thread that panics.
    panic::set_hook(Box::new(log_panic));
    Ok(Log { queue })
}

/// Returns the layer that formats events as lines.
fn lines<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = fmt::layer()
        .with_target(false)
        .with_writer(writer)
        // The error could not be reported either.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    error!("thread {:?} {panic}", thread.name().unwrap_or_default());
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        error!("{backtrace}");
    }
}
