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
//! [`REPORT_INTERVAL`], with the count of the refusals since the line before. A refusal within the interval waits for
//! [`report`], which writes the line when the interval has passed, and for the stop of the server. So the counts of the
//! lines add up to the refusals. For some reasons, each client has lines of its own: an operator has to find every
//! client whose certificate is wrong. A flood of refusals writes at most [`MAX_NAMED`] lines for a reason within the
//! interval, and for most reasons a single line.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::field::display;
use tracing::{debug, info};

use crate::client_key::ClientKey;
use crate::log::{SELF_LIMITED, peer};
use crate::named::named;

/// How often the log has a line for one reason, at the level info.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// How often [`report`] looks for refusals whose line is due.
const REPORT_PAUSE: Duration = Duration::from_secs(1);

/// The most clients that have lines of their own for one reason within [`REPORT_INTERVAL`]. Further clients share a
/// line.
const MAX_NAMED: usize = 64;

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
        /// A TLS handshake failed: the client does not trust the server's certificate, or speaks no TLS that the server
        /// speaks.
        TlsHandshake = "tls_handshake",
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
            Reason::Denied | Reason::ClientCertificate | Reason::TlsHandshake => None,
        }
    }

    /// Reports whether each client has lines of its own. An operator has to correct the client, or the server for this
    /// client.
    fn names_each_client(self) -> bool {
        matches!(self, Reason::Denied | Reason::ClientCertificate | Reason::TlsHandshake)
    }
}

/// The refusals of one server.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    counts: [AtomicU64; Reason::ALL.len()],
    reports: [Mutex<Report>; Reason::ALL.len()],
    /// Refusals during which another thread had the lock of the report. The next line of all clients counts them.
    missed: [AtomicU64; Reason::ALL.len()],
}

/// The refusals of one reason that the log has to report: by client, or under `None` for all clients without lines of
/// their own.
#[derive(Debug, Default)]
struct Report(HashMap<Option<ClientKey>, Pending>);

/// Refusals that no line counts yet.
#[derive(Debug)]
struct Pending {
    count: u64,
    /// When the next line may be written.
    due: Instant,
    last: Refused,
}

/// One refusal.
#[derive(Debug, Default)]
struct Refused {
    peer: Option<SocketAddr>,
    error: Option<String>,
}

/// A line that is due.
#[derive(Debug)]
struct Line {
    reason: Reason,
    count: u64,
    last: Refused,
}

impl Report {
    /// Returns the refusals of a client that no line counts, or those of all clients without lines of their own.
    fn pending(&mut self, client: Option<ClientKey>, now: Instant) -> &mut Pending {
        let client = client.filter(|_| self.0.len() < MAX_NAMED || self.0.contains_key(&client));
        self.0.entry(client).or_insert_with(|| Pending {
            count: 0,
            due: now,
            last: Refused::default(),
        })
    }

    /// Takes the counts that are due, or all counts. Forgets clients that were not refused within the interval.
    fn take(&mut self, reason: Reason, now: Instant, all: bool) -> impl Iterator<Item = Line> {
        self.0.retain(|_, pending| pending.count > 0 || now < pending.due);
        let due = self.0.values_mut();
        let due = due.filter(move |pending| pending.count > 0 && (all || now >= pending.due));
        due.map(move |pending| Line {
            reason,
            last: std::mem::take(&mut pending.last),
            count: pending.take(now),
        })
    }
}

impl Pending {
    fn take(&mut self, now: Instant) -> u64 {
        self.due = now + REPORT_INTERVAL;
        std::mem::take(&mut self.count)
    }
}

impl Refusals {
    /// Counts and logs a refusal of the [current client](peer::current).
    pub(crate) fn refuse(&self, reason: Reason) -> CountedRefusal {
        self.refuse_for(reason, None)
    }

    /// As [`refuse`](Self::refuse). The lines of the log have the error.
    pub(crate) fn refuse_for(&self, reason: Reason, error: Option<&dyn Display>) -> CountedRefusal {
        let client = peer::current().map(|peer| ClientKey::from(peer.ip()));
        self.refuse_client(reason, client, error, Instant::now())
    }

    /// As [`refuse_for`](Self::refuse_for), for a client with a certificate. The client has lines of its own, and not
    /// its address.
    pub(crate) fn refuse_certified(&self, reason: Reason, client: ClientKey, error: &dyn Display) -> CountedRefusal {
        self.refuse_client(reason, Some(client), Some(error), Instant::now())
    }

