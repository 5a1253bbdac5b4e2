//! A shard's records: where they are, and which of them are free.
//!
//! Successive indexes share the slab. Its segment table is in the index (`index.rs`), so that a look-up gets from the
//! root to a record without another dependent load. The slab has the free list, the first number never used, and the
//! counts.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::liveness::Holder;
use crate::mem::prefetch::prefetch;
use crate::mem::segments::Location;
use crate::shard::index::Index;
use crate::shard::key::Key;
use crate::shard::published::Published;
#[cfg(loom)]
use crate::sync::epoch::PlainData;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering, failpoint};
use crate::word::Word;

/// One key and its routes; 24 bytes.
#[repr(C)]
pub(crate) struct Record {
    key: [AtomicU64; 2],
    pub(crate) word: AtomicU64,
}

impl Record {
    /// The key's 128 bits. The caller got here by an Acquire load that follows the write of the key. The load was of
    /// the slot (invariant 2), of the root, or of a word that is LIVE or SPILL (invariant 3).
    #[inline]
    pub(crate) fn key(&self) -> [u64; 2] {
        // Relaxed: ordered by the load that led here.
        [self.key[0].load(Ordering::Relaxed), self.key[1].load(Ordering::Relaxed)]
    }

    /// Prefetches both ends: a record may span two cache lines.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch(&raw const self.key);
        prefetch(&raw const self.word);
    }

    /// Whether the second half of the key may be an address: on the free list it is zero.
    pub(crate) fn owns_key(&self) -> bool {
        self.key()[1] != 0
    }

    fn set_key(&self, key: [u64; 2]) {
        // Relaxed: the record is private; publishing it (Release) orders these.
        self.key[0].store(key[0], Ordering::Relaxed);
        self.key[1].store(key[1], Ordering::Relaxed);
    }

    /// Gives a private record its key and word.
    pub(crate) fn fill(&self, key: [u64; 2], word: Word) {
        self.set_key(key);
        // Relaxed: the root's CAS publishes it.
        self.word.store(word.0, Ordering::Relaxed);
    }

    /// Makes the word final, and returns it.
    pub(crate) fn freeze(&self) -> Word {
        // AcqRel: as in `compare_exchange`. A change of the word precedes this freeze, or meets a frozen word.
        Word(self.word.fetch_or(Word(0).frozen().0, Ordering::AcqRel))
    }

    #[inline]
    pub(crate) fn load(&self) -> Word {
        // Acquire: pairs with the Release half of the CAS that wrote the word. So the whole list of a SPILL word is
        // visible, and the key of a reused record that is LIVE.
        Word(self.word.load(Ordering::Acquire))
    }

    #[inline]
    pub(crate) fn compare_exchange(&self, old: Word, new: Word) -> Result<(), Word> {
        // AcqRel: Release for `load` to pair with; Acquire so that each owner passes on the writes of the owners
        // before. Acquire on failure: the caller continues with the word that won, as after `load`.
        match self
            .word
            .compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => Ok(()),
            Err(won) => Err(Word(won)),
        }
    }
}

/// The most records that an insertion moves to the free list: a rebuild may leave out too many for one call.
const MOST_RETURNED: u32 = 1_024;

/// Records that a replaced index left out, on their way to the free list.
pub(crate) struct FreedNumbers {
    pub(crate) numbers: Vec<u32>,
    next: *mut FreedNumbers,
    #[cfg(loom)]
    plain_data: PlainData,
}

impl FreedNumbers {
    pub(crate) fn new(numbers: Vec<u32>) -> FreedNumbers {
        FreedNumbers {
            numbers,
            next: std::ptr::null_mut(),
            #[cfg(loom)]
            plain_data: PlainData::default(),
        }
    }
}

/// What successive indexes of a shard share.
pub(crate) struct Slab {
    /// `tag << 32 | number + 1` of the first free record, or `tag << 32`. Each change increments the tag. So a CAS does
    /// not mistake a head that was replaced and came back (no ABA for 2^32 changes within one CAS).
    free: AtomicU64,
    /// Batches that reclaimed indexes have handed over.
    returned: AtomicPtr<FreedNumbers>,
    /// The first number that was never used.
    next: AtomicU32,
    /// Occupied slots of the current index: slots won minus records that rebuilds left out. For a moment it may be
    /// wrong, even below zero, while a slot's winner has not counted the slot yet.
    used: AtomicU32,
    /// Records that are LIVE or SPILL, as inexact as `used`.
    live: AtomicU32,
    /// How many slabs the shard had before, modulo 256.
    pub(crate) move_count: u8,
    /// The number of the shard in its table.
    pub(crate) shard: u16,
}

