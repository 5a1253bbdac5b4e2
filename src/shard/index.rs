//! A shard's index: which record has a key.
//!
//! One allocation holds a header, the slots and the slab's segment table, so that the way from the root to a record is
//! root, slot, segment, record:
//!
//! ```text
//! header (64 bytes) | slots: 4 bytes each, in buckets of 16, one cache line | segment table: one pointer each
//! ```
//!
//! The slots are at the same distance from the header in every index, so that a thread which knows the root and the number of
//! buckets can prefetch a bucket ([`prefetch_bucket`]).
//!
//! A slot holds a tag of 10 bits and a record number plus one in 22, or EMPTY, or FROZEN. A key's probe sequence starts
//! at a slot of its own in its home bucket, goes round that bucket, and on to the following ones. Probing whole cache
//! lines keeps a look-up that misses at a load factor of 0.9 at about one and a half lines, where plain linear probing
//! would read fifty slots.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::layout::{BUCKET, MAX_RECORDS, NUMBER_BITS};
use crate::mem::prefetch::prefetch;
use crate::mem::segments::Location;
use crate::shard::bucket::{Bucket, ends, first, from_offset, same_tag, same_tag_or_end};
use crate::shard::list::List;
use crate::shard::slab::{Batch, NoRecord, Record, Slab, allocate_segment, free_segment};
#[cfg(loom)]
use crate::sync::epoch::Fate;
use crate::sync::{AtomicPtr, AtomicU32, Guard, Ordering, Reclaim, retire};
use crate::word::State;

/// How many buckets a probe sequence has at most. At a load factor of 0.9 full buckets come in runs; with 16, one rebuild
/// in seven was for a run that was longer, with 64 next to none is.
const PROBED_BUCKETS: u32 = 64;

const NUMBER_MASK: u32 = (1 << NUMBER_BITS) - 1;

/// A slot that no record was put in, and that a CAS may still fill.
pub(crate) const EMPTY: u32 = 0;
/// A slot that was EMPTY when the index was frozen.
pub(crate) const FROZEN: u32 = u32::MAX;

/// The segment table's counterpart of [`FROZEN`].
fn frozen_segment() -> *mut Record {
    std::ptr::without_provenance_mut(1)
}

/// Makes a slot final, and returns its value.
#[inline]
fn freeze_slot(slot: &AtomicU32) -> u32 {
    // Most are taken, and a CAS that fails costs as much as one that succeeds. Acquire: pairs with the CAS that filled the
    // slot, since the record is read next.
    let value = slot.load(Ordering::Acquire);
    if value != EMPTY {
        return value;
    }
    // AcqRel: Acquire as above; Release, so that a thread that meets FROZEN (Acquire) sees what led to it. Acquire on failure:
    // likewise.
    match slot.compare_exchange(EMPTY, FROZEN, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => FROZEN,
        Err(won) => won,
    }
}

/// The record number in a slot's value that is neither EMPTY nor FROZEN.
#[inline]
fn number_in(value: u32) -> u32 {
    (value & NUMBER_MASK) - 1
}

/// The bucket in which a probe sequence goes on.
#[inline]
fn following(bucket: u32, buckets: u32) -> u32 {
    if bucket + 1 == buckets { 0 } else { bucket + 1 }
}

#[repr(C, align(64))]
pub(crate) struct Header {
    slab: Arc<Slab>,
    shape: Shape,
    /// What the index that replaced this one left out; set by the thread that replaced it, handed over when this one
    /// is reclaimed.
    left_out: Cell<Option<Box<Batch>>>,
    /// How to free a key, where the index that replaced this one has another slab: then this one's records go with it.
    /// Set as `left_out` is.
    takes_slab: Cell<Option<FreeKey>>,
    #[cfg(loom)]
    fate: Fate,
}

/// [`Key::free`](crate::shard::key::Key::free) of a shard's kind of key.
pub(crate) type FreeKey = unsafe fn([u64; 2]);

const SLOTS_AT: usize = size_of::<Header>();

/// Where the segment table stands, behind the slots.
#[inline]
fn segments_at(buckets: u32) -> usize {
    (SLOTS_AT + buckets as usize * BUCKET as usize * size_of::<AtomicU32>())
        .next_multiple_of(align_of::<AtomicPtr<Record>>())
}

