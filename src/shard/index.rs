//! A shard's index: which record has a key.
//!
//! One allocation holds a header, the slots and the slab's segment table. So the path from the root to a record is
//! root, slot, segment, record:
//!
//! ```text
//! header (64 bytes) | slots: 4 bytes each, in buckets of 16, one cache line | segment table: one pointer each
//! ```
//!
//! The slots are at the same distance from the header in every index. So a thread that knows the root and the number of
//! buckets can prefetch a bucket ([`prefetch_bucket`](crate::shard::probe::prefetch_bucket)).
//!
//! A slot is EMPTY, FROZEN, or a tag of 10 bits and a record number plus one in 22 bits.

use std::alloc::{Layout, dealloc};
use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::{offset_of, size_of};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::layout::{MAX_RECORDS, RECORD_BITS, SLOTS_PER_BUCKET};
use crate::mem::segments::Location;
use crate::shard::bucket::Bucket;
use crate::shard::key::Key;
use crate::shard::list::List;
use crate::shard::published::Published;
use crate::shard::slab::{FreedNumbers, NewSegment, NoRecord, Record, Slab, free_segment};
#[cfg(loom)]
use crate::sync::epoch::Fate;
use crate::sync::{AtomicPtr, AtomicU32, Guard, Ordering, Reclaim, retire};
use crate::word::State;

const NUMBER_MASK: u32 = (1 << RECORD_BITS) - 1;

/// A slot without a record, which a CAS may still fill.
pub(crate) const EMPTY: u32 = 0;
/// A slot that was EMPTY when the index was frozen.
pub(crate) const FROZEN: u32 = u32::MAX;

/// The segment table's counterpart of [`FROZEN`].
pub(super) fn frozen_segment() -> *mut Record {
    std::ptr::without_provenance_mut(1)
}

/// Makes a slot final, and returns its value.
#[inline]
fn freeze_slot(slot: &AtomicU32) -> u32 {
    // Most slots are taken, and a CAS that fails costs as much as a CAS that succeeds. Acquire: pairs with the CAS that
    // filled the slot, because the record is read next.
    let value = slot.load(Ordering::Acquire);
    if value != EMPTY {
        return value;
    }
    // AcqRel: Acquire as for the load. Release, so that a thread that meets FROZEN (Acquire) sees the writes before it.
    // Acquire on failure: as for the load.
    match slot.compare_exchange(EMPTY, FROZEN, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => FROZEN,
        Err(won) => won,
    }
}

/// The record number in a slot's value that is neither EMPTY nor FROZEN.
#[inline]
pub(super) fn number_in(value: u32) -> u32 {
    (value & NUMBER_MASK) - 1
}

#[repr(C, align(64))]
pub(crate) struct Header {
    pub(super) slab: Arc<Slab>,
    pub(super) shape: Shape,
    /// The records that the next index left out. The thread that replaced this index sets it; reclaiming this index
    /// hands it over.
    pub(super) left_out: Cell<Option<Box<FreedNumbers>>>,
    /// The part of the slab that is freed with this index, if the next index has another slab. Set like `left_out`.
    pub(super) takes_slab: Cell<TakesSlab>,
    #[cfg(loom)]
    pub(super) fate: Fate,
}

/// [`Key::free`] of a shard's kind of key.
pub(crate) type FreeKey = unsafe fn([u64; 2]);

/// What an index frees of its slab.
#[derive(Clone, Copy)]
pub(super) enum TakesSlab {
    /// Nothing: a later index has the slab, or the shard frees it.
    No,
    /// All records, whose keys own no memory.
    Records,
    /// All records, and the keys that have not moved to another slab.
    RecordsAndKeys(FreeKey),
}

const SLOTS_AT: usize = size_of::<Header>();

/// The offset of the segment table, which follows the slots.
#[inline]
pub(super) fn segments_at(buckets: u32) -> usize {
    (SLOTS_AT + buckets as usize * SLOTS_PER_BUCKET as usize * size_of::<AtomicU32>())
        .next_multiple_of(align_of::<AtomicPtr<Record>>())
}

