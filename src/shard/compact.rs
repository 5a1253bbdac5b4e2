//! Moves a sparse shard to a new slab, so that memory shrinks with the number of routes.
//!
//! A rebuild leaves the records in place, so a slab never shrinks. When most of a shard's records are free, the others
//! move. Freeze the index, and then set FROZEN on the word of each record of the index. Copy the records with their
//! words to a new slab under a new index, and CAS the root. A frozen word is final, but its routes are still valid, so
//! look-ups continue. A thread that wants to *change* a frozen word finishes the move first, on its own private copy.
//! Lists and names are not copied: the new record points to the lists and names of the old record. The losers of the
//! CAS free only their own allocations.
//!
//! A rebuild that meets a frozen word becomes a move. A rebuild that passed the word before it was frozen may still
//! win. Then the new root has frozen words, and a thread that meets one moves that root's shard.

use crate::layout::SLOTS_PER_BUCKET;
use crate::liveness::Liveness;
use crate::shard::bulk_load::NewSegments;
use crate::shard::index::{Index, Shape};
use crate::shard::key::Key;
use crate::shard::rebuild::is_tombstone;
use crate::shard::slab::Slab;
use crate::shard::{CapacityError, Scope, Shard};
use crate::sync::failpoint;

impl<K: Key> Shard<K> {
    /// Whether a move is worthwhile: more than a third of the records have no route. A move cannot be done in parts, so
    /// it does not start earlier.
    pub(crate) fn is_sparse(index: Index<'_>) -> bool {
        let (numbers, live) = (index.slab().numbers(), index.slab().live());
        numbers.saturating_sub(live) > numbers / 3 + SLOTS_PER_BUCKET
    }

    /// Moves the records of `old` to a new slab, unless another thread does so first. When this returns `Ok`, `old` is
    /// no longer the root's index.
    pub(crate) fn compact<P: Liveness>(&self, old: Index<'_>, scope: &Scope<'_, P>) -> Result<(), CapacityError> {
        old.freeze();
        failpoint("move: frozen");
        let mut staying = NewSegments::default();
        let mut count = 0;
        for (_, record) in old.occupied() {
            failpoint("move: mid freeze");
            let word = record.freeze().thawed();
            if !is_tombstone(word) {
                if !staying.push(record.key(), word) {
                    return Err(CapacityError::Memory);
                }
                count += 1;
            }
        }
        let slab = Slab::of_live(count, old.slab().move_count.wrapping_add(1), self.number);
        let Shape { seed, serial, .. } = old.shape();
        let new = staying
            .index::<K>(slab, seed, serial.wrapping_add(1), scope.hasher, false)
            .map_err(|_| CapacityError::Memory)?;
        failpoint("move: before the root");
        if self.replace_root(old, &new) {
            failpoint("move: root replaced");
            new.publish();
            staying.publish();
            // SAFETY: the CAS in `replace_root` unlinked `old` (invariant 8). The new root has another slab, whose
            // records have the lists and names of the records that moved.
            unsafe { old.retire_with_slab::<K>(scope.guard) };
        }
        Ok(())
    }
}
