//! The nodes of a proxy, as one tracker has to know them.
//!
//! Each node has a *wanted* state (up or down), which the proxy's threads set. It has a *reported* state (absent,
//! unsure or present), which the machine sets from the tracker's answers. A node whose two states differ needs a
//! request. At most one request for a node is in flight, so answers never cross. A *flush* moves the changed nodes to
//! the queues of the machine. A node that goes up, down and up again between two flushes costs one request or none.
//!
//! # How the machine finds changes
//!
//! A change puts the node's ID into a bounded queue, once. The ID of a node can be in a queue twice if the node was
//! removed meanwhile. The same is true if the node went down while its ID was in the queue of announcements. The second
//! ID then finds nothing to do. If the queue is full, a flag is set, and the next flush looks at all nodes. So a flush
//! costs the number of the changed nodes, and a burst costs one pass over the map.
//!
//! The first change after a flush reports that there is something to do. The machine collects further changes anyway.
//!
//! # Locks
//!
//! The maps are made of `scc::HashMap`s: many threads write, and a pass must not stop them.
//!
//! A call locks one bucket of the map, with up to 32 nodes, for some nanoseconds. A pass locks one bucket after the
//! other. Nothing waits for the network under a lock.

use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ahash::RandomState;
use crossbeam_queue::ArrayQueue;
use nodetracker::{NodeId, Uuid};
use scc::hash_map::Entry;

use crate::session::node_map::NodeMap;

/// The changes that the queue holds. A larger burst costs a pass over all nodes.
const QUEUE: usize = 4096;

/// The nodes of a proxy. The proxy's threads change the set; one [`Machine`](crate::session::machine::Machine) reads
/// it.
///
/// A node costs 18 bytes beside its ID, and its share of the maps' free slots. With 50,000 nodes and more, the sum is
/// up to 57 bytes at rest. While one of the maps grows, a node costs up to 64 bytes, because the map has its old and
/// its new slots. With fewer nodes, the free slots weigh more. A session has such a set, with the IDs, for each tracker
/// that it writes to. The ID of a UUID has 16 bytes. The ID of a name has 24 bytes, and its text if the text is longer.
/// `cargo test -p nodetracker-client --test session_memory -- --nocapture` prints the figures.
#[derive(Debug)]
pub struct NodeSet {
    /// A UUID as the map's key takes eight bytes less than a [`NodeId`].
    uuids: NodeMap<Uuid, Node>,
    names: NodeMap<NodeId, Node>,
    /// The number of nodes, including nodes that are down and that the tracker may still have.
    len: AtomicUsize,
    max: usize,
    /// IDs of nodes with `is_queued`, as far as there was room.
    changed: ArrayQueue<NodeId>,
    /// Whether a change found no room.
    overflowed: AtomicBool,
    /// Whether a node has changed since the last flush began.
    has_changed: AtomicBool,
    begun: Instant,
}

/// Why a node was not added: the set has its maximum of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session has its maximum of {max} nodes")]
pub struct TooManyNodes {
    /// The maximum.
    pub max: usize,
}

/// A time, in tenths of a second since the set was made. Reaches for 13 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(u32);

impl Tick {
    fn back(self, age: Duration) -> Self {
        Self(self.0.saturating_sub(tenths(age)))
    }
}

fn tenths(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis() / 100).unwrap_or(u32::MAX)
}

#[derive(Debug, Clone, Copy)]
struct Node {
    /// The route's handle, if the node is [`Reported::Present`].
    handle: u64,
    /// When the node went down; if it is up, its last sign of life.
    changed_at: Tick,
    reported: Reported,
    is_up: bool,
    /// A request with the node has no answer yet.
    is_in_flight: bool,
    /// The ID is in `changed`, or in a queue of the machine.
    is_queued: bool,
}

/// What the tracker knows of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reported {
    /// The tracker has no route.
    Absent,
    /// The tracker may have a route.
    Unsure,
    /// The tracker has a route, and the node has its handle.
    Present,
}

/// What a node needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Announce,
    Withdraw,
}

/// The result of a request for a node.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome {
    /// The tracker has a route with this handle.
    Announced(u64),
    /// The tracker has removed the route.
    Withdrawn,
    /// The tracker had no room, or the answer was lost.
    Unknown,
}

impl Node {
    /// Returns what the node needs. A node that has been silent since before `since` is not announced: its route has to
    /// expire.
    fn task(&self, since: Tick) -> Option<Task> {
        match (self.is_up, self.reported) {
            _ if self.is_in_flight => None,
            (true, Reported::Absent | Reported::Unsure) => (self.changed_at >= since).then_some(Task::Announce),
            (false, Reported::Unsure | Reported::Present) => Some(Task::Withdraw),
            (true, Reported::Present) | (false, Reported::Absent) => None,
        }
    }

    fn is_done(&self) -> bool {
        !self.is_up && self.reported == Reported::Absent && !self.is_in_flight
    }
}

