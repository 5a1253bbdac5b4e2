//! Refusals: calls and connections that the server does not serve, or not at once. A limit is reached, or the client
//! lacks a right. The server counts refusals by reason.
//!
//! Every refusal goes through [`Refusals::refuse`], which counts the refusal. [`CountedRefusal::status`] then makes the
//! status. So the server counts every status of a limit. `clippy.toml` forbids other ways to make these statuses.
//!
//! Most limits are reached only for a while: clients read their replies, and routes expire. For such a limit, the
//! status has the details `google.rpc.RetryInfo`, with a delay. If waiting never helps, the status has no details.
//!
//! Only refusals write the counters, so calls that succeed cost nothing more.
//!
//! The log has a line for each refusal at the level debug. At the level info, it has a line for each reason within
//! [`REPORT_INTERVAL`], with the count of the refusals since the line before. So a flood of refusals writes some
//! megabytes a day.

use std::fmt::Display;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::field::display;
use tracing::{debug, info};

use crate::log::peer;
use crate::named::named;

/// How often the log has a line for one reason, at the level info.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

named! { text
    /// Which limit was reached, or which right the client lacks.
    Reason {
        /// The memory of all clients is used up, so even the connection's share is not free.
        ClientMemory = "client_memory",
        /// The connection holds its share of the memory, and more than is free.
        ConnectionMemory = "connection_memory",
        /// The client's address holds its share of the memory.
        AddressMemory = "address_memory",
        /// The table has its maximum of routes.
        TableRoutes = "table_routes",
        /// The proxy has its maximum of routes.
        ProxyRoutes = "proxy_routes",
        /// The proxies of the client have the client's share of the routes.
        ClientRoutes = "client_routes",
        /// The client has its share of the proxies.
        ClientProxies = "client_proxies",
        /// The proxy restarts faster than the routes of its older incarnations are swept.
        ProxyRestarts = "proxy_restarts",
        /// The table has its maximum of proxies.
        TableProxies = "table_proxies",
        /// The table has its maximum of text, or the system had no memory for the table.
        TableMemory = "table_memory",
        /// The server has its maximum of watches.
        Watches = "watches",
        /// The connection has its maximum of watches, or of watches of the health.
        ConnectionWatches = "connection_watches",
        /// The client's address has its share of the watches.
        AddressWatches = "address_watches",
        /// The nodes of all watches take the maximum of bytes.
        WatchedNodes = "watched_nodes",
        /// The nodes of the watches of the client's address take the address's share of the bytes.
        AddressWatchedNodes = "address_watched_nodes",
        /// The metadata of a request is too large.
        MetadataSize = "metadata_size",
        /// A request message is too large.
        MessageSize = "message_size",
        /// The reply would be too large.
        ReplySize = "reply_size",
        /// The connection ended: its client cancelled too many calls.
        CancelledCalls = "cancelled_calls",
        /// The connection ended: too many resets, or too many tiny, endless or expensive frames.
        FrameFlood = "frame_flood",
        /// A connection had to wait: the server has its maximum of connections.
        Connections = "connections",
        /// A connection was closed: its address has its share of the connections.
        AddressConnections = "address_connections",
        /// A connection had to wait: the system had no file descriptor or no memory.
        Accept = "accept",
        /// The caller's certificate does not allow the call.
        Denied = "denied",
        /// A handshake failed: the client has no valid certificate of an authority in client_ca_file.
        ClientCertificate = "client_certificate",
    }
}

impl Reason {
    /// Returns how long a client should wait before it tries again. `None` if waiting never helps, or if no status
    /// reports the refusal.
    pub(crate) fn retry_delay(self) -> Option<Duration> {
        match self {
            // Calls end, and clients read their replies.
            Reason::ClientMemory | Reason::ConnectionMemory | Reason::AddressMemory => Some(Duration::from_secs(1)),
            // A refusal makes the sweeper faster.
            Reason::ProxyRestarts => Some(Duration::from_secs(1)),
            // Watches end seldom.
            Reason::Watches | Reason::ConnectionWatches | Reason::AddressWatches => Some(Duration::from_secs(10)),
            Reason::WatchedNodes | Reason::AddressWatchedNodes => Some(Duration::from_secs(10)),
            // Routes expire, and the sweeper removes them.
            Reason::TableRoutes | Reason::ProxyRoutes | Reason::ClientRoutes => Some(Duration::from_secs(10)),
            Reason::TableProxies | Reason::ClientProxies | Reason::TableMemory => Some(Duration::from_secs(10)),
            Reason::MetadataSize | Reason::MessageSize | Reason::ReplySize => None,
            Reason::CancelledCalls | Reason::FrameFlood => None,
            Reason::Connections | Reason::AddressConnections | Reason::Accept => None,
            Reason::Denied | Reason::ClientCertificate => None,
        }
    }
}