/// The parameters of a new index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) buckets: u32,
    pub(crate) segments: u32,
    /// Mixed into every hash, so that a rebuild can change all probe sequences.
    pub(crate) seed: u64,
    /// How often the seed was changed since the index last grew.
    pub(crate) reseeds: u32,
    /// How many indexes the shard's root had before this index, modulo 2^32.
    pub(crate) serial: u32,
}

impl Shape {
    pub(super) fn layout(&self) -> Layout {
        let segments = self.segments as usize * size_of::<AtomicPtr<Record>>();
        Layout::from_size_align(segments_at(self.buckets) + segments, align_of::<Header>())
            .expect("2^23 slots fit into memory")
    }
}

/// An index that a root points to, or pointed to while this thread was pinned.
#[derive(Clone, Copy)]
pub(crate) struct Index<'g> {
    pub(super) header: NonNull<Header>,
    pub(super) guard: PhantomData<&'g Guard>,
}

impl<'g> Index<'g> {
    /// # Safety
    ///
    /// `header` was loaded with Acquire from a root while the guard of `'g` was pinned, or is the caller's alone.
    #[inline]
    pub(crate) unsafe fn from_raw(header: NonNull<Header>) -> Index<'g> {
        let index = Index {
            header,
            guard: PhantomData,
        };
        #[cfg(loom)]
        index.header().fate.assert_alive();
        index
    }

    pub(crate) fn as_ptr(self) -> *mut Header {
        self.header.as_ptr()
    }

    #[inline]
    pub(super) fn header(self) -> &'g Header {
        // SAFETY: an index is not freed while the guard is pinned (invariant 8).
        unsafe { self.header.as_ref() }
    }

    pub(crate) fn slab(self) -> &'g Slab {
        &self.header().slab
    }

    pub(crate) fn shared_slab(self) -> Arc<Slab> {
        Arc::clone(&self.header().slab)
    }

    pub(crate) fn shape(self) -> Shape {
        self.header().shape
    }

    #[cfg(all(test, loom))]
    pub(crate) fn slots(self) -> &'g [AtomicU32] {
        let count = self.header().shape.buckets as usize * SLOTS_PER_BUCKET as usize;
        // SAFETY: the allocation has this many slots there (`Shape::layout`). They are atomics, initialised before the
        // index was published, and live while the guard is pinned (invariant 8).
        unsafe { std::slice::from_raw_parts(self.slots_ptr().as_ptr(), count) }
    }

    #[inline]
    pub(super) fn slots_ptr(self) -> NonNull<AtomicU32> {
        // SAFETY: the allocation has the slots there (`Shape::layout`).
        unsafe { self.header.cast::<u8>().add(SLOTS_AT).cast() }
    }

    pub(crate) fn segments(self) -> &'g [AtomicPtr<Record>] {
        let at = segments_at(self.header().shape.buckets);
        // SAFETY: the allocation has the segment table there (`Shape::layout`).
        let first = unsafe { self.header.cast::<u8>().add(at).cast::<AtomicPtr<Record>>() };
        // SAFETY: the segment table has this many entries. They are atomics, initialised before the index was
        // published, and live while the guard is pinned (invariant 8).
        unsafe { std::slice::from_raw_parts(first.as_ptr(), self.header().shape.segments as usize) }
    }

    /// The records of one segment, if it is installed.
    pub(crate) fn segment(self, segment: u32) -> Option<&'g [Record]> {
        // Acquire: pairs with the CAS in `ensure_record`, so that the records are initialised.
        let records = self.segments().get(segment as usize)?.load(Ordering::Acquire);
        if records.is_null() || records == frozen_segment() {
            return None;
        }
        // SAFETY: an installed segment has this many records, and lives as long as the slab, which the guard keeps
        // (invariant 8).
        Some(unsafe { std::slice::from_raw_parts(records, Location::len(segment) as usize) })
    }

    /// A record by number; `None` if its segment is not in this index's table.
    #[inline]
    pub(crate) fn record(self, number: u32) -> Option<&'g Record> {
        let place = Location::of(number);
        self.segment(place.segment)
            .map(|records| &records[place.offset as usize])
    }

    /// A record by number. Installs its segment if it is missing.
    pub(crate) fn ensure_record(self, number: u32) -> Result<&'g Record, NoRecord> {
        if number >= MAX_RECORDS {
            return Err(NoRecord::NoNumber);
        }
        let place = Location::of(number);
        let entry = self
            .segments()
            .get(place.segment as usize)
            .ok_or(NoRecord::StaleIndex)?;
        // Acquire: as in `segment`.
        if entry.load(Ordering::Acquire).is_null() {
            let segment = NewSegment::new(place.segment).ok_or(NoRecord::OutOfMemory)?;
            // Release: pairs with the Acquire loads of the entry, so that the records are initialised.
            let installed = entry.compare_exchange(
                std::ptr::null_mut(),
                segment.as_ptr(),
                Ordering::Release,
                Ordering::Relaxed,
            );
            if installed.is_ok() {
                segment.publish();
            }
        }
        self.record(number).ok_or(NoRecord::StaleIndex)
    }

    /// The record that a slot's value refers to.
    #[inline]
    pub(super) fn record_in(self, value: u32) -> Published<'g> {
        let place = Location::of(number_in(value));
        debug_assert!(self.segment(place.segment).is_some());
        // SAFETY: a published record's segment is in the table (invariant 5).
        let segment = unsafe { self.segments().get_unchecked(place.segment as usize) };
        // Acquire: as in `segment`.
        let records = segment.load(Ordering::Acquire);
        // SAFETY: the segment is installed (invariant 5), and has a record at this offset.
        let record = unsafe { records.add(place.offset as usize) };
        // SAFETY: an installed segment's records are initialised, and live as long as the slab, which the guard keeps
        // (8).
        let record = unsafe { &*record };
        // SAFETY: the value was in a slot (invariant 2), and was loaded while the guard of `'g` was pinned (7).
        unsafe { Published::new(record) }
    }

    /// The slots of one bucket.
    #[inline]
    pub(super) fn bucket(self, bucket: u32) -> &'g Bucket {
        debug_assert!(bucket < self.header().shape.buckets);
        // SAFETY: the allocation has the slots of this many buckets there (`Shape::layout`).
        let first = unsafe { self.slots_ptr().add((bucket * SLOTS_PER_BUCKET) as usize) };
        // SAFETY: the slots are initialised atomics, and live while the guard is pinned (invariant 8).
        unsafe { first.cast::<Bucket>().as_ref() }
    }

    /// Makes the index and its segment table final (invariant 4).
    pub(crate) fn freeze(self) {
        for bucket in 0..self.shape().buckets {
            for slot in self.bucket(bucket) {
                freeze_slot(slot);
            }
        }
        self.freeze_segments();
    }

    /// Makes a slot final. Returns its record's number and its record, if it has one.
    pub(crate) fn freeze_slot(self, bucket: u32, slot: usize) -> Option<(u32, Published<'g>)> {
        let value = freeze_slot(&self.bucket(bucket)[slot]);
        (value != FROZEN).then(|| (number_in(value), self.record_in(value)))
    }

    /// Makes the segment table final.
    pub(crate) fn freeze_segments(self) {
        for entry in self.segments() {
            // As in `freeze_slot`.
            if entry.load(Ordering::Acquire).is_null() {
                _ = entry.compare_exchange(
                    std::ptr::null_mut(),
                    frozen_segment(),
                    Ordering::AcqRel,
                    Ordering::Acquire,
                );
            }
        }
    }

    /// Leaves `numbers` to this index, which an index without them has just replaced. Frees both when no reader is
    /// left.
    ///
    /// # Safety
    ///
    /// This thread's CAS unlinked this index from the root.
    pub(crate) unsafe fn retire(self, numbers: Vec<u32>, guard: &Guard) {
        if !numbers.is_empty() {
            self.header().left_out.set(Some(Box::new(FreedNumbers::new(numbers))));
        }
        // SAFETY: this thread's CAS unlinked the index, so no thread that pins from now on can find it (invariant 8).
        // Only this thread and the thread that reclaims the index use `left_out`.
        unsafe { retire(guard, self.header.as_ptr()) };
    }
}