/// # For the proxy
impl NodeSet {
    /// Creates an empty set for up to `max` nodes. The order of passes over the set, and so of messages, follows the
    /// seed.
    #[must_use]
    pub fn new(max: usize, seed: u64, now: Instant) -> Self {
        Self {
            uuids: NodeMap::new(seed),
            names: NodeMap::new(seed),
            len: AtomicUsize::new(0),
            max,
            changed: ArrayQueue::new(QUEUE),
            overflowed: AtomicBool::new(false),
            has_changed: AtomicBool::new(false),
            begun: now,
        }
    }

    /// Returns the number of nodes, including nodes that are down and that the tracker may still have.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether there are no nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Records that a node has a tunnel, which is a sign of life too. Returns whether the machine has something new to
    /// do; `false` also if an earlier change has reported so, and the machine has not collected the changes since.
    ///
    /// # Errors
    ///
    /// If the node is new, and the set is full. The node is not added.
    pub fn up(&self, id: &NodeId, now: Instant) -> Result<bool, TooManyNodes> {
        let now = self.tick(now);
        let raise = |node: &mut Node| {
            node.is_up = true;
            node.changed_at = now;
            // A node that is present, and was down until now, is in a queue or in flight.
            node.reported != Reported::Present && self.mark(id, node)
        };
        // Most nodes are known, and their IDs need no copy.
        if let Some(is_new) = self.update(id, raise) {
            return Ok(is_new);
        }
        match id.as_uuid() {
            Some(uuid) => self.insert(self.uuids.of(&uuid).entry_sync(uuid), id, now, raise),
            None => self.insert(self.names.of(id).entry_sync(id.clone()), id, now, raise),
        }
    }

    fn insert<K: Eq + Hash>(
        &self,
        entry: Entry<'_, K, Node, RandomState>,
        id: &NodeId,
        now: Tick,
        raise: impl FnOnce(&mut Node) -> bool,
    ) -> Result<bool, TooManyNodes> {
        let entry = match entry {
            // Another thread was faster.
            Entry::Occupied(mut entry) => return Ok(raise(entry.get_mut())),
            Entry::Vacant(entry) => entry,
        };
        if self.len.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.len.fetch_sub(1, Ordering::Relaxed);
            return Err(TooManyNodes { max: self.max });
        }
        let mut node = Node {
            handle: 0,
            changed_at: now,
            reported: Reported::Absent,
            is_up: true,
            is_in_flight: false,
            is_queued: false,
        };
        let is_new = self.mark(id, &mut node);
        entry.insert_entry(node);
        Ok(is_new)
    }

    /// Runs `act` on a node, if the set has the node.
    fn update<T>(&self, id: &NodeId, act: impl FnOnce(&mut Node) -> T) -> Option<T> {
        match id.as_uuid() {
            Some(uuid) => self.uuids.of(&uuid).update_sync(&uuid, |_, node| act(node)),
            None => self.names.of(id).update_sync(id, |_, node| act(node)),
        }
    }

    /// Records a sign of life of a node. Does nothing if the node is not up. Returns whether the machine has something
    /// new to do: usually not, because the next heartbeat has the node.
    pub fn seen(&self, id: &NodeId, now: Instant) -> bool {
        let now = self.tick(now);
        let see = |node: &mut Node| {
            if !node.is_up {
                return false;
            }
            node.changed_at = now;
            // A node that was silent may now be announced.
            node.reported != Reported::Present && self.mark(id, node)
        };
        self.update(id, see).unwrap_or(false)
    }

    /// Records that a node has no tunnel any more. Does nothing if the node is not up. Returns whether the machine has
    /// something new to do.
    pub fn down(&self, id: &NodeId, now: Instant) -> bool {
        let now = self.tick(now);
        let lower = |node: &mut Node| {
            if !node.is_up {
                return false;
            }
            node.is_up = false;
            node.changed_at = now;
            // A node that the tracker never had is removed, even if no tracker can be reached.
            !node.is_done() && self.mark(id, node)
        };
        self.with(id, lower).unwrap_or(false)
    }

    /// Queues a changed node, unless the node is queued, or in a request whose answer looks at the node anyway. The
    /// caller holds the node's lock, so a pass either sees the change, or clears `overflowed` before the change sets
    /// the flag.
    fn mark(&self, id: &NodeId, node: &mut Node) -> bool {
        // The queue of announcements has a pace, and a withdrawal must not wait there.
        let is_queued = node.is_queued && (node.is_up || node.reported != Reported::Unsure);
        if is_queued || node.is_in_flight {
            return false;
        }
        node.is_queued = self.changed.push(id.clone()).is_ok();
        if !node.is_queued {
            self.overflowed.store(true, Ordering::Relaxed);
        }
        // AcqRel: pairs with `begin_flush`. If the flag was set, a flush is to come, and finds this change.
        !self.has_changed.swap(true, Ordering::AcqRel)
    }

    fn tick(&self, now: Instant) -> Tick {
        Tick(tenths(now.saturating_duration_since(self.begun)))
    }
}

