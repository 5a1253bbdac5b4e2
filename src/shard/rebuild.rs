//! Replacing a shard's index: to grow it, to shed tombstones, to change its probe sequences.
//!
//! Whoever meets a FROZEN slot does the whole of it alone, on a private copy, so nobody ever waits for the thread that
//! began. Only one copy wins the CAS of the root; the others are freed unseen.

use crate::key::Key;
use crate::place::Place;
use crate::proxies::Liveness;
use crate::shard::capacity::{buckets_for, max_used};
use crate::shard::index::{BUCKET, Index, MAX_RECORDS, NewIndex, Shape};
use crate::shard::slab::Record;
use crate::shard::word::{State, Word};
use crate::shard::{Refused, Scope, Shard, reserve};
use crate::sync::step;

/// How often the seed may change before the index grows instead.
const MAX_RESEEDS: u32 = 2;

impl<K: Key> Shard<K> {
    /// Replaces `old` by a copy without its tombstones, unless somebody else does so first. Whether or not `old` was
    /// the root's, it is not when this returns `Ok`.
    ///
    /// `crowded`: a probe sequence of `old` was full.
    pub(crate) fn rebuild<P: Liveness>(
        &self,
        old: Index<'_>,
        crowded: bool,
        scope: &Scope<'_, P>,
    ) -> Result<(), Refused> {
        old.freeze();
        step("rebuild: frozen");
        // How many stay is known only at the end; the count that is kept is as good, off by no more than what other threads
        // are about. Records go straight to their slots: a list of them would be as large as the index.
        let mut shape = next_shape(old, old.slab().live(), crowded, scope.shard);
        loop {
            let mut new = NewIndex::new(old.shared_slab(), shape).ok_or(Refused::Memory)?;
            let mut left_out = Vec::new();
            let mut has_room = true;
            for (number, record) in old.occupied() {
                step("rebuild: mid copy");
                match retire_tombstone(record) {
                    Found::Tombstone => {
                        // Without memory for its number it stays, RETIRED, for the next rebuild.
                        reserve(&mut left_out, 1)?;
                        left_out.push(number);
                    }
                    Found::Kept => has_room = new.place(number, K::hash_stored(record.key(), scope.hasher)),
                    Found::Moving => return self.relocate(old, scope),
                }
                if !has_room {
                    break;
                }
            }
            if !has_room {
                // What was left out is RETIRED, and is left out again.
                shape = crowded_shape(shape);
                continue;
            }
            new.copy_segments(old);
            step("rebuild: before the root");
            if self.replace_root(old, &new) {
                step("rebuild: root replaced");
                new.publish();
                old.slab().slots_left_out(left_out.len() as u32);
                // SAFETY: the CAS in `replace_root` unlinked it.
                unsafe { old.retire(left_out, scope.guard) };
            }
            return Ok(());
        }
    }

    /// Whether shedding tombstones is worth a rebuild: a 32nd of the index's keys are.
    pub(crate) fn is_littered(index: Index<'_>) -> bool {
        let (used, live) = (index.slab().used(), index.slab().live());
        used.saturating_sub(live) > used / 32 + BUCKET / 2
    }
}

pub(crate) fn is_tombstone(word: Word) -> bool {
    matches!(word.state(), State::Dead | State::Retired)
}

/// What a rebuild finds in a slot.
enum Found {
    /// A record that stays.
    Kept,
    /// A record that is RETIRED, and left out.
    Tombstone,
    /// A record with a frozen word.
    Moving,
}

/// Makes a DEAD record RETIRED, so that its key cannot come back in the old index (invariant 6). It stays so whoever wins
/// the root.
fn retire_tombstone(record: &Record) -> Found {
    let mut word = record.load();
    loop {
        match word.state() {
            _ if word.is_frozen() => return Found::Moving,
            State::Live | State::Spill => return Found::Kept,
            State::Retired => return Found::Tombstone,
            State::Dead => match record.compare_exchange(word, Word::RETIRED) {
                Ok(()) => return Found::Tombstone,
                Err(won) => word = won,
            },
        }
    }
}

/// The shape of the index that follows `old` when `keep` records stay.
fn next_shape(old: Index<'_>, keep: u32, crowded: bool, shard: usize) -> Shape {
    let shape = old.shape();
    let buckets = buckets_for(keep, shard);
    // Numbers that are about to be reclaimed are not free yet, so the table is as long as the slab has become, and has
    // room for the index to fill up.
    let numbers = max_used(buckets).max(old.slab().numbers()) + BUCKET;
    let segments = Place::segments(numbers.min(MAX_RECORDS)).max(shape.segments);
    let next = Shape {
        buckets,
        segments,
        ..shape
    };
    match crowded && buckets <= shape.buckets {
        true => crowded_shape(Shape {
            buckets: buckets.max(shape.buckets),
            ..next
        }),
        false => Shape { reseeds: 0, ..next },
    }
}

/// What to try after a probe sequence was full: other sequences, and more room once that was tried.
pub(crate) fn crowded_shape(shape: Shape) -> Shape {
    let seed = shape
        .seed
        .wrapping_mul(0xD129_42F0_6F5C_2C35)
        .wrapping_add(0x9E37_79B9_7F4A_7C15);
    match shape.reseeds < MAX_RESEEDS {
        true => Shape {
            seed,
            reseeds: shape.reseeds + 1,
            ..shape
        },
        false => Shape {
            seed,
            reseeds: 0,
            buckets: shape.buckets + shape.buckets / 4 + 1,
            ..shape
        },
    }
}