impl Index<'_> {
    /// Frees this index, which an index with another slab has just replaced, and the slab's records when no reader is
    /// left.
    ///
    /// # Safety
    ///
    /// This thread's CAS unlinked this index from the root. Each record with a frozen word that is LIVE or SPILL has
    /// left its key and its list to the new slab.
    pub(crate) unsafe fn retire_with_slab<K: Key>(self, guard: &Guard) {
        self.header().takes_slab.set(match K::OWNS_MEMORY {
            true => TakesSlab::RecordsAndKeys(K::free),
            false => TakesSlab::Records,
        });
        // SAFETY: this thread's CAS unlinked the index (invariant 8). Reclaiming an earlier index no longer uses the
        // records, and no later index has this slab.
        unsafe { retire(guard, self.header.as_ptr()) };
    }

    /// Frees the keys and the lists of the records, unless these moved to another slab. (A losing mover may have frozen
    /// words, too; these keys and lists have not moved.)
    ///
    /// # Safety
    ///
    /// No other thread can reach the index or its records, and no code uses the keys and lists afterwards.
    pub(crate) unsafe fn free_keys_and_lists(self, free_key: FreeKey, moved: Moved) {
        for segment in 0..self.segments().len() as u32 {
            for record in self.segment(segment).unwrap_or_default() {
                let word = record.load();
                if moved == Moved::Yes && word.is_frozen() && matches!(word.state(), State::Live | State::Spill) {
                    continue;
                }
                if word.state() == State::Spill {
                    // SAFETY: the caller promises that no other thread can reach the record.
                    unsafe { List::free_at(word) };
                }
                if record.owns_key() {
                    // SAFETY: the record owns its key until it is on the free list, and no other thread can reach it.
                    unsafe { free_key(record.key()) };
                }
            }
        }
    }

    /// Frees the records. Their keys and lists have moved to another slab, or are freed.
    ///
    /// # Safety
    ///
    /// No other thread can reach the index or its records, and no code uses the records afterwards.
    pub(crate) unsafe fn free_segments(self) {
        for segment in 0..self.segments().len() as u32 {
            let Some(records) = self.segment(segment) else { continue };
            // SAFETY: the records were allocated as this segment, and are not used below.
            unsafe { free_segment(std::ptr::from_ref(records).cast_mut().cast(), segment) };
        }
    }
}