/// Why there is no record.
pub(crate) enum NoRecord {
    /// The index was replaced, or its segment table is full: help, and start again.
    StaleIndex,
    OutOfMemory,
    /// The table's limit of routes is reached.
    NoPlace,
    /// The proxy or its client has its maximum of routes.
    NoPlaceOf(Holder),
    /// The table has its maximum of text.
    NoTextRoom,
    /// The slab has as many records as a slot can number.
    NoNumber,
}

/// A record that is not published. It belongs to the thread that took it. Dropping it returns it to the free list.
pub(crate) struct Private<'g> {
    pub(crate) number: u32,
    pub(crate) record: &'g Record,
    slab: &'g Slab,
    free_key: unsafe fn([u64; 2]),
}

impl<'g> Private<'g> {
    /// Takes a record for `key` and makes it DEAD.
    pub(crate) fn take<K: Key>(index: Index<'g>, key: &K) -> Result<Private<'g>, NoRecord> {
        let slab = index.slab();
        let (number, record) = slab.take::<K>(index)?;
        let Some(stored) = key.store() else {
            slab.give_back(&[(number, record)]);
            return Err(NoRecord::OutOfMemory);
        };
        record.set_key(stored);
        // Relaxed: still private; the slot's CAS publishes it.
        record.word.store(Word::DEAD.0, Ordering::Relaxed);
        Ok(Private {
            number,
            record,
            slab,
            free_key: K::free,
        })
    }

    /// Leaves the record to the index in which it was published.
    ///
    /// # Safety
    ///
    /// A slot of the index has the record's number.
    pub(crate) unsafe fn publish(self) -> (u32, Published<'g>) {
        // SAFETY: the caller promises that a slot has the record (invariant 3), and the guard of the index is pinned.
        let published = (self.number, unsafe { Published::new(self.record) });
        std::mem::forget(self);
        published
    }

    /// Whether the record belongs to the slab of `index`: a number never outlives its slab.
    pub(crate) fn is_of(&self, index: Index<'g>) -> bool {
        std::ptr::eq(self.slab, index.slab())
    }
}

impl Drop for Private<'_> {
    fn drop(&mut self) {
        // SAFETY: `take` stored the key, and the record was never published.
        unsafe { (self.free_key)(self.record.key()) };
        self.slab.give_back(&[(self.number, self.record)]);
    }
}

impl Slab {
    pub(crate) fn new(shard: u16) -> Slab {
        Slab {
            free: AtomicU64::new(0),
            returned: AtomicPtr::new(std::ptr::null_mut()),
            next: AtomicU32::new(0),
            used: AtomicU32::new(0),
            live: AtomicU32::new(0),
            move_count: 0,
            shard,
        }
    }

    /// A slab whose first `count` records are live and in the index.
    pub(crate) fn of_live(count: u32, move_count: u8, shard: u16) -> Slab {
        let mut slab = Slab::new(shard);
        slab.next = AtomicU32::new(count);
        slab.used = AtomicU32::new(count);
        slab.live = AtomicU32::new(count);
        slab.move_count = move_count;
        slab
    }

    /// Every number that was ever used is below this.
    pub(crate) fn numbers(&self) -> u32 {
        // Acquire: pairs with the CAS in `take`, before which the segment of every number below was installed.
        self.next.load(Ordering::Acquire)
    }

    /// The numbers on the free list, while no other thread uses the slab.
    #[cfg(test)]
    pub(crate) fn free_numbers(&self, index: Index<'_>) -> Vec<u32> {
        // Acquire: as in `take`.
        let mut link = self.free.load(Ordering::Acquire) as u32;
        let mut numbers = Vec::new();
        while let Some(number) = link.checked_sub(1) {
            numbers.push(number);
            link = index.record(number).expect("a free record's segment is known").key()[0] as u32;
        }
        numbers
    }

    /// Occupied slots of the current index.
    pub(crate) fn used(&self) -> u32 {
        // Relaxed: a heuristic, through which no thread finds anything.
        (self.used.load(Ordering::Relaxed) as i32).max(0) as u32
    }

