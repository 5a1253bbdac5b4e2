//! The `serve` command: runs a tracker until a signal stops it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nodetracker::RouteTable;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::cli::signals::Signals;
use crate::cli::{FAILURE, USAGE, fail};
use crate::config::{self, Config};
use crate::log::{self, LogFormat};
use crate::server::{Server, StartError};

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// YAML file with a node_tracker_service section [default: none is needed]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen, HOST:PORT; port 0 picks a free one [default: 127.0.0.1:3029]
    #[arg(long, value_name = "ADDR", value_parser = config::listen_addr)]
    listen: Option<String>,
    /// How long a route lives without a refresh, such as 90s or 5m [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = config::keep_alive)]
    proxy_keep_alive_interval: Option<Duration>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

impl Serve {
    pub(super) async fn run(self) -> ExitCode {
        log::init(self.log_format);
        // Before the port is taken: a script that reads "listening on" may send a signal at once.
        let mut signals = match Signals::install() {
            Ok(signals) => signals,
            Err(error) => return fail(FAILURE, &error),
        };
        let server = match self.bind().await {
            Ok(server) => server,
            Err(error @ StartError::Config(_)) => return fail(USAGE, &error),
            Err(error) => return fail(FAILURE, &error),
        };
        if let Err(error) = announce(&server) {
            warn!(%error, "cannot write to stdout");
        }

        let (stop, stopped) = oneshot::channel();
        let interrupted = async {
            let first = signals.next().await;
            info!("{}: stopping; a second signal ends the calls in flight", first.name);
            let _ = stop.send(());
            signals.next().await
        };
        let shutdown = async {
            let _ = stopped.await;
        };
        tokio::select! {
            _ = server.run(shutdown) => ExitCode::SUCCESS,
            second = interrupted => {
                warn!("{}: ended with calls in flight", second.name);
                ExitCode::from(second.exit_code())
            }
        }
    }

    async fn bind(self) -> Result<Server, StartError> {
        let mut config = self
            .config
            .as_deref()
            .map_or_else(|| Ok(Config::default()), Config::read)?;
        if let Some(addr) = self.listen {
            config = config.listen_on(addr);
        }
        if let Some(interval) = self.proxy_keep_alive_interval {
            config = config.keep_alive(interval);
        }
        let table = RouteTable::builder()
            .keep_alive(config.keep_alive.value)
            .build()
            .expect("the default limits are possible");
        Server::bind(&config, Arc::new(table)).await
    }
}

fn announce(server: &Server) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {}", server.local_addr())?;
    out.flush()
}