/// Whether an index's records moved to another slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    Yes,
    No,
}

impl Reclaim for Header {
    fn after_grace(&self) {
        if let Some(batch) = self.left_out.take() {
            self.slab.hand_over(batch);
        }
    }

    unsafe fn free(object: *mut Self) {
        // SAFETY: an index's address is not null.
        let header = unsafe { NonNull::new_unchecked(object) };
        let index = Index {
            header,
            guard: PhantomData,
        };
        let takes_slab = index.header().takes_slab.get();
        if let TakesSlab::RecordsAndKeys(free_key) = takes_slab {
            // SAFETY: no thread can reach the index (invariant 8), and the slab's records are freed below.
            unsafe { index.free_keys_and_lists(free_key, Moved::Yes) };
        }
        if !matches!(takes_slab, TakesSlab::No) {
            // SAFETY: no thread can reach the index (invariant 8). The slab's records are freed with the last index
            // that had them. All lists have moved: only a record of an index has a list (3), and the mover froze each.
            unsafe { index.free_segments() };
        }
        // SAFETY: no thread can reach the header, and it is not used after this read.
        let header = unsafe { object.read() };
        let layout = header.shape.layout();
        drop(header);
        // SAFETY: `NewIndex::new` allocated it with this layout.
        unsafe { dealloc(object.cast(), layout) };
    }

    fn bytes(&self) -> usize {
        let records = match self.takes_slab.get() {
            TakesSlab::No => 0,
            TakesSlab::Records | TakesSlab::RecordsAndKeys(_) => self.slab.numbers() as usize,
        };
        self.shape.layout().size() + records * size_of::<Record>()
    }

    #[cfg(loom)]
    fn fate(&self) -> &Fate {
        &self.fate
    }
}

const _: () = assert!(cfg!(loom) || size_of::<Header>() == 64);
const _: () = assert!(offset_of!(Header, slab) == 0);
