//! The change log: the latest changes, which watches read from different places.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nodetracker::NodeId;
use nodetracker_proto::v1;
use tokio::sync::watch;

use crate::limits::{WATCH_BACKLOG, WATCH_BACKLOG_SIZE};

/// Changes that are sent as one message.
#[derive(Debug)]
pub(super) struct LogEntry {
    /// The message. A watch of some nodes sends only the changes of these nodes.
    pub(super) message: v1::WatchChanges,
    /// The part and the node of each change; `None` for other changes, which every watch sends.
    pub(super) nodes: Vec<Option<(usize, NodeId)>>,
    /// Whether a resync begins, which some clients do not understand.
    pub(super) begins_resync: bool,
    /// The encoded message, for watches of all nodes.
    pub(super) encoded: Bytes,
    /// The number of the first change. The numbers of the others follow without a gap.
    pub(super) first: u64,
}

impl LogEntry {
    /// Returns the number after the last change.
    pub(super) fn end(&self) -> u64 {
        self.first + self.nodes.len() as u64
    }
}

/// The log no longer has the changes at a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LostPlace;

/// Entries without a gap, up to the latest change. A place is the number of the next change to read.
#[derive(Debug)]
pub(super) struct ChangeLog {
    entries: Mutex<Entries>,
    /// The number of the next change, for watches that wait for it.
    next: watch::Sender<u64>,
    capacity: Capacity,
}

/// How many changes the log keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capacity {
    pub(super) changes: usize,
    /// Bytes of the encoded messages.
    pub(super) bytes: usize,
}

#[derive(Debug)]
struct Entries {
    kept: VecDeque<Arc<LogEntry>>,
    /// Bytes of the encoded messages in `kept`.
    bytes: usize,
    /// The number of the next change. Places before the first kept entry are lost. If no entry is kept, all places
    /// before this number are lost.
    next: u64,
}

impl Default for ChangeLog {
    fn default() -> Self {
        Self::with_capacity(Capacity {
            changes: WATCH_BACKLOG,
            bytes: WATCH_BACKLOG_SIZE,
        })
    }
}

