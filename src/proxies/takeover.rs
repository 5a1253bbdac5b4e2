//! The moment at which a proxy's new number replaces its old number.
//!
//! Two places decide which number an ID has: the map of IDs, and the old number's life. No thread can change both at
//! once. So the registry's owner first announces the two numbers here, then makes the old number DEAD, and only then
//! changes the map. The takeover happens at the moment when the old number becomes DEAD. Before that, readers find the
//! old number. After that, they find a DEAD number in the map, and the new number here or in the map. No reader finds
//! the new number while routes of the old number are still returned.

use crate::sync::{AtomicU64, Ordering};

/// The old number plus one in the upper half, the new number in the lower half; zero if no takeover is under way. Only
/// the registry's owner writes it.
#[derive(Debug, Default)]
pub(crate) struct Takeover(AtomicU64);

const NEW_BITS: u32 = 32;

impl Takeover {
    /// Announces that `new` has the ID of `old` from the moment when `old` is DEAD.
    pub(crate) fn announce(&self, old: u32, new: u32) {
        let word = (u64::from(old) + 1) << NEW_BITS | u64::from(new);
        // Release: pairs with the load in `successor`. A reader that followed an earlier takeover may find this
        // takeover instead of the earlier one's end. The reader must then find the earlier takeover's new number in the
        // map. (For readers of this takeover, the DEAD life of `old` makes the word visible.)
        self.0.store(word, Ordering::Release);
    }

    /// Ends the takeover, after the map has the new number.
    pub(crate) fn end(&self) {
        // Release: pairs with the load in `successor`: a reader that finds zero here finds the new number in the map.
        self.0.store(0, Ordering::Release);
    }

    /// The number that replaces `old`, which was seen DEAD; `None` if no takeover of `old` has been announced.
    pub(crate) fn successor(&self, old: u32) -> Option<u32> {
        // Acquire: pairs with the stores in `announce` and `end`.
        let word = self.0.load(Ordering::Acquire);
        (word >> NEW_BITS == u64::from(old) + 1).then_some(word as u32)
    }
}