    /// Counts a slot that was won. Returns how many slots are occupied now.
    pub(crate) fn slot_won(&self) -> u32 {
        // Relaxed: as in `used`.
        (self.used.fetch_add(1, Ordering::Relaxed).wrapping_add(1) as i32).max(0) as u32
    }

    pub(crate) fn slots_left_out(&self, count: u32) {
        // Relaxed: as in `used`.
        self.used.fetch_sub(count, Ordering::Relaxed);
    }

    /// Records that have a route.
    pub(crate) fn live(&self) -> u32 {
        // Relaxed: as in `used`.
        (self.live.load(Ordering::Relaxed) as i32).max(0) as u32
    }

    pub(crate) fn count_live(&self, was_live: bool, is_live: bool) {
        match (was_live, is_live) {
            // Relaxed: as in `used`.
            (false, true) => _ = self.live.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = self.live.fetch_sub(1, Ordering::Relaxed),
            (true, true) | (false, false) => {}
        }
    }

    fn take<'g, K: Key>(&self, index: Index<'g>) -> Result<(u32, &'g Record), NoRecord> {
        loop {
            // Acquire: pairs with `give_back`, which wrote the link that is read below.
            let head = self.free.load(Ordering::Acquire);
            if let Some(number) = (head as u32).checked_sub(1) {
                let record = index.record(number).ok_or(NoRecord::StaleIndex)?;
                // Relaxed: ordered by the load above if the head is still the same, and unused if it is not. The record
                // may have an owner by now, but its memory stays the slab's.
                let link = record.key[0].load(Ordering::Relaxed);
                let new = next_tag(head) | link & u64::from(u32::MAX);
                // Relaxed: the head was acquired above, and its tag shows that it is the same store. A thread that
                // loads the new head also acquires the writes of `give_back`: a CAS continues the release sequence of
                // the store that it read.
                if self
                    .free
                    .compare_exchange(head, new, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
                {
                    return Ok((number, record));
                }
            } else if self.take_returned::<K>(index, MOST_RETURNED) == 0 {
                // Relaxed: the CAS below decides, and `ensure_record` orders the segment by itself.
                let number = self.next.load(Ordering::Relaxed);
                let record = index.ensure_record(number)?;
                // Release: pairs with `numbers`; the segment was installed above.
                if self
                    .next
                    .compare_exchange(number, number + 1, Ordering::Release, Ordering::Relaxed)
                    .is_ok()
                {
                    return Ok((number, record));
                }
            }
        }
    }

    /// Moves at most `most` of the records that reclaimed indexes handed over to the free list. Returns how many it
    /// moved.
    pub(crate) fn take_returned<K: Key>(&self, index: Index<'_>, most: u32) -> u32 {
        // Relaxed: a check that avoids the swap below.
        if self.returned.load(Ordering::Relaxed).is_null() {
            return 0;
        }
        // Acquire: pairs with `hand_over`.
        let mut batch = self.returned.swap(std::ptr::null_mut(), Ordering::Acquire);
        failpoint("returned: taken");
        let mut moved = 0;
        while !batch.is_null() {
            // SAFETY: `hand_over` stored only pointers from `Box::into_raw`, and the swap gave this batch to this
            // thread.
            let mut owned = unsafe { Box::from_raw(batch) };
            batch = std::mem::replace(&mut owned.next, std::ptr::null_mut());
            #[cfg(loom)]
            owned.plain_data.write();
            let mut found = Vec::new();
            let rest = owned.numbers.len().saturating_sub(most as usize - moved);
            let numbers = &owned.numbers[rest..];
            let is_known = found.try_reserve_exact(numbers.len()).is_ok()
                && numbers.iter().all(|&number| {
                    let record = index.record(number);
                    found.extend(record.map(|record| (number, record)));
                    record.is_some()
                });
            // Otherwise the caller's index is stale, with a segment table shorter than the slab, or there is no memory.
            // Then leave the batch to a later call.
            owned.numbers.truncate(if is_known { rest } else { usize::MAX });
            if !owned.numbers.is_empty() {
                self.hand_over(owned);
            }
            if !is_known || found.is_empty() {
                continue;
            }
            for (_, record) in &found {
                // SAFETY: the index that had the records is reclaimed by now, so no reader can reach their keys. Each
                // record is in one batch only (invariant 7), and `give_back` marks it as having no key.
                unsafe { K::free(record.key()) };
            }
            failpoint("returned: before giving back");
            self.give_back(&found);
            moved += found.len();
        }
        moved as u32
    }

    /// Puts records on the free list. No other thread can reach them.
    fn give_back(&self, records: &[(u32, &Record)]) {
        let Some((&(first, _), &(_, last))) = records.first().zip(records.last()) else {
            return;
        };
        for pair in records.windows(2) {
            pair[0].1.set_key([u64::from(pair[1].0) + 1, 0]);
        }
        for (_, record) in records {
            // Relaxed: the CAS below publishes it. A record that was left out is RETIRED already; a private record is
            // DEAD.
            record.word.store(Word::RETIRED.0, Ordering::Relaxed);
        }
        // Relaxed: the CAS decides.
        let mut head = self.free.load(Ordering::Relaxed);
        loop {
            last.set_key([head & u64::from(u32::MAX), 0]);
            let new = next_tag(head) | u64::from(first + 1);
            // Release: pairs with the load in `take`.
            match self
                .free
                .compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(won) => head = won,
            }
        }
    }

    /// Takes a batch of records that no reader can reach any more. May run after the table is gone, so it touches no
    /// record.
    pub(crate) fn hand_over(&self, batch: Box<FreedNumbers>) {
        #[cfg(loom)]
        batch.plain_data.write();
        let batch = Box::into_raw(batch);
        // Relaxed: the CAS decides.
        let mut head = self.returned.load(Ordering::Relaxed);
        loop {
            // SAFETY: this thread owns the batch until the CAS succeeds.
            unsafe { (*batch).next = head };
            // Release: pairs with the swap in `take_returned`.
            match self
                .returned
                .compare_exchange_weak(head, batch, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(won) => head = won,
            }
        }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // Relaxed: dropping the slab needs exclusive access.
        let mut batch = self.returned.load(Ordering::Relaxed);
        while !batch.is_null() {
            // SAFETY: `hand_over` stored only pointers from `Box::into_raw`, and `&mut self` is exclusive.
            batch = unsafe { Box::from_raw(batch) }.next;
        }
    }
}

