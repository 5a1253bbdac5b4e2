//! Resyncs: the tailer sends a part of the table again, after the feed has lost changes of the part.

use std::collections::VecDeque;

use nodetracker::{Lagged, LostChanges, NodeCursor, ProxyCursor};
use nodetracker_proto::v1;
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

use crate::convert::encode;
use crate::limits::{RESYNC_NODES, RESYNC_RATE, WATCH_INTERVAL};
use crate::rpc::watch::Watches;
use crate::rpc::watch::entry::EntryBuilder;

/// Few in tests, so that small parts take several turns.
const AT_A_TIME: usize = if cfg!(test) { 2 } else { RESYNC_NODES };

/// The resyncs that are due: one at a time, at a bounded rate.
///
/// A part whose feed overflows all the time is sent again all the time, but in turns with the other parts. So the rate
/// bounds the cost, and the other changes reach the clients in between.
pub(super) struct Resyncs {
    /// The parts to send again, in the order in which their changes were lost.
    waiting: VecDeque<LostChanges>,
    current: Option<Resync>,
    /// When the rate allows the next turn.
    allowed: Instant,
    warnings: LagWarnings,
}

/// A resync that has begun.
enum Resync {
    Nodes { part: usize, from: Option<NodeCursor> },
    Proxies { from: ProxyCursor },
}

impl Resyncs {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            current: None,
            allowed: Instant::now(),
            warnings: LagWarnings::default(),
        }
    }

    /// Adds a resync of the part that has lost changes. A resync of the part that has already begun is not enough: it
    /// read some nodes before the loss.
    pub(super) fn add(&mut self, lagged: Lagged) {
        self.warnings.add(lagged);
        if !self.waiting.contains(&lagged.lost) {
            self.waiting.push_back(lagged.lost);
        }
    }

    /// When the next turn is due; `None` if there is nothing to send again.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.current.is_some() || !self.waiting.is_empty()).then_some(self.allowed)
    }

    /// Appends some nodes or proxies to the log, if a turn is due.
    pub(super) fn turn(&mut self, watches: &Watches) {
        let now = Instant::now();
        if self.due().is_none_or(|due| due > now) {
            return;
        }
        let mut size = 0;
        let current = match self.current.take() {
            Some(current) => current,
            None => {
                let Some(lost) = self.waiting.pop_front() else { return };
                // The beginning is an entry of its own. A watch whose client does not accept resyncs loses its place
                // there.
                size += resync(watches, lost, false);
                watches.resyncs.add_one();
                match lost {
                    LostChanges::OfPart(part) => Resync::Nodes { part, from: None },
                    LostChanges::OfProxies => Resync::Proxies {
                        from: ProxyCursor::default(),
                    },
                }
            }
        };
        let (sent, next) = match current {
            Resync::Nodes { part, from } => send_nodes(watches, part, from.as_ref()),
            Resync::Proxies { from } => send_proxies(watches, from),
        };
        size += sent;
        match next {
            Ok(next) => self.current = Some(next),
            Err(complete) => size += resync(watches, complete, true),
        }
        let pause = Duration::from_secs_f64(size as f64 / RESYNC_RATE as f64);
        // A turn may be late by the tailer's pause; the next turns make up for it.
        let late = now.checked_sub(WATCH_INTERVAL).unwrap_or(now);
        self.allowed = self.allowed.max(late) + pause;
    }
}

/// Appends the beginning or the completion of a resync. Returns its size.
fn resync(watches: &Watches, lost: LostChanges, is_complete: bool) -> usize {
    let mut entry = EntryBuilder::new(&watches.table, watches.log.next());
    entry.resync(lost, is_complete);
    entry.finish(watches)
}

/// Appends the next nodes of a part. Returns their size, and the rest of the resync, if there is a rest.
fn send_nodes(watches: &Watches, part: usize, from: Option<&NodeCursor>) -> (usize, Result<Resync, LostChanges>) {
    let table = &*watches.table;
    let mut size = 0;
    let mut entry = EntryBuilder::new(table, watches.log.next());
    let next = table.nodes_of_part(part, from, AT_A_TIME, |node, routes| {
        if entry.is_full() {
            let next = EntryBuilder::new(table, entry.next());
            size += std::mem::replace(&mut entry, next).finish(watches);
        }
        entry.node(node, v1::NodeChangeReason::Resync, routes);
    });
    size += entry.finish(watches);
    let rest = match next {
        Some(from) => Ok(Resync::Nodes { part, from: Some(from) }),
        None => Err(LostChanges::OfPart(part)),
    };
    (size, rest)
}

/// Appends the next proxies. Returns their size, and the rest of the resync, if there is a rest.
fn send_proxies(watches: &Watches, from: ProxyCursor) -> (usize, Result<Resync, LostChanges>) {
    let table = &*watches.table;
    let mut entry = EntryBuilder::new(table, watches.log.next());
    let page = table.proxies_page(from, AT_A_TIME);
    for (proxy, details) in page.proxies {
        entry.proxy(proxy, encode::proxy(details), v1::ProxyChangeReason::Resync);
    }
    let rest = match page.next {
        Some(from) => Ok(Resync::Proxies { from }),
        None => Err(LostChanges::OfProxies),
    };
    (entry.finish(watches), rest)
}

/// Warnings that the table changes too fast, at most one a minute.
#[derive(Default)]
struct LagWarnings {
    /// Lags since the last warning.
    pending: u64,
    last: Option<Instant>,
}

impl LagWarnings {
    fn add(&mut self, lagged: Lagged) {
        self.pending += 1;
        if self.last.is_none_or(|last| last.elapsed() >= Duration::from_secs(60)) {
            warn!(
                times = self.pending,
                "{lagged}: the watches get a part of the table again"
            );
            self.pending = 0;
            self.last = Some(Instant::now());
        }
    }
}