/// What a new index is made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) buckets: u32,
    pub(crate) segments: u32,
    /// Mixed into every hash, so that a rebuild can change all probe sequences.
    pub(crate) seed: u64,
    /// How often the seed was changed since the index last grew.
    pub(crate) reseeds: u32,
    /// How many indexes the shard's root had before this one, modulo 2^32.
    pub(crate) serial: u32,
}

impl Shape {
    fn layout(&self) -> Layout {
        let segments = self.segments as usize * size_of::<AtomicPtr<Record>>();
        Layout::from_size_align(segments_at(self.buckets) + segments, align_of::<Header>())
            .expect("2^23 slots fit into memory")
    }
}

/// An index that a root points to, or pointed to while this thread was pinned.
#[derive(Clone, Copy)]
pub(crate) struct Index<'g> {
    header: NonNull<Header>,
    guard: PhantomData<&'g Guard>,
}

/// A key's way through an index.
#[derive(Clone, Copy)]
struct Probe {
    bucket: u32,
    offset: u32,
    tag: u32,
}

/// Mixes a hash with a seed. A key's home bucket, offset and tag come from the result. With one seed, different
/// hashes give different results.
#[inline]
pub(crate) fn mix(hash: u64, seed: u64) -> u64 {
    // All hashes of a shard have the same top bits, so mix the others into the top: an odd factor carries each bit upwards.
    (hash ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The home bucket of a key, from its mixed hash. It is monotone in `mixed`: [`scan`](crate::shard::scan) relies on that.
#[inline]
pub(crate) fn home(mixed: u64, buckets: u32) -> u32 {
    (((mixed >> 32) * u64::from(buckets)) >> 32) as u32
}

/// The least upper half of a mixed hash with this home bucket. `bucket` must be below `buckets`.
pub(crate) fn first_rank(bucket: u32, buckets: u32) -> u32 {
    debug_assert!(bucket < buckets);
    (u64::from(bucket) << 32).div_ceil(u64::from(buckets)) as u32
}

impl Probe {
    #[inline]
    fn new(hash: u64, seed: u64, buckets: u32) -> Probe {
        let mixed = mix(hash, seed);
        Probe {
            bucket: home(mixed, buckets),
            offset: (mixed >> 24) as u32 % BUCKET,
            tag: (mixed as u32 >> 8) << NUMBER_BITS,
        }
    }
}

/// Begins to load a key's home bucket in the index that a root points to, if the index has so many buckets and the seed 0. A
/// prefetch reads nothing, so it needs no pin, and `root` and `buckets` may be stale.
#[cfg(not(loom))]
#[inline]
pub(crate) fn prefetch_bucket(root: *const Header, buckets: u32, hash: u64) {
    let bucket = Probe::new(hash, 0, buckets).bucket;
    prefetch(root.cast::<[u32; BUCKET as usize]>().wrapping_add(1 + bucket as usize));
}

impl<'g> Index<'g> {
    /// # Safety
    ///
    /// `header` was loaded with Acquire from a root while the guard that `'g` stands for was pinned, or is the caller's
    /// alone.
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
    fn header(self) -> &'g Header {
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
        let count = self.header().shape.buckets as usize * BUCKET as usize;
        // SAFETY: so many stand there (`Shape::layout`); they are atomics, initialised before the index was published.
        unsafe { std::slice::from_raw_parts(self.slots_ptr().as_ptr(), count) }
    }

    #[inline]
    fn slots_ptr(self) -> NonNull<AtomicU32> {
        // SAFETY: the slots stand there (`Shape::layout`).
        unsafe { self.header.cast::<u8>().add(SLOTS_AT).cast() }
    }

    pub(crate) fn segments(self) -> &'g [AtomicPtr<Record>] {
        let at = segments_at(self.header().shape.buckets);
        // SAFETY: the segment table stands there (`Shape::layout`).
        let first = unsafe { self.header.cast::<u8>().add(at).cast::<AtomicPtr<Record>>() };
        // SAFETY: as above; they are atomics, initialised before the index was published.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), self.header().shape.segments as usize) }
    }

    /// The records of one segment, where it is installed.
    pub(crate) fn segment(self, segment: u32) -> Option<&'g [Record]> {
        // Acquire: pairs with the CAS in `ensure_record`, so that the records are seen initialised.
        let records = self.segments().get(segment as usize)?.load(Ordering::Acquire);
        if records.is_null() || records == frozen_segment() {
            return None;
        }
        // SAFETY: an installed segment has that many records, and lives as long as the slab, which the guard keeps.
        Some(unsafe { std::slice::from_raw_parts(records, Location::len(segment) as usize) })
    }

    /// A record by number; `None` where its segment is not in this index's table.
    #[inline]
    pub(crate) fn record(self, number: u32) -> Option<&'g Record> {
        let place = Location::of(number);
        self.segment(place.segment)
            .map(|records| &records[place.offset as usize])
    }

    /// A record by number, installing its segment where that is missing.
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
            let records = allocate_segment(place.segment).ok_or(NoRecord::OutOfMemory)?;
            // Release: pairs with the Acquire loads of the entry, so that the records are seen initialised.
            let installed = entry.compare_exchange(
                std::ptr::null_mut(),
                records.as_ptr(),
                Ordering::Release,
                Ordering::Relaxed,
            );
            if installed.is_err() {
                // SAFETY: somebody else's segment, or FROZEN, took the place; ours was seen by nobody.
                unsafe { free_segment(records, place.segment) };
            }
        }
        self.record(number).ok_or(NoRecord::StaleIndex)
    }

    #[inline]
    fn probe(self, hash: u64) -> Probe {
        let header = self.header();
        Probe::new(hash, header.shape.seed, header.shape.buckets)
    }

    /// The record that a slot's value refers to.
    #[inline]
    fn record_in(self, value: u32) -> &'g Record {
        let place = Location::of(number_in(value));
        debug_assert!(self.segment(place.segment).is_some());
        // SAFETY: a published record's segment is in the table (invariant 5).
        let segment = unsafe { self.segments().get_unchecked(place.segment as usize) };
        // Acquire: as in `segment`.
        let records = segment.load(Ordering::Acquire);
        // SAFETY: as above, and it has a record at that place.
        let record = unsafe { records.add(place.offset as usize) };
        // SAFETY: as above; it lives as long as the slab, which the guard keeps.
        unsafe { &*record }
    }

    /// Begins to load the key's home bucket.
    #[inline]
    pub(crate) fn prefetch(self, hash: u64) {
        prefetch(self.bucket(self.probe(hash).bucket));
    }

    /// The first record with the key's tag in its home bucket, which nearly always is the key's if it has one; begins to
    /// load it.
    #[inline]
    pub(crate) fn candidate(self, hash: u64) -> Option<(u32, &'g Record)> {
        let probe = self.probe(hash);
        self.find_in(probe.bucket, probe, |number, record| {
            record.prefetch();
            Some((number, record))
        })
    }

    /// The slots of one bucket.
    #[inline]
    fn bucket(self, bucket: u32) -> &'g Bucket {
        debug_assert!(bucket < self.header().shape.buckets);
        // SAFETY: so many slots stand there (`Shape::layout`).
        let first = unsafe { self.slots_ptr().add((bucket * BUCKET) as usize) };
        // SAFETY: as above, and they live while the guard is pinned.
        unsafe { first.cast::<Bucket>().as_ref() }
    }

    /// Finds the first record with the key's tag in one bucket of its probe sequence that `accept` takes.
    #[inline]
    fn find_in<R>(self, bucket: u32, probe: Probe, mut accept: impl FnMut(u32, &'g Record) -> Option<R>) -> Option<R> {
        let line = self.bucket(bucket);
        let mut hits = from_offset(same_tag(line, probe.tag), probe.offset);
        while hits != 0 {
            // Acquire: as in `find`.
            let value = line[first(hits, probe.offset)].load(Ordering::Acquire);
            // What was EMPTY when it was compared may be taken now; that is as good.
            if value != EMPTY
                && value != FROZEN
                && (value ^ probe.tag) >> NUMBER_BITS == 0
                && let Some(result) = accept(number_in(value), self.record_in(value))
            {
                return Some(result);
            }
            hits &= hits - 1;
        }
        None
    }

    /// Finds the first record in the key's probe sequence that `accept` takes.
    ///
    /// Slots are written once, in the order of the sequence (invariant 1), so a key whose slot was EMPTY when its bucket
    /// was compared was not in the index at that moment.
    #[inline]
    pub(crate) fn find<R>(self, hash: u64, mut accept: impl FnMut(&'g Record) -> Option<R>) -> Option<R> {
        let probe = self.probe(hash);
        let buckets = self.header().shape.buckets;
        let mut bucket = probe.bucket;
        for _ in 0..buckets.min(PROBED_BUCKETS) {
            // Acquire, of slots: pairs with the CAS that filled the slot (or the store of a rebuild, by way of the root).
            if let Some(result) = self.find_in(bucket, probe, |_, record| accept(record)) {
                return Some(result);
            }
            if ends(self.bucket(bucket)) != 0 {
                return None;
            }
            bucket = following(bucket, buckets);
        }
        None
    }

    /// Goes along the key's probe sequence until `accept` takes a record, or `offer` gives the number of one to put
    /// into the first EMPTY slot.
    pub(crate) fn find_or_fill<E>(
        self,
        hash: u64,
        mut accept: impl FnMut(&'g Record) -> bool,
        mut offer: impl FnMut() -> Result<u32, E>,
    ) -> Result<Filled<'g>, E> {
        let probe = self.probe(hash);
        // Nearly always the key is known, and in its home bucket.
        let known = self.find_in(probe.bucket, probe, |number, record| {
            accept(record).then_some(Filled::Found(number, record))
        });
        if let Some(known) = known {
            return Ok(known);
        }
        let buckets = self.header().shape.buckets;
        let mut bucket = probe.bucket;
        for _ in 0..buckets.min(PROBED_BUCKETS) {
            let line = self.bucket(bucket);
            // The other slots have other keys' records, and keep them.
            let mut left = from_offset(same_tag_or_end(line, probe.tag), probe.offset);
            while left != 0 {
                let slot = &line[first(left, probe.offset)];
                left &= left - 1;
                // Acquire: as in `find`.
                let mut value = slot.load(Ordering::Acquire);
                if value == EMPTY {
                    let number = offer()?;
                    // Release: publishes the record's key; pairs with the Acquire loads of slots. Acquire on failure: the
                    // slot is looked at again, as after a load.
                    match slot.compare_exchange(EMPTY, probe.tag | (number + 1), Ordering::Release, Ordering::Acquire) {
                        Ok(_) => return Ok(Filled::Won),
                        Err(won) => value = won,
                    }
                }
                if value == FROZEN {
                    return Ok(Filled::Frozen);
                }
                if (value ^ probe.tag) >> NUMBER_BITS == 0 {
                    let record = self.record_in(value);
                    if accept(record) {
                        return Ok(Filled::Found(number_in(value), record));
                    }
                }
            }
            bucket = following(bucket, buckets);
        }
        Ok(Filled::Crowded)
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

    /// Makes a slot final. Returns its record, if it has one, with the record's number.
    pub(crate) fn freeze_slot(self, bucket: u32, slot: usize) -> Option<(u32, &'g Record)> {
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

    /// The record numbers in the slots, with their records: all of them if the index is frozen.
    pub(crate) fn occupied(self) -> Occupied<'g> {
        self.occupied_in(0..self.shape().buckets)
    }

    /// The same for some buckets.
    pub(crate) fn occupied_in(self, buckets: Range<u32>) -> Occupied<'g> {
        let mut occupied = Occupied {
            index: self,
            next: buckets.start,
            end: buckets.end,
            here: [None; BUCKET as usize],
            ahead: [None; BUCKET as usize],
            at: BUCKET as usize,
        };
        occupied.load_ahead();
        occupied
    }

    /// The records of one bucket. Begins to load them.
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

    /// Calls `each` with the records of all keys with these home buckets, and with some records of other keys. Begins to load
    /// the records. Returns how many buckets were read, and the end of the home buckets whose keys were all met: that may be
    /// beyond `homes`.
    ///
    /// Keys that were displaced from the last of the buckets are in the buckets after it, as long as these are full. So at a
    /// bucket that is not full, all keys of the home buckets up to that bucket were met.
    pub(crate) fn with_homes(self, homes: Range<u32>, mut each: impl FnMut(&'g Record)) -> (u32, u32) {
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
                        each(record);
                    }
                }
            }
            looked += 1;
            bucket = following(bucket, buckets);
        }
        let complete = if is_full { homes.end } else { homes.start + looked };
        (looked, complete.min(buckets))
    }

    /// Leaves `numbers` to this index, which was just replaced by one without them, and frees both once no reader is
    /// left.
    ///
    /// # Safety
    ///
    /// This thread's CAS made the root stop pointing to this index.
    pub(crate) unsafe fn retire(self, numbers: Vec<u32>, guard: &Guard) {
        if !numbers.is_empty() {
            self.header().left_out.set(Some(Box::new(Batch::new(numbers))));
        }
        // SAFETY: no root points to the index any more, so a thread that pins from now on cannot find it; the one
        // thread that unlinked it retires it. `left_out` is touched by that thread and by the one that reclaims.
        unsafe { retire(guard, self.header.as_ptr()) };
    }
}

