//! Iterates over the records of an index.

use std::ops::Range;

use crate::layout::SLOTS_PER_BUCKET;
use crate::shard::index::{EMPTY, FROZEN, Index, number_in};
use crate::shard::probe::{PROBED_BUCKETS, following};
use crate::shard::published::Published;
use crate::sync::Ordering;

impl<'g> Index<'g> {
    /// The record numbers in the slots, with their records: all of them if the index is frozen.
    pub(crate) fn occupied(self) -> Occupied<'g> {
        self.occupied_in(0..self.shape().buckets)
    }

    /// [`occupied`](Self::occupied) for some buckets.
    pub(crate) fn occupied_in(self, buckets: Range<u32>) -> Occupied<'g> {
        let mut occupied = Occupied {
            index: self,
            next: buckets.start,
            end: buckets.end,
            here: [None; SLOTS_PER_BUCKET as usize],
            ahead: [None; SLOTS_PER_BUCKET as usize],
            at: SLOTS_PER_BUCKET as usize,
        };
        occupied.load_ahead();
        occupied
    }

    /// The records of one bucket. Starts loading them.
    pub(crate) fn records_of(self, bucket: u32) -> Records<'g> {
        let slots = self.bucket(bucket);
        std::array::from_fn(|slot| {
            // Acquire: as in `find`.
            match slots[slot].load(Ordering::Acquire) {
                EMPTY | FROZEN => None,
                value => {
                    let record = self.record_in(value);
                    record.prefetch();
                    Some((number_in(value), record))
                }
            }
        })
    }

    /// Calls `each` with the number and the record of each key with these home buckets, and of some other keys. Starts
    /// loading the records. Returns how many buckets were read, and the end of the home buckets whose keys are
    /// complete: it may be beyond `homes`.
    ///
    /// Keys that were displaced from the last of the buckets are in the buckets after it, as long as these are full. So
    /// at a bucket that is not full, all keys of the home buckets up to that bucket have been met.
    pub(crate) fn with_homes(self, homes: Range<u32>, mut each: impl FnMut(u32, Published<'g>)) -> (u32, u32) {
        let buckets = self.header().shape.buckets;
        let count = homes.len() as u32;
        let most = buckets.min(count + PROBED_BUCKETS - 1);
        let mut bucket = homes.start;
        let mut looked = 0;
        let mut is_full = false;
        while looked < count || looked < most && is_full {
            is_full = true;
            for slot in self.bucket(bucket) {
                // Acquire: as in `find`.
                match slot.load(Ordering::Acquire) {
                    EMPTY | FROZEN => is_full = false,
                    value => {
                        let record = self.record_in(value);
                        record.prefetch();
                        each(number_in(value), record);
                    }
                }
            }
            looked += 1;
            bucket = following(bucket, buckets);
        }
        let complete = if is_full { homes.end } else { homes.start + looked };
        (looked, complete.min(buckets))
    }
}

/// The record numbers in the slots of one bucket, with their records; `None` for a slot without a record.
pub(crate) type Records<'g> = [Option<(u32, Published<'g>)>; SLOTS_PER_BUCKET as usize];

/// The iterator of [`Index::occupied`]. The records are scattered in memory, so it prefetches the records of the next
/// bucket.
pub(crate) struct Occupied<'g> {
    index: Index<'g>,
    /// The bucket after the bucket of `ahead`.
    next: u32,
    /// The bucket after the last bucket to read.
    end: u32,
    here: Records<'g>,
    ahead: Records<'g>,
    /// The position in `here`.
    at: usize,
}

impl Occupied<'_> {
    fn load_ahead(&mut self) {
        if self.next < self.end {
            self.ahead = self.index.records_of(self.next);
        }
        self.next += 1;
    }

    /// The bucket of the record that was returned last, and the record's slot there.
    pub(crate) fn position(&self) -> (u32, usize) {
        (self.next - 2, self.at - 1)
    }
}

impl<'g> Iterator for Occupied<'g> {
    type Item = (u32, Published<'g>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            while let Some(found) = self.here.get(self.at) {
                self.at += 1;
                if found.is_some() {
                    return *found;
                }
            }
            if self.next > self.end {
                return None;
            }
            (self.here, self.at) = (self.ahead, 0);
            self.load_ahead();
        }
    }
}