    fn refuse_client(
        &self,
        reason: Reason,
        client: Option<ClientKey>,
        error: Option<&dyn Display>,
        now: Instant,
    ) -> CountedRefusal {
        let number = reason as usize;
        // Relaxed, as in `counts`: the counters guard no data.
        self.counts[number].fetch_add(1, Ordering::Relaxed);
        let client = client.filter(|_| reason.names_each_client());
        // A flood of refusals must not make the workers wait for each other.
        let report = match self.reports[number].try_lock() {
            Ok(report) => Some(report),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let due = match report {
            Some(mut report) => {
                let missed = match client {
                    None => self.missed[number].swap(0, Ordering::Relaxed),
                    Some(_) => 0,
                };
                let pending = report.pending(client, now);
                pending.count += 1 + missed;
                if now < pending.due {
                    pending.last = Refused {
                        peer: peer::current(),
                        error: error.map(ToString::to_string),
                    };
                    None
                } else {
                    Some(pending.take(now))
                }
            }
            None => {
                self.missed[number].fetch_add(1, Ordering::Relaxed);
                None
            }
        };
        let (name, text) = (reason.name(), reason.text());
        let error = error.map(display);
        match due {
            Some(count) => {
                info!(target: SELF_LIMITED, reason = name, count, peer = peer::field(), error, "refused: {text}")
            }
            // The span of the connection names the client.
            None => debug!(target: SELF_LIMITED, reason = name, error, "refused: {text}"),
        }
        CountedRefusal { reason }
    }

    /// Logs the refusals whose lines are due, or all that no line has counted.
    fn log_pending(&self, now: Instant, all: bool) {
        for (&reason, report) in Reason::ALL.iter().zip(&self.reports) {
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            let missed = self.missed[reason as usize].swap(0, Ordering::Relaxed);
            if missed > 0 {
                report.pending(None, now).count += missed;
            }
            let lines: Vec<_> = report.take(reason, now, all).collect();
            drop(report);
            for Line { reason, count, last } in lines {
                let (peer, error) = (last.peer.map(display), last.error.map(display));
                let (name, text) = (reason.name(), reason.text());
                info!(target: SELF_LIMITED, reason = name, count, peer, error, "refused: {text}");
            }
        }
    }

    /// Returns a guard that logs the refusals which no line has counted, when it is dropped.
    pub(crate) fn report_rest(&self) -> ReportRest<'_> {
        ReportRest(self)
    }

    /// Returns how often each reason occurred.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL
            .iter()
            .zip(&self.counts)
            .map(|(&reason, count)| (reason, count.load(Ordering::Relaxed)))
    }
}

/// Logs refusals when their lines are due, without end.
pub(crate) async fn report(refusals: &Refusals) -> Infallible {
    loop {
        sleep(REPORT_PAUSE).await;
        refusals.log_pending(Instant::now(), false);
    }
}

/// Logs the refusals that no line has counted, when it is dropped.
pub(crate) struct ReportRest<'r>(&'r Refusals);