impl Index<'_> {
    /// Frees this index, which was just replaced by one with another slab, and the slab's records once no reader is left.
    ///
    /// # Safety
    ///
    /// This thread's CAS made the root stop pointing to this index. Each record with a frozen word that is LIVE or SPILL
    /// has left its key and its list to the new slab.
    pub(crate) unsafe fn retire_with_slab(self, free_key: FreeKey, guard: &Guard) {
        self.header().takes_slab.set(Some(free_key));
        // SAFETY: as in `retire`. Indexes that were replaced before do not touch the records any more when they go, and
        // none that comes later has this slab.
        unsafe { retire(guard, self.header.as_ptr()) };
    }

    /// Frees the records, and what they refer to, unless they left that to another slab. (Words may be frozen by a mover that
    /// lost, too: those left nothing.)
    ///
    /// # Safety
    ///
    /// Nobody can reach the index or its records any more.
    pub(crate) unsafe fn free_records(self, free_key: FreeKey, moved: Moved) {
        for segment in 0..self.segments().len() as u32 {
            let Some(records) = self.segment(segment) else { continue };
            for record in records {
                let word = record.load();
                if moved == Moved::Yes && word.is_frozen() && matches!(word.state(), State::Live | State::Spill) {
                    continue;
                }
                if word.state() == State::Spill {
                    // SAFETY: nobody else can reach the record.
                    unsafe { List::free_at(word) };
                }
                if record.owns_key() {
                    // SAFETY: the record owns its key until it is on the free list, and nobody reaches it any more.
                    unsafe { free_key(record.key()) };
                }
            }
            // SAFETY: it was allocated as this segment, and its records are not used below.
            unsafe { free_segment(NonNull::from(records).cast(), segment) };
        }
    }
}