/// The refusals of one server.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    counts: [AtomicU64; Reason::ALL.len()],
    reports: [Mutex<LastLine>; Reason::ALL.len()],
}

/// What the log has reported of one reason.
#[derive(Debug, Default)]
struct LastLine {
    at: Option<Instant>,
    /// The count at that time.
    count: u64,
}

impl LastLine {
    /// Returns the number of refusals since the last line, if the next line is due.
    fn take_due(&mut self, count: u64, now: Instant) -> Option<u64> {
        if self.at.is_some_and(|at| now < at + REPORT_INTERVAL) {
            return None;
        }
        self.at = Some(now);
        // Another thread may have reported a later refusal already.
        Some(count.saturating_sub(std::mem::replace(&mut self.count, count)))
    }
}

impl Refusals {
    /// Counts and logs a refusal of the [current client](peer::current).
    pub(crate) fn refuse(&self, reason: Reason) -> CountedRefusal {
        self.refuse_for(reason, None)
    }

    /// As [`refuse`](Self::refuse). The lines of the log have the error.
    pub(crate) fn refuse_for(&self, reason: Reason, error: Option<&dyn Display>) -> CountedRefusal {
        // Relaxed, as in `counts`: the counters guard no data.
        let count = self.counts[reason as usize].fetch_add(1, Ordering::Relaxed) + 1;
        // If another thread has the lock, that thread or the next line reports this refusal, too. A flood of refusals
        // must not make the workers wait for each other.
        let report = self.reports[reason as usize].try_lock();
        let due = report
            .ok()
            .and_then(|mut report| report.take_due(count, Instant::now()));
        let (name, text) = (reason.name(), reason.text());
        let error = error.map(display);
        match due {
            Some(count) => info!(reason = name, count, peer = peer::field(), error, "refused: {text}"),
            // The span of the connection names the client.
            None => debug!(reason = name, error, "refused: {text}"),
        }
        CountedRefusal { reason }
    }

    /// Returns how often each reason occurred.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL
            .iter()
            .zip(&self.counts)
            .map(|(&reason, count)| (reason, count.load(Ordering::Relaxed)))
    }
}

/// A refusal that is counted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CountedRefusal {
    reason: Reason,
}

