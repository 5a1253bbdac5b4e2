//! The command line: `serve` runs a tracker, `validate`, `completions` and `man` need no tracker, and all other
//! commands call a running tracker.

mod client;
mod commands;
mod generate;
mod open_files;
mod print;
mod serve;
mod signals;
mod systemd;
mod validate;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tokio::runtime::{self, Runtime};

use crate::cli::commands::{CommandError, admin, bench, operate, top, watch};
use crate::cli::generate::{Completions, ManPage};
use crate::cli::serve::Serve;
use crate::cli::validate::{Validate, validate};
use crate::config::ConfigError;

/// The exit code of an operation that failed.
const FAILURE: u8 = 1;
/// The exit code of a wrong command line or configuration, as clap has it. Nothing was tried.
const USAGE: u8 = 2;

/// The text of `help` after the commands.
const FOR_SCRIPTS: &str = "\
Exit codes:
  0         The command did its work, even if the answer is empty
  1         The operation failed: for example, the tracker did not answer or refused the call,
            a port is taken, or a file cannot be read; a later attempt may succeed
  2         A flag, a variable, the configuration or a file that these name cannot be used;
            the command did nothing
  130, 143  SIGINT or SIGTERM ended the command; `bench`, and `serve` once it accepts
            calls, need two signals for this, and `watch` and `top` end with 0

Answers go to stdout, remarks and errors to stderr. With --format json, an answer
is one object a line, and times are in UTC, such as 2021-11-23T00:01:38.042Z.";

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
    /// Once the tracker accepts calls, the command prints the line "listening on ADDR" to stdout, for each address.
    /// Logs go to stderr. After SIGTERM or SIGINT, the tracker finishes the calls in flight and stops. After a second
    /// signal, or before the tracker accepts calls, the tracker stops at once. After SIGHUP, the tracker reads its keys
    /// and certificates again.
    Serve(Serve),
    /// Check a configuration file, and the keys and certificates that it names
    ///
    /// Prints "FILE: valid" and the keys whose values differ from the defaults. A mistake is the line that `serve`
    /// prints, with the same exit code. Flags and variables count for nothing. No port is taken, and no name is looked
    /// up.
    Validate(Validate),
    /// Record, or refresh, that a node can be reached through a proxy
    ///
    /// The call replaces the cluster and the address of the proxy, for all its routes. Without --cluster, the proxy
    /// gets an empty cluster.
    Add(commands::Add),
    /// List the proxies that can reach a node, most recently refreshed first
    ///
    /// As JSON, each proxy has proxy_id, cluster_name, addr and last_refresh_time.
    Get(commands::Get),
    /// Forget all routes of a node
    Rm(commands::Rm),
    /// Show all routes of a node, also those that `get` does not return, and why
    ///
    /// As JSON, each route has what `get` prints, age_seconds, and the verdict: "returned", "returned (held)" while
    /// expiry is held, "returned (restored, not confirmed since)" after a restart, "expired" or "proxy removed". A
    /// route about which proxies complained has the complaint, with count, reporter_id and last_time.
    Explain(admin::Explain),
    /// List the nodes with their routes
    ///
    /// The order has no meaning. A table is printed once the tracker has sent all pages. As JSON, each route is printed
    /// as it arrives, and has the fields of `get` and the node.
    Nodes(admin::Nodes),
    /// List the registered proxies
    ///
    /// As JSON, each proxy has proxy_id, cluster_name, addr and routes, the number of its routes.
    Proxies(admin::Proxies),
    /// Forget a proxy with all its routes
    ///
    /// All its routes disappear at once. If the proxy reports nodes with single calls later, the tracker registers the
    /// proxy again. If the proxy has a session, the session ends, and the proxy cannot begin another session until it
    /// restarts.
    RmProxy(admin::RmProxy),
    /// Show what the tracker holds, and how long the tracker has been running
    Stats(admin::Stats),
    /// Print all routes, and then each change, until Ctrl-C
    ///
    /// A refresh is no change. Each line has an event, a node or a proxy, and the proxies that now reach the node. The
    /// event is snapshot, snapshot_end, added, removed, expired, proxy_removed, proxy_moved or lost_place. After
    /// lost_place, a new snapshot replaces all earlier lines. After resync, the nodes of one part come again as
    /// sent_again, until resync_end; if resync has no part, the proxies come again as proxy_sent_again.
    ///
    /// As JSON, a silent watch has a line with the event keep_alive now and then. To continue an earlier watch, give
    /// --resume the generation of its last snapshot_end, a colon, and the last sequence of its lines.
    Watch(watch::Watch),
    /// Show calls, latencies, routes and memory of a running tracker, until q
    ///
    /// Reads the metrics from the tracker's diagnostics port (`serve --diag-addr`). Needs no certificate. The keys 1 to
    /// 5 choose a tab, and ? shows all keys. --once prints the figures of one interval, for pipes; with --format json,
    /// as one object, whose names the server's README lists. NO_COLOR switches colours off.
    Top(top::Top),
    /// Check that the tracker is serving, for example for a container
    ///
    /// Prints SERVING and exits with 0. If the tracker stops, prints NOT_SERVING and exits with 1.
    Health(commands::Health),
    /// Stop the tracker, and wait until it has closed its port
    ///
    /// The health becomes NOT_SERVING, and sessions are asked to go to another tracker. The tracker serves calls for
    /// its shutdown_delay. Then it closes its port, finishes the calls in flight, and exits with 0. If a socket unit of
    /// systemd keeps the port, the tracker restarts with the next connection; stop both units then. As JSON, the answer
    /// has generation, shutdown_delay_seconds, closed, and restarted.
    Drain(operate::Drain),
    /// Change what the tracker logs, for example to debug for ten minutes
    ///
    /// As JSON, the answer has the previous_level.
    LogLevel(operate::SetLogLevel),
    /// Load the tracker with calls at a constant rate, and print how long they took
    ///
    /// The latency of a call is the time from when the call was due, not from its sending. If the tracker stalls, the
    /// calls that had to wait are charged to the tracker. Without --rate, there are as many calls as the limits allow,
    /// which measures the maximum; the latencies then say little. All nodes are added before the measurement.
    ///
    /// Ctrl-C ends the run early, with a report. At the end, the proxies of the run are removed with all their routes.
    /// A tracker that has proxies or is on another machine is not loaded without --yes. --mode unary, look-up and mixed
    /// need only the frozen contract of RFD 47, so they load any server of it.
    Bench(Box<bench::Bench>),
    /// Print a script that completes the command line in a shell
    Completions(Completions),
    /// Print a manual page, or write all of them into a directory
    Man(ManPage),
}