/// The record numbers in the slots of one bucket, with their records; `None` for a slot that has none.
pub(crate) type Records<'g> = [Option<(u32, &'g Record)>; BUCKET as usize];

/// The iterator of [`Index::occupied`]. The records are scattered in memory, so the records of the next bucket are prefetched.
pub(crate) struct Occupied<'g> {
    index: Index<'g>,
    /// The bucket after the bucket of `ahead`.
    next: u32,
    /// The bucket after the last one.
    end: u32,
    here: Records<'g>,
    ahead: Records<'g>,
    /// The place in `here`.
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
    type Item = (u32, &'g Record);

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

/// Whether an index's records moved to another slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    Yes,
    No,
}

/// What [`Index::find_or_fill`] came to.
pub(crate) enum Filled<'g> {
    /// The key has this record.
    Found(u32, &'g Record),
    /// The offered record is published.
    Won,
    /// The index is being replaced.
    Frozen,
    /// The probe sequence is full, and the key is not in it.
    Crowded,
}

/// An index that nobody else knows yet; freed when it is dropped.
pub(crate) struct NewIndex(NonNull<Header>);

impl NewIndex {
    /// Allocates an empty index over `slab`; `None` where there is no memory for it.
    pub(crate) fn new(slab: Arc<Slab>, shape: Shape) -> Option<NewIndex> {
        // SAFETY: the layout has a header, so its size is not zero.
        let header = NonNull::new(unsafe { alloc_zeroed(shape.layout()) }.cast::<Header>())?;
        let new = Header {
            slab,
            shape,
            left_out: Cell::new(None),
            takes_slab: Cell::new(None),
            #[cfg(loom)]
            fate: Fate::default(),
        };
        // SAFETY: the allocation starts with room for a header, and is ours alone.
        unsafe { header.write(new) };
        let index = NewIndex(header);
        // Outside of loom, zeroed memory is EMPTY slots and a table of no segments.
        #[cfg(loom)]
        index.initialize();
        Some(index)
    }

