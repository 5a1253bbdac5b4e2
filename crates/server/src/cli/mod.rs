//! The command line.

mod client;
mod commands;
mod print;
mod signals;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nodetracker::RouteTable;
use tokio::runtime;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::cli::commands::{QueryError, admin};
use crate::cli::signals::Signals;
use crate::config::{self, Config};
use crate::log::{self, LogFormat};
use crate::server::{Server, StartError};

/// Something was wrong while running.
const FAILURE: u8 = 1;
/// Something was wrong with what was asked for; clap uses the same.
const USAGE: u8 = 2;

/// What `help` says after the commands.
const FOR_SCRIPTS: &str = "\
Exit codes:
  0         Done, also where the answer is empty
  1         The tracker did not answer, or refused; or something failed while it ran
  2         A mistake in the command line or the configuration
  130, 143  Ended by SIGINT or SIGTERM; where the tracker runs, by the second one

Answers go to stdout, remarks and errors to stderr. With --format json an answer is one
object a line, and a time is like 2021-11-23T00:01:38.042Z, in UTC.";

/// Tracks which proxies hold the reverse tunnels to which nodes
#[derive(Debug, Parser)]
#[command(
    name = "nodetracker",
    version,
    after_help = FOR_SCRIPTS,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the tracker
    ///
    /// The line "listening on ADDR" goes to stdout once calls are accepted, logs go to stderr. SIGTERM and SIGINT stop
    /// it once the calls in flight are finished; a second one at once.
    Serve(Serve),
    /// Record, or refresh, that a node can be reached through a proxy
    Add(commands::Add),
    /// List the proxies that can reach a node, most recently refreshed first
    ///
    /// As JSON, each has proxy_id, cluster_name, addr and last_refresh_time.
    Get(commands::Get),
    /// Forget every route of a node
    Rm(commands::Rm),
    /// Tell everything that is known of a node, and why a route of it is not returned
    ///
    /// As JSON, each route has what `get` prints, age_seconds, and the verdict: returned, expired or proxy removed.
    Explain(admin::Explain),
    /// List the nodes with their routes
    ///
    /// In no particular order. A node is there once, if it has routes all the while. As JSON, each route has what `get` prints,
    /// and the node.
    Nodes(admin::Nodes),
    /// List the proxies that are registered
    ///
    /// As JSON, each has proxy_id, cluster_name and addr.
    Proxies(admin::Proxies),
    /// Forget a proxy with all its routes
    ///
    /// Takes effect at once, however many routes there are. A proxy that goes on reporting nodes with single calls is registered
    /// again by that. One that has a session loses it, and comes back when it starts anew.
    RmProxy(admin::RmProxy),
    /// Tell what the tracker holds, and since when it runs
    Stats(admin::Stats),
}

#[derive(Debug, Args)]
struct Serve {
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

impl Cli {
    /// Does what the command line asks for; what went wrong is one line on stderr.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return fail(FAILURE, &error),
        };
        runtime.block_on(async {
            match self.command {
                Command::Serve(serve) => serve.run().await,
                Command::Add(add) => answer(commands::add(add).await),
                Command::Get(get) => answer(commands::get(get).await),
                Command::Rm(rm) => answer(commands::rm(rm).await),
                Command::Explain(explain) => answer(admin::explain(explain).await),
                Command::Nodes(nodes) => answer(admin::nodes(nodes).await),
                Command::Proxies(proxies) => answer(admin::proxies(proxies).await),
                Command::RmProxy(rm_proxy) => answer(admin::rm_proxy(rm_proxy).await),
                Command::Stats(stats) => answer(admin::stats(stats).await),
            }
        })
    }
}

impl Serve {
    async fn run(self) -> ExitCode {
        log::init(self.log_format);
        // Before the port is taken: whoever reads "listening on" may stop the server.
        let mut signals = match Signals::install() {
            Ok(signals) => signals,
            Err(error) => return fail(FAILURE, &error),
        };
        let server = match self.bind().await {
            Ok(server) => server,
            Err(error @ StartError::Config(_)) => return fail(USAGE, &error),
            Err(error) => return fail(FAILURE, &error),
        };
        if let Err(error) = say_listening(&server) {
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
        let table = RouteTable::builder().keep_alive(config.keep_alive.value).build();
        Server::bind(&config, Arc::new(table)).await
    }
}

fn say_listening(server: &Server) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {}", server.local_addr())?;
    out.flush()
}

fn answer(result: Result<(), QueryError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has seen enough.
        Err(QueryError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error @ QueryError::Usage(_)) => fail(USAGE, &error),
        Err(error) => fail(FAILURE, &error),
    }
}

fn fail(code: u8, error: &dyn std::error::Error) -> ExitCode {
    // Not eprintln, which panics on a closed stderr.
    let _ = writeln!(io::stderr(), "nodetracker: {error}");
    ExitCode::from(code)
}