impl Cli {
    /// Runs the command. A failure is one line on stderr.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return fail(FAILURE, &error),
        };
        to_end(runtime, async {
            match self.command {
                Command::Serve(serve) => serve.run().await,
                Command::Add(add) => exit_code(commands::add(add).await),
                Command::Get(get) => exit_code(commands::get(get).await),
                Command::Rm(rm) => exit_code(commands::rm(rm).await),
                Command::Explain(explain) => exit_code(admin::explain(explain).await),
                Command::Nodes(nodes) => exit_code(admin::nodes(nodes).await),
                Command::Proxies(proxies) => exit_code(admin::proxies(proxies).await),
                Command::RmProxy(rm_proxy) => exit_code(admin::rm_proxy(rm_proxy).await),
                Command::Stats(stats) => exit_code(admin::stats(stats).await),
                Command::Watch(watch) => exit_code(watch::watch(watch).await),
                Command::Top(top) => exit_code(top::top(top).await),
                Command::Health(health) => exit_code(commands::health(health).await),
                Command::Drain(drain) => exit_code(operate::drain(drain).await),
                Command::LogLevel(set) => exit_code(operate::log_level(set).await),
                Command::Bench(load) => exit_code(bench::bench(*load).await),
                Command::Validate(file) => validate(file),
                Command::Completions(shell) => exit_code(generate::completions(&mut Self::command(), shell)),
                Command::Man(page) => exit_code(generate::man(Self::command(), page)),
            }
        })
    }
}

/// Runs a command to its end. Unlike a drop of the runtime, does not wait for threads that look up names. A resolver
/// that does not respond would delay the end beyond the command's limit.
fn to_end<T>(runtime: Runtime, command: impl Future<Output = T>) -> T {
    let output = runtime.block_on(command);
    runtime.shutdown_background();
    output
}

fn exit_code(result: Result<(), CommandError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe has seen enough, which is no failure.
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error @ CommandError::Usage(_)) => fail(USAGE, &error),
        Err(error @ CommandError::Interrupted(signal)) => fail(signal.exit_code(), &error),
        Err(error) => fail(FAILURE, &error),
    }
}

fn fail(code: u8, error: &dyn std::error::Error) -> ExitCode {
    remark(&error.to_string());
    ExitCode::from(code)
}

/// Returns the exit code of an error in the configuration.
fn code_of(error: &ConfigError) -> u8 {
    match error.may_pass() {
        true => FAILURE,
        false => USAGE,
    }
}

/// Writes a line to stderr.
fn remark(text: &str) {
    // Not eprintln, which panics on a closed stderr.
    let _ = writeln!(io::stderr(), "nodetracker: {}", print::visible(text));
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use tokio::task::spawn_blocking;

    use super::*;

    #[test]
    fn a_resolver_that_hangs_does_not_keep_a_command_from_its_end() {
        let (resolver, responds) = mpsc::channel::<()>();
        let (done, is_done) = mpsc::channel();
        let command = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().build().unwrap();
            let begun = async { drop(spawn_blocking(move || responds.recv())) };
            to_end(runtime, begun);
            done.send(()).unwrap();
        });
        is_done
            .recv_timeout(Duration::from_secs(10))
            .expect("the command waits");
        drop(resolver);
        command.join().unwrap();
    }
}
