//! The moment at which a proxy's new number takes the place of its old one.
//!
//! Two places say which number an ID has: the map of IDs, and the old number's life. No thread can change both at once. So
//! the registry's owner first announces the two numbers here, then makes the old one DEAD, and only then changes the map.
//! The death is the moment: before it, readers find the old number; after it, they find a DEAD number in the map, and the
//! new one here or in the map. Nobody finds the new number while routes of the old one are still returned.

use crate::sync::{AtomicU64, Ordering};

/// The old number plus one, and below it the new one; or zero. Only the registry's owner writes it.
#[derive(Debug, Default)]
pub(crate) struct Takeover(AtomicU64);

const NEW_BITS: u32 = 32;

impl Takeover {
    /// Says that `new` has the ID of `old` once `old` is DEAD.
    pub(crate) fn announce(&self, old: u32, new: u32) {
        let word = (u64::from(old) + 1) << NEW_BITS | u64::from(new);
        // Relaxed: published by the death of `old`, which readers see first.
        self.0.store(word, Ordering::Relaxed);
    }

    /// Says that the map has the new number.
    pub(crate) fn end(&self) {
        // Release: pairs with `successor`: a reader that finds nothing here finds the new number in the map.
        self.0.store(0, Ordering::Release);
    }

    /// The number that takes the place of one that was seen DEAD, unless the map has it already.
    pub(crate) fn successor(&self, old: u32) -> Option<u32> {
        // Acquire: pairs with `end`.
        let word = self.0.load(Ordering::Acquire);
        (word >> NEW_BITS == u64::from(old) + 1).then_some(word as u32)
    }
}
