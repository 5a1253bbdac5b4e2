//! The `serve` command: runs a tracker until a signal stops it.

use std::convert::Infallible;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Args;
use tokio::sync::oneshot;
use tracing::{error, info, warn};
use tracing_subscriber::filter::Targets;

use crate::cli::signals::{Hangups, Signals};
use crate::cli::{FAILURE, USAGE, fail, open_files};
use crate::config::{self, Config};
use crate::log::{self, LogFormat};
use crate::server::{Server, StartError};
use crate::tls::Certificates;

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
    /// How long to serve calls after SIGTERM or SIGINT, with a health of NOT_SERVING [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = config::duration::parse)]
    shutdown_delay: Option<Duration>,
    /// The most routes [default: an eighth of the memory, and at most 16777216]
    #[arg(long, value_name = "NUMBER", value_parser = number(config::max_routes))]
    max_routes: Option<usize>,
    /// The most routes of each proxy [default: half of the most routes]
    #[arg(long, value_name = "NUMBER", value_parser = number(config::max_routes))]
    max_routes_per_proxy: Option<usize>,
    /// Hold expiry if at least this percentage of the routes is about to expire; 100 for never [default: 15]
    #[arg(long, value_name = "PERCENT", value_parser = number(config::brake_percent))]
    expiry_brake_percent: Option<u32>,
    /// Hold expiry only if at least this number of routes is about to expire [default: 100]
    #[arg(long, value_name = "NUMBER", value_parser = number(config::max_routes))]
    expiry_brake_routes: Option<usize>,
    /// The greatest age of a returned route while expiry is held, in keep-alive intervals; 1 for no hold [default: 3]
    #[arg(long, value_name = "NUMBER", value_parser = number(config::brake_intervals))]
    expiry_brake_intervals: Option<u32>,
    /// The most connections at one time [default: 10000]
    #[arg(long, value_name = "NUMBER", value_parser = number(config::max_connections))]
    max_connections: Option<u32>,
    /// Megabytes that all clients may make the server hold [default: an eighth of the memory, and at most 536]
    #[arg(long, value_name = "NUMBER", value_parser = number(config::client_memory))]
    client_memory_mb: Option<usize>,
    /// The percentage of each limit over all clients that one address may have; 100 for no limit [default: 50]
    #[arg(long, value_name = "PERCENT", value_parser = number(config::max_share_per_address))]
    max_share_per_address: Option<u32>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    /// What to log: TARGET=LEVEL, separated by commas; a level alone is for all targets
    #[arg(long, value_name = "FILTER", default_value = log::DEFAULT_FILTER)]
    log_filter: Targets,
}

impl Serve {
    pub(super) async fn run(self) -> ExitCode {
        let log = match log::init(self.log_format, &self.log_filter) {
            Ok(log) => log,
            Err(error) => return fail(FAILURE, &error),
        };
        // Before the port is taken: a script that reads "listening on" may send a signal at once.
        let (mut signals, hangups) = match Signals::install().and_then(|signals| Ok((signals, Hangups::install()?))) {
            Ok(signals) => signals,
            Err(error) => return fail(FAILURE, &error),
        };
        let server = match self.bind().await {
            Ok(server) => server,
            Err(error @ StartError::Config(_)) => return fail(USAGE, &error),
            Err(error) => return fail(FAILURE, &error),
        };
        if let Err(error) = announce(server.local_addrs().to_vec(), log.flusher()) {
            return fail(FAILURE, &error);
        }
        let reloads = reload_at(hangups, server.certificates());

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
            never = reloads => match never {},
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
        if let Some(delay) = self.shutdown_delay {
            config = config.shutdown_delay(delay);
        }
        if let Some(routes) = self.max_routes {
            config = config.max_routes(routes);
        }
        if let Some(routes) = self.max_routes_per_proxy {
            config = config.max_routes_per_proxy(routes);
        }
        if let Some(percent) = self.expiry_brake_percent {
            config = config.brake_percent(percent);
        }
        if let Some(routes) = self.expiry_brake_routes {
            config = config.brake_routes(routes);
        }
        if let Some(intervals) = self.expiry_brake_intervals {
            config = config.brake_intervals(intervals);
        }
        if let Some(connections) = self.max_connections {
            config = config.max_connections(connections);
        }
        if let Some(bytes) = self.client_memory_mb {
            config = config.client_memory(bytes);
        }
        if let Some(percent) = self.max_share_per_address {
            config = config.max_share_per_address(percent);
        }
        open_files::raise_limit(config.max_connections.value);
        let table = config.table().build().expect("the limits were checked");
        Server::bind(&config, Arc::new(table)).await
    }
}

/// Returns a parser of a number that `check` accepts.
fn number<T>(check: fn(u64) -> Result<T, String>) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| check(text.parse().map_err(|_| format!("{text:?} is not a number"))?)
}

/// Prints the addresses after the log's lines. Nobody may read stdout, so a thread waits for stdout.
fn announce(addrs: Vec<SocketAddr>, flush_log: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let print = move || {
        flush_log();
        let lines: String = addrs.iter().map(|addr| format!("listening on {addr}\n")).collect();
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_all(lines.as_bytes()).and_then(|()| out.flush()) {
            warn!(%error, "cannot write to stdout");
        }
    };
    thread::Builder::new().spawn(print).map(drop)
}

/// Reloads the certificates at each SIGHUP.
async fn reload_at(mut hangups: Hangups, certificates: Option<Certificates>) -> Infallible {
    loop {
        hangups.next().await;
        let Some(certificates) = certificates.clone() else {
            info!("SIGHUP: no https_keypairs, nothing to reload");
            continue;
        };
        // A thread waits for the files, which may be on a network.
        let (done, reloaded) = oneshot::channel();
        let reload = move || {
            let _ = done.send(certificates.reload());
        };
        if let Err(error) = thread::Builder::new().spawn(reload) {
            error!("SIGHUP: the certificates stay as they are: {error}");
        }
        match reloaded.await {
            Ok(Ok(())) => info!("SIGHUP: reloaded the certificates"),
            Ok(Err(error)) => error!("SIGHUP: the certificates stay as they are: {error}"),
            // No thread was started, or it panicked, which is logged.
            Err(_) => {}
        }
    }
}
