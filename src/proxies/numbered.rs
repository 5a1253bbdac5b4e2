//! An array that grows without moving what it has, and is read without a lock.

use std::sync::OnceLock;

use crate::place::Place;

/// Elements by number, from zero, in segments that are allocated when a number in them is first needed.
#[derive(Debug)]
pub(crate) struct Numbered<T> {
    segments: Box<[OnceLock<Box<[T]>>]>,
}

impl<T: Default> Numbered<T> {
    /// Room for the numbers below `limit`.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            segments: (0..Place::segments(limit)).map(|_| OnceLock::new()).collect(),
        }
    }

    /// The element of a number, where its segment was needed before.
    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        let place = Place::of(number);
        self.segments
            .get(place.segment as usize)?
            .get()?
            .get(place.offset as usize)
    }

    /// The element of a number below the limit.
    pub(crate) fn ensure(&self, number: u32) -> &T {
        let place = Place::of(number);
        let new = || (0..Place::len(place.segment)).map(|_| T::default()).collect();
        &self.segments[place.segment as usize].get_or_init(new)[place.offset as usize]
    }
}