impl CountedRefusal {
    /// Returns the status for the client.
    #[expect(clippy::disallowed_methods, reason = "this refusal is counted")]
    pub(crate) fn status(self, message: impl Into<String>) -> Status {
        match self.reason.retry_delay() {
            None => Status::resource_exhausted(message),
            delay => {
                let details = ErrorDetails::with_retry_info(delay);
                Status::with_error_details(Code::ResourceExhausted, message, details)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::{Arc, mpsc};

    use super::*;

    #[test]
    fn each_refusal_is_counted_under_its_reason() {
        let refusals = Refusals::default();
        for (times, &reason) in Reason::ALL.iter().enumerate() {
            for _ in 0..times {
                let status = refusals.refuse(reason).status("no room");
                assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "no room"));
            }
        }
        let counts: Vec<_> = refusals.counts().collect();
        let expected: Vec<_> = Reason::ALL.iter().copied().zip(0..).collect();
        assert_eq!(counts, expected);
    }

    #[test]
    fn a_refusal_does_not_wait_for_another_thread_that_reports() {
        let refusals = Arc::new(Refusals::default());
        let reporting = refusals
            .reports
            .each_ref()
            .map(|report| report.lock().expect("not poisoned"));
        let (done, is_done) = mpsc::channel();
        let other = Arc::clone(&refusals);
        let thread = std::thread::spawn(move || {
            other.refuse(Reason::MessageSize);
            done.send(())
        });
        is_done
            .recv_timeout(Duration::from_secs(10))
            .expect("the refusal waits for the other thread");
        drop(reporting);
        thread.join().expect("no panic").expect("the receiver is there");
        assert_eq!(refusals.counts().map(|(_, count)| count).sum::<u64>(), 1);
    }

    #[test]
    fn the_log_has_a_line_for_each_interval_and_counts_the_rest() {
        let begin = Instant::now();
        let mut report = LastLine::default();
        assert_eq!(report.take_due(1, begin), Some(1));
        for count in 2..10 {
            assert_eq!(report.take_due(count, begin + REPORT_INTERVAL / 2), None);
        }
        assert_eq!(report.take_due(10, begin + REPORT_INTERVAL), Some(9));
        assert_eq!(report.take_due(11, begin + REPORT_INTERVAL * 3 / 2), None);
        assert_eq!(
            Reason::AddressMemory.text(),
            "The client's address holds its share of the memory."
        );
        assert_eq!(
            Reason::ClientMemory.text(),
            "The memory of all clients is used up, so even the connection's share is not free."
        );
    }

    #[test]
    fn a_refusal_has_a_retry_delay_if_waiting_helps() {
        let refusals = Refusals::default();
        let delay = |reason| {
            let status = refusals.refuse(reason).status("no room");
            status.get_details_retry_info().and_then(|info| info.retry_delay)
        };
        assert_eq!(delay(Reason::ConnectionMemory), Some(Duration::from_secs(1)));
        for &reason in Reason::ALL {
            assert_eq!(delay(reason), reason.retry_delay());
        }
        let status = refusals.refuse(Reason::MessageSize).status("no room");
        assert!(status.details().is_empty());
    }

    /// The identifiers in a text that stand between backquotes.
    fn quoted(text: &str) -> BTreeSet<&str> {
        let quoted = text.split('`').skip(1).step_by(2);
        quoted.flat_map(|code| code.split("::")).collect()
    }

    /// The constants and fields of `limits.rs` that bound no resource of a client: work, pauses, and sizes of one step.
    const NO_LIMITS: &str = "MAX_INCARNATION HEARTBEATS_PER_INTERVAL MAX_TURN_INPUT CALL_WORK WAITING_CALL_WORK \
        VERIFY_WORK NODE_WORK HANDLES_PER_WORK ROUTE_WORK BYTES_PER_WORK INPUT_PER_WORK COMPARISONS_PER_WORK \
        RECORD_WORK STREAMS_PER_WORK READ_BUFFER MEMORY_PER_FIELD_BYTE \
        SHORT_TURN_WORK MIN_TURN_INPUT CONNECTION_WORK TLS_CONNECTION_WORK LARGE_REPLY_SIZE SMALL_REPLY_SIZE \
        WATCH_INTERVAL RESYNC_NODES MAX_SWEEP_WAIT STREAM_KEEP_ALIVE MAX_WATCH_CHANGES SNAPSHOT_JOIN_CHANGES \
        ACCEPT_BACKOFF MAX_ACCEPT_BACKOFF IDLE_DRAIN IDLE_BYTES stream_keep_alive POLL_WORK SHARED_PASSES \
        PAUSE_PER_WATCH MAX_WATCH_PAUSE ASK_INTERVAL EXPLAIN_WORK STATS_WORK";

    /// The names of the constants, and of the fields of `Limits`, in `limits.rs`.
    fn declared(source: &str) -> impl Iterator<Item = &str> {
        source.lines().filter_map(|line| {
            let declared = line.trim_start().strip_prefix("pub ")?;
            declared
                .strip_prefix("const ")
                .unwrap_or(declared)
                .split_once(": ")
                .map(|(name, _)| name)
        })
    }

    #[test]
    fn the_table_of_limits_has_each_limit() {
        let table = include_str!("../docs/limits.md");
        let listed = quoted(table);
        let without_limit: BTreeSet<_> = NO_LIMITS.split_whitespace().collect();
        let source = include_str!("limits.rs");
        for name in declared(source) {
            assert_ne!(listed.contains(name), without_limit.contains(name), "{name}");
        }
        assert!(declared(source).any(|name| name == "CROWD") && declared(source).any(|name| name == "memory"));
    }

    /// Keeps the table in `docs/limits.md` equal to the code.
    #[test]
    fn the_table_of_limits_has_every_reason_and_only_limits_that_exist() {
        let table = include_str!("../docs/limits.md");
        let sources = [
            include_str!("limits.rs"),
            include_str!("config/mod.rs"),
            "MAX_ROUTES_PER_NODE",
        ]
        .concat();
        let reasons: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        let mut named = BTreeSet::new();
        for row in table.lines().filter(|line| line.starts_with("| ")).skip(2) {
            let columns: Vec<_> = row.trim_matches('|').split('|').collect();
            assert_eq!(columns.len(), 8, "{row}");
            named.extend(quoted(columns[6]));
            for name in columns[1..5].iter().flat_map(|column| quoted(column)) {
                assert!(
                    ["Limits", "Builder"].contains(&name) || sources.contains(name),
                    "{name}"
                );
            }
        }
        assert_eq!(named, reasons);
        // The text above the table has the share of an address.
        assert!(table.contains("max_share_per_client"));
    }

    #[test]
    fn names_are_unique_and_fit_for_a_label() {
        let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for name in names {
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{name}"
            );
        }
    }
}