    #[cfg(loom)]
    fn initialize(&self) {
        let shape = self.get().shape();
        // SAFETY: the layout has room for the segment table there.
        let segments = unsafe { self.0.cast::<u8>().add(segments_at(shape.buckets)) }.cast::<AtomicPtr<Record>>();
        for entry in 0..shape.segments as usize {
            // SAFETY: as above.
            let entry = unsafe { segments.add(entry) };
            // SAFETY: as above, and the allocation is ours alone.
            unsafe { entry.write(AtomicPtr::new(std::ptr::null_mut())) };
        }
        let slots = self.get().slots_ptr();
        for slot in 0..(shape.buckets * BUCKET) as usize {
            // SAFETY: the layout has room for the slots there.
            let slot = unsafe { slots.add(slot) };
            // SAFETY: as above, and the allocation is ours alone.
            unsafe { slot.write(AtomicU32::new(EMPTY)) };
        }
    }

    /// The index, while it is private.
    pub(crate) fn get(&self) -> Index<'_> {
        Index {
            header: self.0,
            guard: PhantomData,
        }
    }

    /// Copies the segment table of a frozen index.
    pub(crate) fn copy_segments(&self, from: Index<'_>) {
        for (to, from) in self.get().segments().iter().zip(from.segments()) {
            // Acquire: pairs with the CAS that installed the segment; the root's CAS passes it on.
            let records = from.load(Ordering::Acquire);
            if records != frozen_segment() {
                // Relaxed: private; the root's CAS publishes it.
                to.store(records, Ordering::Relaxed);
            }
        }
    }

    /// Makes `segments` the first ones of the table.
    pub(crate) fn set_segments(&self, segments: &[NonNull<Record>]) {
        for (to, records) in self.get().segments().iter().zip(segments) {
            // Relaxed: private; the root's CAS publishes it.
            to.store(records.as_ptr(), Ordering::Relaxed);
        }
    }

    /// Puts a record into the first EMPTY slot of its probe sequence; `false` where that is full.
    #[must_use]
    pub(crate) fn place(&mut self, number: u32, hash: u64) -> bool {
        let index = self.get();
        let probe = index.probe(hash);
        let buckets = index.header().shape.buckets;
        let mut bucket = probe.bucket;
        for _ in 0..buckets.min(PROBED_BUCKETS) {
            let line = index.bucket(bucket);
            let empty = from_offset(ends(line), probe.offset);
            if empty != 0 {
                // Relaxed: private; the root's CAS publishes it.
                line[first(empty, probe.offset)].store(probe.tag | (number + 1), Ordering::Relaxed);
                return true;
            }
            bucket = following(bucket, buckets);
        }
        false
    }

    /// Leaves the index to the root that points to it now.
    pub(crate) fn publish(self) {
        std::mem::forget(self);
    }
}

impl Drop for NewIndex {
    fn drop(&mut self) {
        // SAFETY: it was never published. Its segments belong to the slab.
        unsafe { Header::free(self.0.as_ptr()) };
    }
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
        if let Some(free_key) = index.header().takes_slab.get() {
            // SAFETY: as above; the slab's records go with the last index that had it.
            unsafe { index.free_records(free_key, Moved::Yes) };
        }
        // SAFETY: as above.
        let header = unsafe { object.read() };
        let layout = header.shape.layout();
        drop(header);
        // SAFETY: `NewIndex::new` allocated it with this layout.
        unsafe { dealloc(object.cast(), layout) };
    }

    fn bytes(&self) -> usize {
        let records = self.takes_slab.get().map_or(0, |_| self.slab.numbers() as usize);
        self.shape.layout().size() + records * size_of::<Record>()
    }

    #[cfg(loom)]
    fn fate(&self) -> &Fate {
        &self.fate
    }
}

const _: () = assert!(cfg!(loom) || size_of::<Header>() == 64);
const _: () = assert!(offset_of!(Header, slab) == 0);
