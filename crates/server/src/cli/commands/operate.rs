//! The commands that change how a running tracker works: its log level, and its end.

use std::time::Duration;

use clap::Args;
use nodetracker_proto::v1;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use crate::cli::client::Transport;
use crate::cli::commands::admin::duration as from_wire;
use crate::cli::commands::{CommandError, TrackerArgs, generation};
use crate::cli::print::Print;
use crate::cli::remark;
use crate::config::duration;
use crate::log::LogLevel;

/// The pause between two looks at a tracker that stops.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Arguments of `drain`.
#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// How long to wait until the tracker has closed its port; 0s for no wait
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse)]
    wait: Duration,
    #[command(flatten)]
    print: Print,
}

/// Arguments of `log-level`.
#[derive(Debug, Args)]
pub(crate) struct SetLogLevel {
    /// off, error, warn, info or debug; for lines of a library, TARGET=LEVEL; "default" for the level of the
    /// configuration
    level: Level,
    /// How long the level lasts; then the level of the configuration returns [default: until it is set again]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    period: Option<Duration>,
    #[command(flatten)]
    print: Print,
}

/// A level, or `None` for the level of the configuration.
#[derive(Debug, Clone)]
struct Level(Option<LogLevel>);

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self(None)),
            level => level.parse().map(|level| Self(Some(level))),
        }
    }
}

/// What `drain` did, in JSON.
#[derive(Serialize)]
struct Drained {
    generation: String,
    shutdown_delay_seconds: Option<f64>,
    /// Whether the tracker has closed its port, and no tracker listens there now.
    closed: bool,
    /// Whether another tracker answers at the address now.
    restarted: bool,
}

/// How a tracker left its port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Closed,
    /// To another tracker. A service manager that keeps the port starts the tracker again with the next connection.
    Restarted,
}

/// What `log-level` did, in JSON.
#[derive(Serialize)]
struct Changed {
    previous_level: String,
}

pub(crate) async fn log_level(set: SetLogLevel) -> Result<(), CommandError> {
    let SetLogLevel {
        level: Level(level),
        period,
        print: Print { format, at },
    } = set;
    let request = v1::SetLogLevelRequest {
        level: level.map(|level| level.to_string()).unwrap_or_default(),
        period: period.and_then(|period| period.try_into().ok()),
    };
    let mut client = at.admin().await?;
    let previous_level = at.call(client.set_log_level(request)).await?.previous_level;
    format.done(&Changed { previous_level })
}

pub(crate) async fn drain(drain: Drain) -> Result<(), CommandError> {
    let Drain {
        wait,
        print: Print { format, at },
    } = drain;
    // The end of this connection is a sign that the tracker is gone.
    let connection = at.transport().await?;
    let mut client = at.admin_over(connection.clone());
    let stopping = at.call(client.drain(v1::DrainRequest {})).await?;
    drop(client);
    let left = match wait {
        Duration::ZERO => None,
        wait => match timeout(wait, left(&at, &connection, stopping.generation)).await {
            Ok(left) => Some(left),
            Err(_) => return Err(CommandError::StillOpen(duration::format(wait))),
        },
    };
    if left == Some(Left::Restarted) {
        remark("another tracker answers at the address now; if systemd keeps the port, stop the socket unit, too");
    }
    format.done(&Drained {
        generation: generation(stopping.generation),
        shutdown_delay_seconds: from_wire(stopping.shutdown_delay).map(|delay| delay.as_secs_f64()),
        closed: left == Some(Left::Closed),
        restarted: left == Some(Left::Restarted),
    })
}

/// Waits until a tracker has closed its port, or until another tracker answers there.
async fn left(at: &TrackerArgs, connection: &Transport, generation: u64) -> Left {
    loop {
        if at.has_closed_port(connection).await {
            return Left::Closed;
        }
        let stats = async {
            let mut client = at.admin().await?;
            at.call(client.stats(v1::StatsRequest {})).await
        };
        // Any error: the port may have closed meanwhile, or the tracker is busy.
        if stats.await.is_ok_and(|stats| stats.generation != generation) {
            return Left::Restarted;
        }
        sleep(POLL_INTERVAL).await;
    }
}