impl Drop for ReportRest<'_> {
    fn drop(&mut self) {
        self.0.log_pending(Instant::now(), true);
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
    use std::io::{self, Write};
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
        let lines = logged(|| refusals.log_pending(Instant::now(), false));
        assert!(lines.len() == 1 && lines[0].contains(" count=1"), "{lines:?}");
        thread.join().expect("no panic").expect("the receiver is there");
        assert_eq!(refusals.counts().map(|(_, count)| count).sum::<u64>(), 1);
    }

    /// The log of a test.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns the lines at the level info and above that a function logs.
    fn logged(work: impl FnOnce()) -> Vec<String> {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(lines, work);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn client(number: u8) -> ClientKey {
        ClientKey::Certified(number.into())
    }

    fn peer_of(number: u8) -> Option<SocketAddr> {
        Some(SocketAddr::from(([10, 0, 0, number], 1)))
    }

    #[test]
    fn every_refusal_is_in_a_line_within_the_interval() {
        let refusals = Refusals::default();
        let begin = Instant::now();
        let refuse = |peer: u8, error: &'static str, at: Instant| {
            peer::with_peer(peer_of(peer), || {
                refusals.refuse_client(Reason::MessageSize, None, Some(&error), at);
            });
        };
        let line = |count: u64, rest: &str| {
            format!(" INFO refused: A request message is too large. reason=\"message_size\" count={count} {rest}")
        };
        let first = logged(|| {
            refuse(1, "first", begin);
            for second in 1..10 {
                refuse(2, "second", begin + Duration::from_secs(second));
                refusals.log_pending(begin + Duration::from_secs(second), false);
            }
        });
        assert_eq!(first, [line(1, "peer=10.0.0.1:1 error=first")]);
        // No later refusal is needed.
        let second = logged(|| refusals.log_pending(begin + REPORT_INTERVAL, false));
        assert_eq!(second, [line(9, "peer=10.0.0.2:1 error=second")]);
        let third = logged(|| {
            refuse(3, "third", begin + REPORT_INTERVAL * 3 / 2);
            refusals.log_pending(begin + REPORT_INTERVAL * 3 / 2, false);
        });
        assert_eq!(third, [""; 0]);
        let rest = logged(|| drop(refusals.report_rest()));
        assert_eq!(rest, [line(1, "peer=10.0.0.3:1 error=third")]);
        assert_eq!(logged(|| drop(refusals.report_rest())), [""; 0]);
        assert!(refusals.reports[Reason::MessageSize as usize].lock().unwrap().0.len() <= 1);
    }

    #[test]
    fn each_client_with_a_wrong_certificate_is_named_up_to_a_limit() {
        const CLIENTS: u8 = MAX_NAMED as u8 + 10;
        let refusals = Refusals::default();
        let begin = Instant::now();
        let refuse = |number: u8, at| {
            peer::with_peer(peer_of(number), || {
                refusals.refuse_client(
                    Reason::Denied,
                    Some(client(number)),
                    Some(&format_args!("client {number}")),
                    at,
                );
            });
        };
        let both = logged(|| {
            for _ in 0..10 {
                refuse(1, begin);
                refuse(2, begin);
            }
        });
        assert_eq!(both.len(), 2, "{both:?}");
        assert!(both[0].ends_with("count=1 peer=10.0.0.1:1 error=client 1"), "{both:?}");
        assert!(both[1].ends_with("count=1 peer=10.0.0.2:1 error=client 2"), "{both:?}");
        let mut later = logged(|| refusals.log_pending(begin + REPORT_INTERVAL, false));
        later.sort();
        assert!(
            later[0].ends_with("count=9 peer=10.0.0.1:1 error=client 1"),
            "{later:?}"
        );
        assert!(
            later[1].ends_with("count=9 peer=10.0.0.2:1 error=client 2"),
            "{later:?}"
        );

        // Then the two are forgotten, and a crowd has few lines that count everything.
        let begin = begin + 2 * REPORT_INTERVAL;
        let mut crowd = logged(|| {
            refusals.log_pending(begin, false);
            for _ in 0..3 {
                (0..CLIENTS).for_each(|number| refuse(number, begin));
            }
        });
        assert_eq!(crowd.len(), MAX_NAMED + 1);
        crowd.extend(logged(|| refusals.log_pending(begin + REPORT_INTERVAL, false)));
        assert_eq!(crowd.len(), 2 * (MAX_NAMED + 1));
        let counts = crowd.iter().map(|line| {
            let count = line.split_once(" count=").unwrap().1.split(' ').next().unwrap();
            count.parse::<u32>().unwrap()
        });
        assert_eq!(counts.sum::<u32>(), 3 * u32::from(CLIENTS));
        refusals.log_pending(begin + 3 * REPORT_INTERVAL, false);
        assert_eq!(refusals.reports[Reason::Denied as usize].lock().unwrap().0.len(), 0);
    }

    #[test]
    fn the_reason_of_each_refusal_is_in_the_log() {
        for &reason in Reason::ALL {
            let refusals = Refusals::default();
            let lines = logged(|| {
                peer::with_peer(peer_of(1), || {
                    refusals.refuse_for(reason, Some(&"the error"));
                });
            });
            let (name, text) = (reason.name(), reason.text());
            let line = format!(" INFO refused: {text} reason=\"{name}\" count=1 peer=10.0.0.1:1 error=the error");
            assert_eq!(lines, [line]);
        }
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
        RECORD_WORK STREAMS_PER_WORK READ_BUFFER SMALL_BLOCK FIELD_INPUT \
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
