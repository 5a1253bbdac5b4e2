//! The `serve` command: runs a tracker until a signal stops it.

use std::convert::Infallible;
use std::env;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, CommandFactory, FromArgMatches, value_parser};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use crate::cli::commands::CommandError;
use crate::cli::signals::{Hangups, Signals};
use crate::cli::{Cli, FAILURE, USAGE, code_of, fail, open_files, systemd};
use crate::config::keys::{KEYS, Key};
use crate::config::{Config, ConfigError, Origin};
use crate::log::{self, LogLevel};
use crate::server::{LAST_SNAPSHOT_TIME, Listeners, Server, StartError};
use crate::tls::Certificates;

/// Arguments of `serve`: the configuration file, and a flag and an environment variable for each key.
#[derive(Debug)]
pub(super) struct Serve {
    config: Option<PathBuf>,
    /// The keys that flags and variables set.
    given: Vec<(&'static Key, String, Origin)>,
}

/// The flag of the configuration file.
const CONFIG: &str = "config";

impl Args for Serve {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .env("NODETRACKER_CONFIG")
            .hide_env_values(true)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("YAML file with a node_tracker_service section [default: none is needed]");
        command.arg(config).args(KEYS.iter().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Returns the argument of a key. clap reads any text, because the text of a variable needs another message than that
/// of a flag.
fn arg(key: &'static Key) -> Arg {
    let help = match key.default {
        "" => key.help.to_owned(),
        default => format!("{} [default: {default}]", key.help),
    };
    Arg::new(key.name)
        .long(key.flag())
        .env(key.variable())
        .hide_env_values(true)
        .value_name(key.value_name)
        .allow_hyphen_values(true)
        .help(help)
}

impl FromArgMatches for Serve {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |key: &'static Key| {
            let text = matches.get_one::<String>(key.name)?;
            let origin = match matches.value_source(key.name) {
                Some(ValueSource::EnvVariable) => Origin::Variable(key.name),
                _ => Origin::Flag(key.name),
            };
            Some((key, text.clone(), origin))
        };
        Ok(Self {
            config: matches.get_one(CONFIG).cloned(),
            given: KEYS.iter().filter_map(given).collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Serve {
    pub(super) async fn run(self) -> ExitCode {
        // First, while the process has one thread.
        let sockets = systemd::sockets().and_then(|sockets| match sockets.is_empty() {
            true => Ok(None),
            false => Listeners::take_over(sockets).map(Some),
        });
        let sockets = match sockets {
            Ok(sockets) => sockets,
            Err(reason) => return fail(USAGE, &CommandError::Usage(reason)),
        };
        let mut config = match self.config() {
            Ok(config) => config,
            Err(error) => return fail(code_of(&error), &error),
        };
        let (level, rust_log) = log_level(&config);
        let log = match log::init(config.log_format.value, level) {
            Ok(log) => log,
            Err(error) => return fail(FAILURE, &error),
        };
        if let Err(error) = rust_log {
            warn!("{error}; the variable is ignored");
        }
        let set = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for name in unknown_variables(set) {
            warn!("{name} is no variable of nodetracker, and has no effect");
        }
        // Before the port is taken: a script that reads "listening on" may send a signal at once.
        let (mut signals, hangups) = match Signals::install().and_then(|signals| Ok((signals, Hangups::install()?))) {
            Ok(signals) => signals,
            Err(error) => return fail(FAILURE, &error),
        };
        config.max_connections.value = open_files::raise_limit(config.max_connections.value);
        let table = config.table().build().expect("the limits were checked");
        let table = Arc::new(table);
        let bind = async {
            match sockets {
                Some(sockets) => Server::on(&config, table, sockets).await,
                None => Server::bind(&config, table).await,
            }
        };
        let bound = tokio::select! {
            bound = bind => bound,
            // There are no calls to finish, and a file system or a look-up of a name may never end.
            signal = signals.next() => {
                info!("{}: ended before the start was complete", signal.name);
                return ExitCode::from(signal.exit_code());
            }
        };
        let server = match bound {
            Ok(server) => server,
            Err(error @ StartError::Config(_)) => return fail(USAGE, &error),
            Err(error) => return fail(FAILURE, &error),
        };
        if let Err(error) = announce(server.local_addrs().to_vec(), log.flusher()) {
            return fail(FAILURE, &error);
        }
        systemd::ready(server.local_addrs());
        let reloads = reload_at(hangups, server.certificates());
        let watchdog = systemd::feed_watchdog(server.liveness());
        let last_snapshot = match config.data_dir {
            Some(_) => LAST_SNAPSHOT_TIME,
            None => Duration::ZERO,
        };
        let stop_limit = config
            .shutdown_delay
            .value
            .saturating_add(config.limits().drain + last_snapshot);
        let stop_report = systemd::report_stop(server.stopping(), stop_limit);

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
            never = watchdog => match never {},
            never = stop_report => match never {},
            second = interrupted => {
                warn!("{}: ended with calls in flight", second.name);
                ExitCode::from(second.exit_code())
            }
        }
    }

    /// Returns the defaults, overridden by the file, by variables and by flags.
    fn config(self) -> Result<Config, ConfigError> {
        let mut config = self
            .config
            .as_deref()
            .map_or_else(|| Ok(Config::default()), Config::read)?;
        for (key, text, origin) in self.given {
            config.set(key.name, &text, origin)?;
        }
        Ok(config)
    }
}

/// Returns the level of the log: from the configuration, or from RUST_LOG if nothing else sets the level. The error
/// says why RUST_LOG cannot be used.
fn log_level(config: &Config) -> (LogLevel, Result<(), String>) {
    let configured = || config.log_level.value.clone();
    match (&config.log_level.origin, LogLevel::of_rust_log()) {
        (Origin::Default(_), Some(Ok(level))) => (level, Ok(())),
        (Origin::Default(_), Some(Err(error))) => (configured(), Err(error)),
        _ => (configured(), Ok(())),
    }
}

/// Returns the variables that look like a typing error: they begin as those of the command, and no flag has them.
fn unknown_variables(set: impl Iterator<Item = String>) -> Vec<String> {
    let command = Cli::command();
    let args = command.get_subcommands().flat_map(Command::get_arguments);
    let known: Vec<_> = args.filter_map(Arg::get_env).collect();
    let is_known = |name: &str| known.iter().any(|known| *known == name);
    // Kubernetes and Docker set such variables for a service or a container with this name.
    let is_link = |name: &str| name.contains("_PORT") || name.contains("_SERVICE_");
    set.filter(|name| name.starts_with("NODETRACKER_") && !is_known(name) && !is_link(name))
        .collect()
}

/// Prints the addresses after the log's lines. stdout may have no reader, so a thread waits for stdout.
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
        systemd::reloading();
        reload(certificates.clone()).await;
        systemd::reloaded();
    }
}

async fn reload(certificates: Option<Certificates>) {
    let Some(certificates) = certificates else {
        return info!("SIGHUP: no https_keypairs, nothing to reload; the configuration is read only at the start");
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
        Ok(Ok(())) => info!("SIGHUP: reloaded the certificates; the configuration is read only at the start"),
        Ok(Err(error)) => error!("SIGHUP: the certificates stay as they are: {error}"),
        // No thread was started, or it panicked, which is logged.
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_with_a_typing_error_is_found() {
        let set = [
            "NODETRACKER_MAX_ROUTE",
            "NODETRACKER_MAX_ROUTES",
            "NODETRACKER_CONFIG",
            "NODETRACKER_CA_FILE",
            "NODETRACKER_PORT_3029_TCP_ADDR",
            "NODETRACKER_SERVICE_HOST",
            "PATH",
        ];
        let unknown = unknown_variables(set.into_iter().map(str::to_owned));
        assert_eq!(unknown, ["NODETRACKER_MAX_ROUTE"]);
    }

    #[test]
    fn every_key_has_its_flag_and_its_variable() {
        let command = Serve::augment_args(Command::new("serve"));
        for key in KEYS {
            let arg = command
                .get_arguments()
                .find(|arg| arg.get_id() == key.name)
                .expect(key.name);
            assert_eq!(arg.get_long(), Some(&*key.flag()));
            assert_eq!(arg.get_env(), Some(key.variable().as_ref()));
        }
    }
}
