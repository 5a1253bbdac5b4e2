//! The `top` command: shows the metrics of a running tracker, from its diagnostics port.
//!
//! | file | contents |
//! | --- | --- |
//! | [`scrape`], [`open_metrics`] | read a page of metrics |
//! | [`model`] | rates and quantiles from two pages |
//! | [`tabs`], [`figures`] | which figures each tab shows, and their text |
//! | [`json`] | the same figures as JSON |
//! | [`view`] | the drawing |
//! | [`ui`] | the keys |
//! | [`screen`] | the terminal, and its restoration |

#[cfg(test)]
mod alerts;
mod figures;
mod json;
mod model;
mod open_metrics;
mod scrape;
mod screen;
mod tabs;
mod ui;
mod view;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::cli::commands::CommandError;
use crate::cli::commands::top::model::Model;
use crate::cli::commands::top::scrape::{DiagAddr, Scrape, ScrapeError};
use crate::cli::commands::top::screen::Screen;
use crate::cli::commands::top::tabs::Tab;
use crate::cli::commands::top::ui::{Flow, Ui};
use crate::cli::print::Format;
use crate::cli::signals::Signals;
use crate::config::{Config, duration};

/// The address of the diagnostics port in the documentation.
const DEFAULT_ADDR: &str = "127.0.0.1:3030";

/// The longest time between two drawings of the screen, so that the shown ages are up to date.
const REDRAW: Duration = Duration::from_secs(1);

/// Arguments of `top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// The tracker's diag_addr: HOST:PORT, :PORT or http://HOST:PORT [default: that of --config, or 127.0.0.1:3030]
    #[arg(env = "NODETRACKER_DIAG_ADDR", hide_env_values = true)]
    addr: Option<DiagAddr>,
    /// The tracker's configuration file, for its diag_addr
    #[arg(long, env = "NODETRACKER_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The time between two readings
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval_value)]
    interval: Duration,
    /// The tab to begin with; with --once, the only tab to print
    #[arg(long, value_enum)]
    tab: Option<Tab>,
    /// Print the figures of one interval, and exit
    #[arg(long)]
    once: bool,
    /// How --once prints the figures; json has one object
    #[arg(long, value_enum, default_value_t, requires_if("json", "once"))]
    format: Format,
}

fn interval_value(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        interval if interval < Duration::from_millis(100) => Err("shorter than 100ms".into()),
        interval => Ok(interval),
    }
}

/// Shows the metrics until the user leaves, or prints them once.
pub(crate) async fn top(top: Top) -> Result<(), CommandError> {
    let addr = top.addr()?;
    match top.once {
        true => print_once(&addr, &top).await,
        false if !io::stdout().is_terminal() => {
            Err(CommandError::Usage("stdout is no terminal: use --once".to_owned()))
        }
        false => show(addr, &top).await,
    }
}

impl Top {
    /// Returns the address of the diagnostics port.
    fn addr(&self) -> Result<DiagAddr, CommandError> {
        let usage = |reason: String| CommandError::Usage(reason);
        match (&self.addr, &self.config) {
            (Some(addr), _) => Ok(addr.clone()),
            (None, None) => DEFAULT_ADDR.parse().map_err(usage),
            (None, Some(file)) => {
                let config = Config::read(file).map_err(|error| usage(error.to_string()))?;
                let addr = config.diag_addr.ok_or_else(|| {
                    usage(format!(
                        "{}: there is no diag_addr, and top reads the tracker's metrics there",
                        file.display()
                    ))
                })?;
                addr.value.parse().map_err(usage)
            }
        }
    }
}

async fn print_once(addr: &DiagAddr, top: &Top) -> Result<(), CommandError> {
    let mut model = Model::default();
    for pause in [Duration::ZERO, top.interval] {
        sleep(pause).await;
        let scrape = addr.scrape().await;
        let scrape = scrape.map_err(|error| CommandError::Failed(format!("{addr}: {error}; {}", error.hint(addr))))?;
        model.push(Ok(scrape), Instant::now());
    }
    let all = Tab::value_variants().to_vec();
    let tabs = top.tab.map_or(all, |tab| vec![tab]);
    match top.format {
        Format::Json => top.format.done(&json::object(&tabs, &model)),
        Format::Table => {
            let texts: Vec<_> = tabs.into_iter().map(|tab| view::lines(tab, &model)).collect();
            Ok(io::stdout().lock().write_all(texts.join("\n").as_bytes())?)
        }
    }
}

async fn show(addr: DiagAddr, top: &Top) -> Result<(), CommandError> {
    let mut signals = Signals::install().map_err(CommandError::Signals)?;
    let mut ui = Ui {
        addr: addr.to_string(),
        interval: top.interval,
        tab: top.tab.unwrap_or(Tab::Overview),
        scroll: 0,
        is_help: false,
        is_paused: false,
        has_colors: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    };
    let mut model = Model::default();
    let (sender, mut scrapes) = mpsc::channel(1);
    tokio::spawn(scrape_each(addr, top.interval, sender));
    let mut screen = Screen::open()?;
    let mut redraw = interval(REDRAW);
    loop {
        screen.draw(|frame| view::draw(frame, &model, &mut ui, Instant::now()))?;
        tokio::select! {
            event = screen.next_event() => if ui.on_event(&event?) == Flow::Leave {
                return Ok(());
            },
            Some(scraped) = scrapes.recv(), if !ui.is_paused => model.push(scraped, Instant::now()),
            _ = redraw.tick() => {}
            _ = signals.next() => return Ok(()),
        }
    }
}

/// Reads the metrics at each interval, and sends them. Reads nothing while the receiver has not taken the last reading.
/// Returns when the receiver is dropped.
async fn scrape_each(addr: DiagAddr, period: Duration, scrapes: mpsc::Sender<Result<Scrape, ScrapeError>>) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Ok(permit) = scrapes.reserve().await else { return };
        permit.send(addr.scrape().await);
    }
}
