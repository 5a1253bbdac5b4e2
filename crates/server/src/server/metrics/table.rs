//! The table of the metrics: one row for each.
//!
//! A new metric is a row here, and a line of `docs/metrics.md`. A test compares the two, and what a running server
//! exposes.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nodetracker::HoldCause;
use tonic::Code;

use crate::connection_counters::{HandshakeFailure, SessionMessage};
use crate::grpc::call_counters::{CODES, CallCounts};
use crate::grpc::handler::Handler;
use crate::grpc::method::split;
use crate::server::metrics::process::ProcessFigures;
use crate::server::metrics::reading::Reading;
use crate::server::metrics::samples::{MetricKind, Samples};
use crate::snapshot_status::SnapshotStatus;

/// A metric.
pub(super) struct Metric {
    /// The name, as Prometheus shows it: with the unit, and with `_total` at the end of a counter.
    pub(super) name: &'static str,
    pub(super) kind: MetricKind,
    /// The labels of every sample.
    pub(super) labels: &'static [&'static str],
    /// One line for the metrics page and for the documentation.
    pub(super) help: &'static str,
    /// Whether the server has the metric.
    pub(super) applies: fn(&Reading<'_>) -> bool,
    /// Which servers have the metric, for the documentation. Empty if all servers do.
    pub(super) condition: &'static str,
    /// Writes the samples.
    pub(super) write: fn(&Reading<'_>, &mut Samples<'_>) -> fmt::Result,
}

/// A metric without labels that every server has.
const fn single(
    name: &'static str,
    kind: MetricKind,
    help: &'static str,
    write: fn(&Reading<'_>, &mut Samples<'_>) -> fmt::Result,
) -> Metric {
    labelled(name, kind, &[], help, write)
}

/// A metric with labels that every server has.
const fn labelled(
    name: &'static str,
    kind: MetricKind,
    labels: &'static [&'static str],
    help: &'static str,
    write: fn(&Reading<'_>, &mut Samples<'_>) -> fmt::Result,
) -> Metric {
    Metric {
        name,
        kind,
        labels,
        help,
        applies: |_| true,
        condition: "",
        write,
    }
}

impl Metric {
    /// Restricts the metric to some servers.
    const fn only_if(mut self, condition: &'static str, applies: fn(&Reading<'_>) -> bool) -> Self {
        self.condition = condition;
        self.applies = applies;
        self
    }
}

