//! The latest changes, for watches that are at different places in them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nodetracker::NodeId;
use nodetracker_proto::v1;
use tokio::sync::watch;

use crate::limits::{WATCH_BACKLOG, WATCH_BACKLOG_SIZE};

/// Changes that came together: one message.
#[derive(Debug)]
pub(super) struct Batch {
    /// The message, for watches of some nodes to take their part of.
    pub(super) message: v1::WatchChanges,
    /// The node of each change that is one of a node.
    pub(super) nodes: Vec<Option<NodeId>>,
    /// The message, encoded, for watches of everything.
    pub(super) encoded: Bytes,
    /// The number of the first change; the others follow one by one.
    pub(super) first: u64,
}

impl Batch {
    /// The number that comes after the last change.
    pub(super) fn end(&self) -> u64 {
        self.first + self.nodes.len() as u64
    }
}

/// A place is no longer in the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LostPlace;

/// Batches, without a gap, up to the latest change.
#[derive(Debug)]
pub(super) struct Log {
    batches: Mutex<Batches>,
    /// The number of the next change, for those who wait for it.
    next: watch::Sender<u64>,
    /// What is kept.
    capacity: Capacity,
}

/// How much of the past is kept.
#[derive(Debug, Clone, Copy)]
struct Capacity {
    changes: usize,
    /// Of the encoded messages.
    bytes: usize,
}

#[derive(Debug)]
struct Batches {
    kept: VecDeque<Arc<Batch>>,
    /// Of the encoded messages that are kept.
    bytes: usize,
    /// The number of the next change. Places before the first batch that is kept are lost; so are all before this one, where
    /// none is kept.
    next: u64,
}

impl Default for Log {
    fn default() -> Self {
        Self::with_capacity(Capacity {
            changes: WATCH_BACKLOG,
            bytes: WATCH_BACKLOG_SIZE,
        })
    }
}

impl Log {
    fn with_capacity(capacity: Capacity) -> Self {
        Self {
            batches: Mutex::new(Batches {
                kept: VecDeque::new(),
                bytes: 0,
                next: 1,
            }),
            next: watch::Sender::new(1),
            capacity,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Batches> {
        // What is done under the lock leaves nothing half done.
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the next change: the place of a watch that begins now.
    pub(super) fn next(&self) -> u64 {
        self.lock().next
    }

    /// Appends a batch, which begins with the number of the next change. Only the follower does.
    pub(super) fn push(&self, batch: Batch) {
        let next = batch.end();
        let mut batches = self.lock();
        debug_assert_eq!(batch.first, batches.next);
        batches.next = next;
        batches.bytes += batch.encoded.len();
        batches.kept.push_back(Arc::new(batch));
        while let Some(oldest) = batches.kept.front()
            && (next - oldest.first > self.capacity.changes as u64 || batches.bytes > self.capacity.bytes)
        {
            batches.bytes -= oldest.encoded.len();
            batches.kept.pop_front();
        }
        drop(batches);
        self.next.send_replace(next);
    }

    /// Takes every place away, since there are changes that do not come here: the table was too fast, or nobody watched. The
    /// memory goes too.
    pub(super) fn lose_all(&self) {
        let mut batches = self.lock();
        batches.kept = VecDeque::new();
        batches.bytes = 0;
        // A number that no change has: whoever waits for it has lost its place too.
        batches.next += 1;
        let next = batches.next;
        drop(batches);
        self.next.send_replace(next);
    }

    /// The batch at a place, where there is one yet.
    pub(super) fn at(&self, place: u64) -> Result<Option<Arc<Batch>>, LostPlace> {
        let batches = self.lock();
        if place == batches.next {
            return Ok(None);
        }
        // A place is the end of a batch, or where a watch began, which is one too.
        match batches.kept.binary_search_by_key(&place, |batch| batch.first) {
            Ok(at) => Ok(Some(Arc::clone(&batches.kept[at]))),
            Err(_) => Err(LostPlace),
        }
    }

    /// Waits until there is something at a place that is not lost, or it is.
    pub(super) async fn changed(&self, place: u64) {
        // The sender lives as long as `self`. It may not have told of a change yet that is in the log, and was read there.
        let _ = self.next.subscribe().wait_for(|next| *next > place).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Capacity = Capacity {
        changes: 10,
        bytes: 100,
    };

    fn batch(first: u64, len: usize) -> Batch {
        batch_of(first, len, 0)
    }

    fn batch_of(first: u64, len: usize, bytes: usize) -> Batch {
        Batch {
            message: v1::WatchChanges::default(),
            nodes: vec![None; len],
            encoded: vec![0; bytes].into(),
            first,
        }
    }

    fn at(log: &Log, place: u64) -> Result<Option<u64>, LostPlace> {
        log.at(place).map(|batch| batch.map(|batch| batch.first))
    }

    #[test]
    fn places_are_good_until_their_changes_are_dropped() {
        let log = Log::with_capacity(CAPACITY);
        assert_eq!((log.next(), at(&log, 1)), (1, Ok(None)));
        log.push(batch(1, 4));
        log.push(batch(5, 6));
        assert_eq!(
            [1, 5, 11].map(|place| at(&log, place)),
            [Ok(Some(1)), Ok(Some(5)), Ok(None)]
        );
        log.push(batch(11, 1));
        assert_eq!(
            [1, 5, 11].map(|place| at(&log, place)),
            [Err(LostPlace), Ok(Some(5)), Ok(Some(11))]
        );
        // More than there is room for: only who waits for it can have it, and it is gone with the next.
        log.push(batch(12, 20));
        assert_eq!(
            [11, 12, 32].map(|place| at(&log, place)),
            [Err(LostPlace), Err(LostPlace), Ok(None)]
        );
        log.push(batch(32, 1));
        assert_eq!(at(&log, 32), Ok(Some(32)));
    }

    #[test]
    fn large_changes_are_dropped_earlier() {
        let log = Log::with_capacity(CAPACITY);
        log.push(batch_of(1, 1, 40));
        log.push(batch_of(2, 1, 60));
        assert_eq!([1, 2].map(|place| at(&log, place)), [Ok(Some(1)), Ok(Some(2))]);
        log.push(batch_of(3, 1, 1));
        assert_eq!([1, 2].map(|place| at(&log, place)), [Err(LostPlace), Ok(Some(2))]);
        log.push(batch_of(4, 1, 101));
        assert_eq!(
            [3, 4, 5].map(|place| at(&log, place)),
            [Err(LostPlace), Err(LostPlace), Ok(None)]
        );
        log.push(batch_of(5, 1, 100));
        assert_eq!(at(&log, 5), Ok(Some(5)));
        log.lose_all();
        log.push(batch_of(7, 1, 100));
        assert_eq!(at(&log, 7), Ok(Some(7)));
    }

    #[test]
    fn when_changes_were_lost_every_place_is() {
        let log = Log::with_capacity(CAPACITY);
        log.push(batch(1, 4));
        let waiting = log.next();
        log.lose_all();
        assert_eq!(
            [1, waiting].map(|place| at(&log, place)),
            [Err(LostPlace), Err(LostPlace)]
        );
        let place = log.next();
        assert_eq!(at(&log, place), Ok(None));
        log.push(batch(place, 2));
        assert_eq!(at(&log, place), Ok(Some(place)));
        assert_eq!(at(&log, waiting), Err(LostPlace));
    }
}