/// What a pass over all nodes does.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    /// Nodes that have been silent for longer are neither announced nor refreshed.
    pub(super) window: Duration,
    /// For how long the tracker keeps a route without a refresh. Nodes that have been down for longer are forgotten,
    /// and nodes that have been silent for longer are announced with their next sign of life.
    pub(super) lifetime: Duration,
    /// Whether no handle is valid any more.
    pub(super) discards_handles: bool,
    /// Handles that are not valid any more, in ascending order.
    pub(super) gone: &'a [u64],
    /// Where to put the handles of the nodes that a heartbeat refreshes.
    pub(super) handles: Option<&'a mut Vec<u64>>,
}

/// # For the machine
impl NodeSet {
    /// Whether nodes have changed and are not flushed.
    pub(super) fn has_changes(&self) -> bool {
        self.has_changed.load(Ordering::Relaxed) || !self.changed.is_empty() || self.overflowed.load(Ordering::Relaxed)
    }

    /// Lets the next change report that there is something to do.
    pub(super) fn begin_flush(&self) {
        // AcqRel: pairs with `mark`. The flush finds the changes that did not report.
        self.has_changed.swap(false, Ordering::AcqRel);
    }

    /// Takes a changed node off the queue. The node counts as queued until it is [taken](Self::take).
    pub(super) fn next_changed(&self) -> Option<NodeId> {
        self.changed.pop()
    }

    /// Whether some changed nodes can only be found by a [pass](Self::pass). Clears the flag.
    pub(super) fn take_overflow(&self) -> bool {
        self.overflowed.swap(false, Ordering::Relaxed)
    }

    /// Calls `queue` if a node needs something. If it needs nothing, or `queue` returns `false`, the node is not queued
    /// any more.
    pub(super) fn task(&self, id: &NodeId, window: Duration, now: Instant, queue: impl FnOnce(Task) -> bool) {
        let since = self.tick(now).back(window);
        self.with(id, |node| node.is_queued = node.task(since).is_some_and(queue));
    }

    /// Takes a queued node for a request. Returns `false` if the node does not need `task` any more.
    pub(super) fn take(&self, id: &NodeId, task: Task, window: Duration, now: Instant) -> bool {
        let since = self.tick(now).back(window);
        let take = |node: &mut Node| {
            if node.task(since) != Some(task) {
                return false;
            }
            node.is_in_flight = true;
            node.is_queued = false;
            true
        };
        self.update(id, take).unwrap_or(false)
    }

    /// Records the outcome of a request. Returns what the node needs next. If it needs something, the node counts as
    /// queued.
    pub(super) fn settle(&self, id: &NodeId, outcome: Outcome, window: Duration, now: Instant) -> Option<Task> {
        let since = self.tick(now).back(window);
        self.with(id, |node| {
            node.is_in_flight = false;
            node.reported = match outcome {
                Outcome::Announced(handle) => {
                    node.handle = handle;
                    Reported::Present
                }
                Outcome::Withdrawn => Reported::Absent,
                Outcome::Unknown => Reported::Unsure,
            };
            let task = node.task(since);
            node.is_queued = task.is_some();
            task
        })
        .flatten()
    }

    /// Runs `act` on a node, if the set has the node. Then removes the node if nothing is left to do for it.
    fn with<T>(&self, id: &NodeId, act: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let mut result = None;
        let act = |node: &mut Node| {
            result = Some(act(node));
            node.is_done()
        };
        let is_removed = match id.as_uuid() {
            Some(uuid) => self.uuids.of(&uuid).remove_if_sync(&uuid, act).is_some(),
            None => self.names.of(id).remove_if_sync(id, act).is_some(),
        };
        if is_removed {
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
        result
    }

    /// Looks at all nodes, and calls `queue` for each node that needs something. If `queue` returns `false`, the node
    /// is not queued.
    pub(super) fn pass(&self, pass: Pass<'_>, now: Instant, mut queue: impl FnMut(NodeId, Task) -> bool) {
        let Pass {
            window,
            lifetime,
            discards_handles,
            gone,
            mut handles,
        } = pass;
        let since = self.tick(now).back(window);
        let forgotten = self.tick(now).back(lifetime);
        let mut keep = |id: &dyn Fn() -> NodeId, node: &mut Node| {
            // If the route may have expired, the next sign of life announces the node, and no heartbeat has to find
            // out.
            let is_expired = node.changed_at < forgotten;
            let is_gone = || gone.binary_search(&node.handle).is_ok();
            if node.reported == Reported::Present && (discards_handles || is_expired || is_gone()) {
                node.reported = Reported::Unsure;
            }
            if node.is_done() || (!node.is_up && !node.is_in_flight && is_expired) {
                self.len.fetch_sub(1, Ordering::Relaxed);
                return false;
            }
            if let Some(handles) = &mut handles
                && node.is_up
                && node.reported == Reported::Present
                && node.changed_at >= since
            {
                handles.push(node.handle);
            }
            if !node.is_queued
                && let Some(task) = node.task(since)
            {
                node.is_queued = queue(id(), task);
            }
            true
        };
        for map in self.uuids.maps() {
            map.retain_sync(|uuid, node| keep(&|| (*uuid).into(), node));
        }
        for map in self.names.maps() {
            map.retain_sync(|name, node| keep(&|| name.clone(), node));
        }
    }
}