/// The revision of the sources, if the builder sets this variable. The build itself asks no version control.
const REVISION: &str = match option_env!("BUILD_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// All metrics, in the order of the page.
#[rustfmt::skip]
pub(super) static METRICS: &[Metric] = &[
    labelled("nodetracker_build_info", MetricKind::Gauge, &["version", "revision"],
        "Always 1; the labels are the version of the server, and the revision that its builder gave",
        |_, to| to.of([env!("CARGO_PKG_VERSION"), REVISION], 1_u64)),
    single("nodetracker_ready", MetricKind::Gauge,
        "1 if the server takes calls, 0 while it starts or stops",
        |from, to| to.only(from.sources.readiness.check().is_ok())),

    single("nodetracker_routes", MetricKind::Gauge,
        "Routes, counted until they are removed or swept",
        |from, to| to.only(from.table.routes)),
    single("nodetracker_routes_limit", MetricKind::Gauge,
        "The most routes (max_routes)",
        |from, to| to.only(from.sources.statistics.table.limits().routes)),
    single("nodetracker_nodes", MetricKind::Gauge,
        "Nodes with at least one route",
        |from, to| to.only(from.table.nodes)),
    single("nodetracker_proxies", MetricKind::Gauge,
        "Registered proxies",
        |from, to| to.only(from.table.proxies)),
    single("nodetracker_proxies_limit", MetricKind::Gauge,
        "The most proxies (max_proxies)",
        |from, to| to.only(from.sources.statistics.table.limits().proxies)),
    labelled("nodetracker_table_bytes", MetricKind::Gauge, &["part"],
        "Bytes of the table by part, without garbage and without the allocator's overhead",
        |from, to| {
            let memory = &from.memory;
            to.of(["records"], memory.records)?;
            to.of(["indexes"], memory.indexes)?;
            to.of(["lists"], memory.lists)?;
            to.of(["strings"], memory.strings)?;
            to.of(["proxies"], memory.proxies)?;
            to.of(["feed"], memory.feed)
        }),
    single("nodetracker_text_limit_bytes", MetricKind::Gauge,
        "The most bytes of the part strings (max_text_mb)",
        |from, to| to.only(from.sources.statistics.table.limits().text_bytes)),
    single("nodetracker_garbage_objects", MetricKind::Gauge,
        "Objects that left the table and wait until no thread can read them",
        |from, to| to.only(from.table.garbage)),
    single("nodetracker_garbage_bytes", MetricKind::Gauge,
        "Bytes of these objects",
        |from, to| to.only(from.table.garbage_bytes)),

    single("nodetracker_keep_alive_seconds", MetricKind::Gauge,
        "How long a route lives without a refresh (proxy_keep_alive_interval)",
        |from, to| to.only(from.sources.statistics.table.keep_alive())),
    single("nodetracker_effective_keep_alive_seconds", MetricKind::Gauge,
        "The greatest age of a returned route: more than the keep-alive interval while expiry is held",
        |from, to| to.only(from.table.effective_keep_alive)),
    labelled("nodetracker_expiry_held", MetricKind::Gauge, &["cause"],
        "1 while no route expires: the brake acts because heartbeats of many routes are missing, or the process was stopped or has restarted",
        |from, to| {
            let cause = from.table.expiry_hold.map(|hold| hold.cause);
            to.of(["brake"], cause == Some(HoldCause::Brake))?;
            to.of(["stop"], cause == Some(HoldCause::Stop))?;
            to.of(["restart"], cause == Some(HoldCause::Restart))
        }),
    single("nodetracker_expiry_hold_remaining_seconds", MetricKind::Gauge,
        "How long expiry may still be held; 0 if it is not held",
        |from, to| to.only(from.table.expiry_hold.map_or(Duration::ZERO, |hold| hold.left))),
    single("nodetracker_sweep_seconds_total", MetricKind::Counter,
        "Time of the sweeper's steps, without the pauses between them",
        |from, to| to.only(from.sources.sweeps.time())),
    single("nodetracker_sweep_rounds_total", MetricKind::Counter,
        "Rounds of the sweeper over the whole table; four in each keep-alive interval",
        |from, to| to.only(from.sources.sweeps.rounds())),
    single("nodetracker_sweep_visits_total", MetricKind::Counter,
        "Records and proxies that the sweeper visited",
        |from, to| to.only(from.sources.sweeps.visited())),
    labelled("nodetracker_swept_routes_total", MetricKind::Counter, &["cause"],
        "Routes that the sweeper removed: they were expired, or their proxy was removed",
        |from, to| {
            to.of(["expired"], from.sources.sweeps.expired())?;
            to.of(["proxy_removed"], from.sources.sweeps.of_removed_proxies())
        }),

    labelled("nodetracker_calls_total", MetricKind::Counter, &["service", "method", "code"],
        "Calls that ended, by gRPC status code; the service is unknown if the request named no method of the tracker",
        calls),
    labelled("nodetracker_call_duration_seconds", MetricKind::Histogram, &["service", "method"],
        "Time of a unary call from the head of the request to the reply, without the time to send the reply",
        durations),
    single("nodetracker_sessions", MetricKind::Gauge,
        "Proxies with an open session",
        |from, to| to.only(from.sources.statistics.sessions.count())),
    labelled("nodetracker_session_messages_total", MetricKind::Counter, &["kind"],
        "Messages that clients sent in sessions",
        |from, to| SessionMessage::ALL.iter().try_for_each(|&kind| {
            to.of([kind.name()], from.connections(|of| of.session_messages(kind)))
        })),
    single("nodetracker_watches", MetricKind::Gauge,
        "Open watches",
        |from, to| to.only(from.sources.statistics.watches.count())),
    single("nodetracker_watches_limit", MetricKind::Gauge,
        "The most watches at one time (max_watches)",
        |from, to| to.only(from.sources.statistics.watches.max_watches)),
    single("nodetracker_watched_bytes", MetricKind::Gauge,
        "Bytes of the nodes that all watches name",
        |from, to| to.only(from.sources.statistics.watches.watched_size())),
    single("nodetracker_watched_limit_bytes", MetricKind::Gauge,
        "The most bytes of these nodes (max_watched_mb)",
        |from, to| to.only(from.sources.statistics.watches.max_watched_size)),
    single("nodetracker_watch_lost_places_total", MetricKind::Counter,
        "How often a watch was too slow for the change log, or could not resume, and began with a new snapshot",
        |from, to| to.only(from.sources.statistics.watches.lost_places())),
    single("nodetracker_watch_resyncs_total", MetricKind::Counter,
        "How often a part of the table changed too fast for the watches and was sent again",
        |from, to| to.only(from.sources.statistics.watches.resyncs())),
    single("nodetracker_complaints_total", MetricKind::Counter,
        "How often a proxy reported that another proxy did not hold the tunnel of a node",
        |from, to| to.only(from.sources.statistics.complaints.total())),

    single("nodetracker_connections", MetricKind::Gauge,
        "Open connections",
        |from, to| to.only(from.sources.statistics.memory.connections())),
    single("nodetracker_connections_limit", MetricKind::Gauge,
        "The most connections at one time (max_connections)",
        |from, to| to.only(u64::from(from.sources.max_connections))),
    single("nodetracker_accepted_connections_total", MetricKind::Counter,
        "Connections that a worker has begun to serve",
        |from, to| to.only(from.connections(|of| &of.accepted))),
    labelled("nodetracker_handshake_failures_total", MetricKind::Counter, &["reason"],
        "Connections that ended in the handshake of TLS or HTTP/2",
        |from, to| HandshakeFailure::ALL.iter().try_for_each(|&reason| {
            to.of([reason.name()], from.connections(|of| of.handshake_failures(reason)))
        })),
    single("nodetracker_client_memory_bytes", MetricKind::Gauge,
        "Bytes that clients make the server hold, as the memory budget counts them",
        |from, to| to.only(from.sources.statistics.memory.used())),
    single("nodetracker_client_memory_limit_bytes", MetricKind::Gauge,
        "The memory budget for clients (client_memory_mb)",
        |from, to| to.only(from.sources.statistics.memory.limit())),
    labelled("nodetracker_refusals_total", MetricKind::Counter, &["reason"],
        "Calls and connections that were refused or had to wait: a limit was reached, or the client lacks a right",
        |from, to| {
            let mut counts = from.sources.statistics.memory.refusals().counts();
            counts.try_for_each(|(reason, count)| to.of([reason.name()], count))
        }),

    labelled("nodetracker_certificate_expiry_timestamp_seconds", MetricKind::Gauge, &["file"],
        "When the first of the certificates in a file expires, in seconds since 1970",
        certificates)
        .only_if("with `https_keypairs`", has_certificates),
    single("nodetracker_certificate_reload_failing", MetricKind::Gauge,
        "1 if the certificate files cannot be loaded, so the server uses what it loaded before",
        |from, to| from.sources.certificates.iter().try_for_each(|of| to.only(of.is_failing())))
        .only_if("with `https_keypairs`", has_certificates),
    single("nodetracker_snapshot_timestamp_seconds", MetricKind::Gauge,
        "When the last snapshot was written, in seconds since 1970; 0 if none was written",
        |from, to| snapshots(from, |status| to.only(status.last_success().map_or(Duration::ZERO, since_1970))))
        .only_if("with `data_dir`", has_snapshots),
    single("nodetracker_snapshot_interval_seconds", MetricKind::Gauge,
        "The time between two snapshots (snapshot_interval)",
        |from, to| to.only(from.sources.snapshot_interval))
        .only_if("with `data_dir`", has_snapshots),
    single("nodetracker_snapshot_bytes", MetricKind::Gauge,
        "The size of the last snapshot",
        |from, to| snapshots(from, |status| to.only(status.bytes())))
        .only_if("with `data_dir`", has_snapshots),
    single("nodetracker_snapshot_duration_seconds", MetricKind::Gauge,
        "How long the writing of the last snapshot took",
        |from, to| snapshots(from, |status| to.only(status.duration())))
        .only_if("with `data_dir`", has_snapshots),
    single("nodetracker_snapshots_total", MetricKind::Counter,
        "Snapshots that were written",
        |from, to| snapshots(from, |status| to.only(status.successes())))
        .only_if("with `data_dir`", has_snapshots),
    single("nodetracker_snapshot_failures_total", MetricKind::Counter,
        "Snapshots that could not be written",
        |from, to| snapshots(from, |status| to.only(status.failures())))
        .only_if("with `data_dir`", has_snapshots),
    single("nodetracker_snapshot_failing", MetricKind::Gauge,
        "1 if the last snapshot could not be written",
        |from, to| snapshots(from, |status| to.only(status.is_failing())))
        .only_if("with `data_dir`", has_snapshots),
    single("nodetracker_restored_routes", MetricKind::Gauge,
        "Routes that were restored from a snapshot at the start",
        |from, to| snapshots(from, |status| to.only(status.restored_routes())))
        .only_if("with `data_dir`", has_snapshots),

    single("process_cpu_seconds_total", MetricKind::Counter,
        "CPU time of the process, in user and system mode",
        |from, to| process(from, |figures| to.only(figures.cpu_seconds)))
        .only_if("on Linux", has_process),
    single("process_resident_memory_bytes", MetricKind::Gauge,
        "Memory of the process that is in RAM",
        |from, to| process(from, |figures| to.only(figures.resident_bytes)))
        .only_if("on Linux", has_process),
    single("process_threads", MetricKind::Gauge,
        "Threads of the process",
        |from, to| process(from, |figures| to.only(figures.threads)))
        .only_if("on Linux", has_process),
    single("process_open_fds", MetricKind::Gauge,
        "Open file descriptors",
        |from, to| process(from, |figures| to.only(figures.open_fds)))
        .only_if("on Linux", has_process),
    single("process_max_fds", MetricKind::Gauge,
        "The limit of open file descriptors",
        |from, to| process(from, |figures| to.only(figures.max_fds.map_or(f64::INFINITY, |most| most as f64))))
        .only_if("on Linux", has_process),
    single("process_start_time_seconds", MetricKind::Gauge,
        "When the process started, in seconds since 1970",
        |from, to| process(from, |figures| to.only(figures.start_time)))
        .only_if("on Linux", has_process),
];

fn has_certificates(from: &Reading<'_>) -> bool {
    from.sources.certificates.is_some()
}

fn has_snapshots(from: &Reading<'_>) -> bool {
    from.sources.statistics.snapshots.is_some()
}

fn snapshots(from: &Reading<'_>, write: impl FnMut(&Arc<SnapshotStatus>) -> fmt::Result) -> fmt::Result {
    from.sources.statistics.snapshots.iter().try_for_each(write)
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn has_process(from: &Reading<'_>) -> bool {
    from.process.is_some()
}

fn process(from: &Reading<'_>, write: impl FnMut(&ProcessFigures) -> fmt::Result) -> fmt::Result {
    from.process.iter().try_for_each(write)
}

/// The service and the method of calls whose request names no method of the table.
const UNKNOWN: (&str, &str) = ("unknown", "unknown");

/// Returns the calls of each method, and of no method, with the names of the service and of the method.
fn by_method<'r>(from: &'r Reading<'_>) -> impl Iterator<Item = ((&'static str, &'static str), &'r CallCounts)> {
    let names = from.sources.methods.rows().iter().map(|method| split(method.path));
    names.chain([UNKNOWN]).zip(&from.calls)
}

/// Writes how many calls ended with each code. OK is there for every method, the other codes if they occurred.
fn calls(from: &Reading<'_>, to: &mut Samples<'_>) -> fmt::Result {
    for ((service, method), counts) in by_method(from) {
        for (code, &count) in (0..).zip(&counts.by_code) {
            if count > 0 || (code == 0 && service != UNKNOWN.0) {
                to.of([service, method, CODE_NAMES[code]], count)?;
            }
        }
    }
    Ok(())
}

fn durations(from: &Reading<'_>, to: &mut Samples<'_>) -> fmt::Result {
    let rows = from.sources.methods.rows().iter();
    for (row, ((service, method), counts)) in rows.zip(by_method(from)) {
        if !matches!(row.handler, Handler::Streaming(_)) {
            to.latencies([service, method], counts)?;
        }
    }
    Ok(())
}

fn certificates(from: &Reading<'_>, to: &mut Samples<'_>) -> fmt::Result {
    let expiries = from
        .sources
        .certificates
        .iter()
        .flat_map(|certificates| certificates.expiries());
    for (file, expiry) in expiries {
        to.of([&file.display().to_string()], since_1970(expiry))?;
    }
    Ok(())
}

/// The names of the status codes, from 0 on, as gRPC's specification writes them.
const CODE_NAMES: [&str; CODES] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

const _: () = assert!(Code::Unauthenticated as usize == CODES - 1);
