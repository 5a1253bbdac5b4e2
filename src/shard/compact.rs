//! Moving a sparse shard to a new slab: how memory follows the number of routes down.
//!
//! A rebuild leaves the records where they are, so a slab never gets smaller. When most of a shard's records are free,
//! the few that are not move: freeze the index, then set FROZEN on the word of each record that it has, copy the records
//! with their words to a new slab under a new index, CAS the root. A frozen word is final, and still says what it said,
//! so look-ups go on; whoever wants to *change* one finishes the move first, on a private copy of its own. Lists and
//! names are not copied: the new record points to the same ones, and the losers of the CAS free only what they allocated.
//!
//! A rebuild that meets a frozen word becomes a move. One that does not, because it had passed that word already, may
//! still win; then the new root has frozen words, and whoever meets one moves that root's shard.

use crate::layout::BUCKET;
use crate::liveness::Liveness;
use crate::shard::bulk_load::NewShard;
use crate::shard::index::{Index, Shape};
use crate::shard::key::Key;
use crate::shard::rebuild::is_tombstone;
use crate::shard::slab::Slab;
use crate::shard::{Refused, Scope, Shard, reserve};
use crate::sync::step;
use crate::word::Word;

impl<K: Key> Shard<K> {
    /// Whether moving is worth it: more than a third of the records have no route. A move cannot be done in parts, so it does
    /// not begin earlier.
    pub(crate) fn is_sparse(index: Index<'_>) -> bool {
        let (numbers, live) = (index.slab().numbers(), index.slab().live());
        numbers.saturating_sub(live) > numbers / 3 + BUCKET
    }

    /// Moves the records of `old` to a new slab, unless another thread does so first. When this returns `Ok`, `old` is not the
    /// root's index any more.
    pub(crate) fn compact<P: Liveness>(&self, old: Index<'_>, scope: &Scope<'_, P>) -> Result<(), Refused> {
        old.freeze();
        step("move: frozen");
        let mut staying: Vec<([u64; 2], Word)> = Vec::new();
        reserve(&mut staying, old.slab().live() as usize)?;
        for (_, record) in old.occupied() {
            step("move: mid freeze");
            let word = record.freeze().thawed();
            if !is_tombstone(word) {
                reserve(&mut staying, 1)?;
                staying.push((record.key(), word));
            }
        }
        let slab = Slab::of_live(staying.len() as u32, old.slab().generation.wrapping_add(1), self.number);
        let Shape { seed, serial, .. } = old.shape();
        let new =
            NewShard::build::<K, P>(slab, &staying, seed, serial.wrapping_add(1), scope).ok_or(Refused::Memory)?;
        step("move: before the root");
        if self.replace_root(old, new.index()) {
            step("move: root replaced");
            new.publish();
            // SAFETY: the CAS in `replace_root` unlinked it, and the new root has another slab. The records that moved
            // took their lists and names along.
            unsafe { old.retire_with_slab(K::free, scope.guard) };
        }
        Ok(())
    }
}