fn next_tag(head: u64) -> u64 {
    ((head >> 32).wrapping_add(1)) << 32
}

fn layout(segment: u32) -> Layout {
    Layout::array::<Record>(Location::len(segment) as usize).expect("a segment fits into memory")
}

/// A segment of free records that no index has yet. Dropping it frees it.
pub(crate) struct NewSegment {
    records: NonNull<Record>,
    number: u32,
}

// SAFETY: the records are atomics on the heap, and only the owner of this value reaches them.
unsafe impl Send for NewSegment {}

impl NewSegment {
    /// `None` if there is no memory.
    pub(crate) fn new(number: u32) -> Option<Self> {
        // SAFETY: a segment has records, so the layout's size is not zero.
        let records = NonNull::new(unsafe { alloc_zeroed(layout(number)) }.cast::<Record>())?;
        #[cfg(loom)]
        for i in 0..Location::len(number) as usize {
            let zero = || AtomicU64::new(0);
            // SAFETY: the record is within the allocation, which only this thread has.
            unsafe {
                records.add(i).write(Record {
                    key: [zero(), zero()],
                    word: zero(),
                })
            };
        }
        // Without loom, zeroed memory is a record of zeroed atomics.
        Some(Self { records, number })
    }

    pub(crate) fn as_ptr(&self) -> *mut Record {
        self.records.as_ptr()
    }

    pub(crate) fn records(&self) -> &[Record] {
        // SAFETY: `new` allocated and initialised this many records.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), Location::len(self.number) as usize) }
    }

    /// Leaves the segment to the index that has it now.
    pub(crate) fn publish(self) {
        std::mem::forget(self);
    }
}

impl Drop for NewSegment {
    fn drop(&mut self) {
        // SAFETY: the segment was never published.
        unsafe { free_segment(self.as_ptr(), self.number) };
    }
}

/// Frees a segment.
///
/// # Safety
///
/// `records` came from a [`NewSegment`] with the same `number`, and no other thread can reach it.
pub(crate) unsafe fn free_segment(records: *mut Record, number: u32) {
    // SAFETY: `NewSegment::new` allocated it with this layout, and no thread can reach it.
    unsafe { dealloc(records.cast(), layout(number)) };
}
