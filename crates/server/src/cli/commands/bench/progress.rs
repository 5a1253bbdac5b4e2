//! The progress bar of a phase, on stderr if this is a terminal.

use std::time::Duration;

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::cli::commands::bench::schedule::{Extent, Phase};
use crate::cli::commands::bench::tally::{Tally, per_second};

/// How often the bar changes.
pub(super) const INTERVAL: Duration = Duration::from_millis(200);

/// A bar that is removed when it is dropped.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    phase: Phase,
    begin: Instant,
}

impl Progress {
    /// Shows a bar for a phase that begins now.
    pub(super) fn new(name: &'static str, phase: Phase) -> Self {
        // The bar itself is of per mille, since a phase has an end in time or in calls.
        let bar = ProgressBar::new(1000);
        let style = ProgressStyle::with_template("{prefix:12} {bar:40} {percent:>3} %  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(name);
        Self {
            bar,
            phase,
            begin: Instant::now(),
        }
    }

    /// Reports whether stderr is a terminal, so that the bar is shown.
    pub(super) fn is_visible(&self) -> bool {
        !self.bar.is_hidden()
    }

    pub(super) fn show(&self, tally: &Tally) {
        let elapsed = self.begin.elapsed();
        let part = match self.phase.extent {
            Extent::For(duration) => elapsed.as_secs_f64() / (self.phase.warm_up + duration).as_secs_f64(),
            Extent::Calls(calls) => tally.count() as f64 / calls.max(1) as f64,
        };
        self.bar.set_position((1000.0 * part.min(1.0)) as u64);
        self.bar.set_message(format!(
            "{}, {} calls, {}/s, p99 {:.2} ms",
            HumanDuration(elapsed),
            HumanCount(tally.ended),
            HumanCount(per_second(tally.ended, elapsed) as u64),
            tally.latencies.value_at_quantile(0.99) as f64 / 1e6,
        ));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
