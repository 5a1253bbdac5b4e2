//! A private index.

use std::alloc::alloc_zeroed;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

#[cfg(loom)]
use crate::layout::SLOTS_PER_BUCKET;
use crate::shard::bucket::{ends, first, from_offset};
#[cfg(loom)]
use crate::shard::index::{EMPTY, segments_at};
use crate::shard::index::{Header, Index, Shape, TakesSlab, frozen_segment};
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
        let header = NonNull::new(unsafe { alloc_zeroed(shape.layout()) }.cast::<Header>())?;
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
        let index = NewIndex(header);
        // Without loom, zeroed memory is EMPTY slots and a table without segments.
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