impl ChangeLog {
    pub(super) fn with_capacity(capacity: Capacity) -> Self {
        Self {
            entries: Mutex::new(Entries {
                kept: VecDeque::new(),
                bytes: 0,
                next: 1,
            }),
            next: watch::Sender::new(1),
            capacity,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // No critical section here leaves the data half changed.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of the next change, which is the place of a watch that begins now.
    pub(super) fn next(&self) -> u64 {
        self.lock().next
    }

    /// Appends an entry, whose first change has the next number. Wakes no watch: [`publish`](Self::publish) does. Only
    /// the tailer calls this.
    pub(super) fn push(&self, entry: LogEntry) {
        let next = entry.end();
        let mut entries = self.lock();
        debug_assert_eq!(entry.first, entries.next);
        entries.next = next;
        entries.bytes += entry.encoded.len();
        entries.kept.push_back(Arc::new(entry));
        let mut dropped = Vec::new();
        while let Some(oldest) = entries.kept.front()
            && (next - oldest.first > self.capacity.changes as u64 || entries.bytes > self.capacity.bytes)
        {
            entries.bytes -= oldest.encoded.len();
            dropped.extend(entries.kept.pop_front());
        }
        drop(entries);
        // Not under the lock, for which the watches of all workers wait: an entry may have a thousand changes.
        drop(dropped);
    }

    /// Wakes the watches that wait, if there are changes since the last call. Only the tailer calls this.
    pub(super) fn publish(&self) {
        if self.has_unpublished() {
            self.next.send_replace(self.next());
        }
    }

    /// Reports whether there are changes since the last call of [`publish`](Self::publish).
    pub(super) fn has_unpublished(&self) -> bool {
        *self.next.borrow() != self.next()
    }

    /// Drops all entries and makes every place lost. The tailer calls this when it stops, because later changes do not
    /// reach the log.
    pub(super) fn invalidate(&self) {
        let mut entries = self.lock();
        let dropped = mem::take(&mut entries.kept);
        entries.bytes = 0;
        // No change has the skipped number, so a watch that waits for this number has lost its place, too.
        entries.next += 1;
        let next = entries.next;
        drop(entries);
        drop(dropped);
        self.next.send_replace(next);
    }

    /// Returns the entry that has the change of a place, or `None` if the change is still to come.
    pub(super) fn entry_at(&self, place: u64) -> Result<Option<Arc<LogEntry>>, LostPlace> {
        let entries = self.lock();
        if place == entries.next {
            return Ok(None);
        }
        let after = entries.kept.partition_point(|entry| entry.first <= place);
        let entry = after.checked_sub(1).and_then(|at| entries.kept.get(at));
        match entry.filter(|entry| place < entry.end()) {
            Some(entry) => Ok(Some(Arc::clone(entry))),
            None => Err(LostPlace),
        }
    }

    /// Whether the log has every change from a place on.
    pub(super) fn has(&self, place: u64) -> bool {
        self.entry_at(place).is_ok()
    }

    /// Returns a receiver of the number of the next change. To wait for the change of a place, wait for a greater
    /// number. The sender may lag behind the log, so look into the log first.
    ///
    /// A watch keeps its receiver: to subscribe for each wait would write to memory that the watches of all workers
    /// share.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;

    const CAPACITY: Capacity = Capacity {
        changes: 10,
        bytes: 100,
    };

    fn entry(first: u64, len: usize) -> LogEntry {
        entry_of(first, len, 0)
    }

    fn entry_of(first: u64, len: usize, bytes: usize) -> LogEntry {
        LogEntry {
            message: v1::WatchChanges::default(),
            nodes: vec![None; len],
            begins_resync: false,
            encoded: vec![0; bytes].into(),
            first,
        }
    }

    fn at(log: &ChangeLog, place: u64) -> Result<Option<u64>, LostPlace> {
        log.entry_at(place).map(|entry| entry.map(|entry| entry.first))
    }

    #[test]
    fn places_are_good_until_their_changes_are_dropped() {
        let log = ChangeLog::with_capacity(CAPACITY);
        assert_eq!((log.next(), at(&log, 1)), (1, Ok(None)));
        log.push(entry(1, 4));
        log.push(entry(5, 6));
        assert_eq!(
            [1, 5, 11].map(|place| at(&log, place)),
            [Ok(Some(1)), Ok(Some(5)), Ok(None)]
        );
        log.push(entry(11, 1));
        assert_eq!(
            [1, 4, 5, 11, 13].map(|place| at(&log, place)),
            [
                Err(LostPlace),
                Err(LostPlace),
                Ok(Some(5)),
                Ok(Some(11)),
                Err(LostPlace)
            ]
        );
        // A watch of some nodes may resume in the middle of an entry.
        assert_eq!([6, 10].map(|place| at(&log, place)), [Ok(Some(5)), Ok(Some(5))]);
        // An entry over the capacity is dropped with the next push; only a watch that waits for it reads it.
        log.push(entry(12, 20));
        assert_eq!(
            [11, 12, 32].map(|place| at(&log, place)),
            [Err(LostPlace), Err(LostPlace), Ok(None)]
        );
        log.push(entry(32, 1));
        assert_eq!(at(&log, 32), Ok(Some(32)));
    }

    #[test]
    fn large_changes_are_dropped_earlier() {
        let log = ChangeLog::with_capacity(CAPACITY);
        log.push(entry_of(1, 1, 40));
        log.push(entry_of(2, 1, 60));
        assert_eq!([1, 2].map(|place| at(&log, place)), [Ok(Some(1)), Ok(Some(2))]);
        log.push(entry_of(3, 1, 1));
        assert_eq!([1, 2].map(|place| at(&log, place)), [Err(LostPlace), Ok(Some(2))]);
        log.push(entry_of(4, 1, 101));
        assert_eq!(
            [3, 4, 5].map(|place| at(&log, place)),
            [Err(LostPlace), Err(LostPlace), Ok(None)]
        );
        log.push(entry_of(5, 1, 100));
        assert_eq!(at(&log, 5), Ok(Some(5)));
        log.invalidate();
        log.push(entry_of(7, 1, 100));
        assert_eq!(at(&log, 7), Ok(Some(7)));
    }

    /// Bytes that need the log's lock when they are dropped.
    struct NeedsLog(Weak<ChangeLog>);

    impl AsRef<[u8]> for NeedsLog {
        fn as_ref(&self) -> &[u8] {
            &[0; 60]
        }
    }

    impl Drop for NeedsLog {
        fn drop(&mut self) {
            if let Some(log) = self.0.upgrade() {
                assert!(log.entries.try_lock().is_ok(), "the lock is held");
            }
        }
    }

    #[test]
    fn changes_are_freed_without_the_lock() {
        let log = Arc::new(ChangeLog::with_capacity(CAPACITY));
        for first in 1..4 {
            log.push(LogEntry {
                encoded: Bytes::from_owner(NeedsLog(Arc::downgrade(&log))),
                ..entry(first, 1)
            });
        }
        assert_eq!([2, 3].map(|place| at(&log, place)), [Err(LostPlace), Ok(Some(3))]);
        log.invalidate();
    }

    #[test]
    fn when_changes_are_missed_every_place_is_lost() {
        let log = ChangeLog::with_capacity(CAPACITY);
        log.push(entry(1, 4));
        let waiting = log.next();
        log.invalidate();
        assert_eq!(
            [1, waiting].map(|place| at(&log, place)),
            [Err(LostPlace), Err(LostPlace)]
        );
        let place = log.next();
        assert_eq!(at(&log, place), Ok(None));
        log.push(entry(place, 2));
        assert_eq!(at(&log, place), Ok(Some(place)));
        assert_eq!(at(&log, waiting), Err(LostPlace));
    }
}
