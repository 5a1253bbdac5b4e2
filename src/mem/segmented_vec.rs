//! An array that grows without moving its elements, and is read without a lock.

use std::fmt;
use std::ptr;

use crate::mem::segments::Split;
use crate::sync::{AtomicPtr, Ordering};

/// Elements by number, from zero. A segment is allocated when a number in it is first needed; see
/// [`segments`](crate::mem::segments) for the sizes.
pub(crate) struct SegmentedVec<T, const PER_SIZE_BITS: u32> {
    segments: Box<[AtomicPtr<T>]>,
}

// SAFETY: the array owns its elements, like a vector.
unsafe impl<T: Send, const PER_SIZE_BITS: u32> Send for SegmentedVec<T, PER_SIZE_BITS> {}
// SAFETY: the array returns only shared references to its elements.
unsafe impl<T: Send + Sync, const PER_SIZE_BITS: u32> Sync for SegmentedVec<T, PER_SIZE_BITS> {}

impl<T, const PER_SIZE_BITS: u32> fmt::Debug for SegmentedVec<T, PER_SIZE_BITS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentedVec").finish_non_exhaustive()
    }
}

impl<T: Default, const PER_SIZE_BITS: u32> SegmentedVec<T, PER_SIZE_BITS> {
    /// Room for the numbers below `limit`.
    pub(crate) fn new(limit: u32) -> Self {
        let count = Split::<PER_SIZE_BITS>::segments(limit);
        Self {
            segments: (0..count).map(|_| AtomicPtr::new(ptr::null_mut())).collect(),
        }
    }

    /// The element of a number, if its segment was needed before.
    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        let place = Split::<PER_SIZE_BITS>::place(number);
        // Acquire: pairs with the CAS in `ensure`, so that the elements are initialised.
        let segment = self.segments.get(place.segment as usize)?.load(Ordering::Acquire);
        if segment.is_null() {
            return None;
        }
        // SAFETY: a segment of this number has more elements than any offset (`Split::place`).
        let element = unsafe { segment.add(place.offset as usize) };
        // SAFETY: the element was initialised before the segment was installed, and lives as long as the array.
        Some(unsafe { &*element })
    }

    /// The bytes of the segments and of their table. Reads the table, which has some hundred pointers.
    pub(crate) fn bytes(&self) -> usize {
        // Relaxed: a figure for display.
        let is_there = |segment: &AtomicPtr<T>| !segment.load(Ordering::Relaxed).is_null();
        let segments = (0..).zip(&self.segments).filter(|(_, segment)| is_there(segment));
        let elements: usize = segments
            .map(|(number, _)| Split::<PER_SIZE_BITS>::len(number) as usize)
            .sum();
        elements * size_of::<T>() + size_of_val(&*self.segments)
    }

    /// The element of a number below the limit.
    pub(crate) fn ensure(&self, number: u32) -> &T {
        loop {
            if let Some(element) = self.get(number) {
                return element;
            }
            let place = Split::<PER_SIZE_BITS>::place(number);
            let len = Split::<PER_SIZE_BITS>::len(place.segment);
            let new: Box<[T]> = (0..len).map(|_| T::default()).collect();
            let new = Box::into_raw(new);
            // Release: pairs with the load in `get`. Relaxed on failure: the next turn loads the segment that won.
            let installed = self.segments[place.segment as usize].compare_exchange(
                ptr::null_mut(),
                new.cast::<T>(),
                Ordering::Release,
                Ordering::Relaxed,
            );
            if installed.is_err() {
                // SAFETY: the pointer came from `Box::into_raw`, and no other thread has seen it.
                drop(unsafe { Box::from_raw(new) });
            }
        }
    }
}

impl<T, const PER_SIZE_BITS: u32> Drop for SegmentedVec<T, PER_SIZE_BITS> {
    fn drop(&mut self) {
        for (number, segment) in self.segments.iter().enumerate() {
            // Relaxed: dropping the array needs exclusive access.
            let elements = segment.load(Ordering::Relaxed);
            if !elements.is_null() {
                let len = Split::<PER_SIZE_BITS>::len(number as u32) as usize;
                // SAFETY: `ensure` made the segment from a box of this length.
                drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(elements, len)) });
            }
        }
    }
}
