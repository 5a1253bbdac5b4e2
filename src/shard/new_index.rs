//! A private index.

#[cfg(not(loom))]
use std::alloc::alloc;
use std::alloc::alloc_zeroed;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::layout::SLOTS_PER_BUCKET;
use crate::shard::bucket::{ends, first, from_offset};
#[cfg(loom)]
use crate::shard::index::EMPTY;
use crate::shard::index::{Header, Index, Shape, TakesSlab, frozen_segment, segments_at};
use crate::shard::probe::{PROBED_BUCKETS, following};
#[cfg(loom)]
use crate::shard::slab::Record;
use crate::shard::slab::{NewSegment, Slab};
#[cfg(loom)]
use crate::sync::{AtomicPtr, AtomicU32, epoch::Fate};
use crate::sync::{Ordering, Reclaim};

/// An index that no other thread can reach. Dropping it frees it.
pub(crate) struct NewIndex(NonNull<Header>);

// SAFETY: only the owner of this value reaches the header and its cells. Threads share the slab, which has atomics
// only.
unsafe impl Send for NewIndex {}

impl NewIndex {
    /// Allocates an empty index over `slab`; `None` if there is no memory.
    pub(crate) fn new(slab: Arc<Slab>, shape: Shape) -> Option<NewIndex> {
        // SAFETY: the layout has a header, so its size is not zero.
        let memory = unsafe { alloc_zeroed(shape.layout()) };
        // SAFETY: the memory has this layout, and is only this thread's.
        let index = unsafe { Self::with_header(memory, slab, shape) }?;
        // Without loom, zeroed memory is EMPTY slots and a table without segments.
        #[cfg(loom)]
        index.initialize();
        Some(index)
    }

    /// Writes the header of an index; `None` if `memory` is null.
    ///
    /// # Safety
    ///
    /// `memory` was allocated with the shape's layout, and only this thread has it. The caller writes the slots and the
    /// segment table before any code reads them.
    unsafe fn with_header(memory: *mut u8, slab: Arc<Slab>, shape: Shape) -> Option<NewIndex> {
        let header = NonNull::new(memory.cast::<Header>())?;
        let new = Header {
            slab,
            shape,
            left_out: Cell::new(None),
            takes_slab: Cell::new(TakesSlab::No),
            #[cfg(loom)]
            fate: Fate::default(),
        };
        // SAFETY: the allocation starts with room for a header, and only this thread has the allocation.
        unsafe { header.write(new) };
        Some(NewIndex(header))
    }

    #[cfg(loom)]
    fn initialize(&self) {
        let shape = self.get().shape();
        // SAFETY: the layout has room for the segment table there.
        let segments = unsafe { self.0.cast::<u8>().add(segments_at(shape.buckets)) }.cast::<AtomicPtr<Record>>();
        for entry in 0..shape.segments as usize {
            // SAFETY: the layout has room for this entry of the segment table.
            let entry = unsafe { segments.add(entry) };
            // SAFETY: the layout has room for this entry, and only this thread has the allocation.
            unsafe { entry.write(AtomicPtr::new(std::ptr::null_mut())) };
        }
        let slots = self.get().slots_ptr();
        for slot in 0..(shape.buckets * SLOTS_PER_BUCKET) as usize {
            // SAFETY: the layout has room for this slot.
            let slot = unsafe { slots.add(slot) };
            // SAFETY: the layout has room for this slot, and only this thread has the allocation.
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
            // Acquire: pairs with the CAS that installed the segment. The root's CAS passes it on.
            let records = from.load(Ordering::Acquire);
            if records != frozen_segment() {
                // Relaxed: private; the root's CAS publishes it.
                to.store(records, Ordering::Relaxed);
            }
        }
    }

    /// Makes `segments` the first segments of the table.
    pub(crate) fn set_segments(&self, segments: &[NewSegment]) {
        for (to, segment) in self.get().segments().iter().zip(segments) {
            // Relaxed: private; the root's CAS publishes it.
            to.store(segment.as_ptr(), Ordering::Relaxed);
        }
    }

    /// Puts a record into the first EMPTY slot of its probe sequence; `false` if the sequence is full.
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

    /// Leaves the index to the root that now points to it.
    pub(crate) fn publish(self) {
        std::mem::forget(self);
    }
}

impl Drop for NewIndex {
    fn drop(&mut self) {
        // SAFETY: the index was never published. Its segments belong to the slab.
        unsafe { Header::free(self.0.as_ptr()) };
    }
}

/// A private index whose slots are cleared part by part. The allocator would clear all of them at once, and the first
/// write to each page of memory interrupts the thread.
pub(crate) struct UnclearedIndex {
    /// Without slots from `cleared` on.
    index: NewIndex,
    /// How many buckets are cleared.
    cleared: u32,
}

impl UnclearedIndex {
    /// Allocates an index over `slab`; `None` if there is no memory.
    pub(crate) fn new(slab: Arc<Slab>, shape: Shape) -> Option<UnclearedIndex> {
        // loom's atomics are no zeroed memory.
        #[cfg(loom)]
        let index = NewIndex::new(slab, shape)?;
        #[cfg(not(loom))]
        let index = Self::allocate(slab, shape)?;
        Some(UnclearedIndex { index, cleared: 0 })
    }

    #[cfg(not(loom))]
    fn allocate(slab: Arc<Slab>, shape: Shape) -> Option<NewIndex> {
        let layout = shape.layout();
        // SAFETY: the layout has a header, so its size is not zero.
        let memory = unsafe { alloc(layout) };
        // SAFETY: the memory has this layout, and is only this thread's. The segment table is written below, and the
        // slots before `cleared` returns the index.
        let index = unsafe { NewIndex::with_header(memory, slab, shape) }?;
        let segments = segments_at(shape.buckets);
        if cfg!(test) {
            // Code that uses a slot that is not cleared finds the number of a record that does not exist.
            // SAFETY: the layout has all bytes from the first slot to its end.
            unsafe {
                index
                    .get()
                    .slots_ptr()
                    .cast::<u8>()
                    .write_bytes(1, segments - size_of::<Header>())
            };
        }
        // SAFETY: the layout has the segment table there.
        let table = unsafe { memory.add(segments) };
        // SAFETY: the segment table goes to the end of the layout. Zeroed memory is a table without segments.
        unsafe { table.write_bytes(0, layout.size() - segments) };
        Some(index)
    }

    pub(crate) fn shape(&self) -> Shape {
        self.index.get().shape()
    }

    /// Clears the next `most` buckets.
    pub(crate) fn clear(&mut self, most: u32) {
        let until = self.shape().buckets.min(self.cleared.saturating_add(most));
        #[cfg(not(loom))]
        {
            // SAFETY: the layout has the slots of this many buckets.
            let first = unsafe {
                self.index
                    .get()
                    .slots_ptr()
                    .add((self.cleared * SLOTS_PER_BUCKET) as usize)
            };
            // SAFETY: the layout has the slots up to `until`. A slot of zero bytes is EMPTY.
            unsafe { first.write_bytes(0, ((until - self.cleared) * SLOTS_PER_BUCKET) as usize) };
        }
        self.cleared = until;
    }

    /// The empty index, or `self` if there is more to clear.
    pub(crate) fn cleared(self) -> Result<NewIndex, UnclearedIndex> {
        if self.cleared < self.shape().buckets {
            return Err(self);
        }
        Ok(self.index)
    }
}
