//! Replaces a shard's index: to grow it, to shed tombstones, to change its probe sequences.
//!
//! Each thread that meets a FROZEN slot does the whole rebuild alone, on a private copy, so it never waits for the
//! thread that began. Only one copy wins the CAS of the root; the others are freed.
//!
//! # Before the freeze
//!
//! A frozen index makes every inserting thread copy it, so that all copies but one are wasted. Two threads that
//! inserted a million keys copied nearly each index twice. So one thread, whose insertion reaches the limit of an
//! index, copies the index before it freezes anything. The others insert up to a second limit ([`most_used`]). Each
//! thread rebuilds only beyond the second limit, for example if the first thread was stopped or had no memory.
//!
//! The sweeper may shed tombstones slowly, but must not pause for as long as a rebuild of a large index takes. So it
//! clears and copies a large index in parts, some buckets at a time ([`Rebuild`]). If insertions make the shard too
//! large for the copy meanwhile, the next part begins another copy.
//!
//! Meanwhile other threads may fill slots of buckets that were already copied. The end of the rebuild freezes each slot
//! that was EMPTY, and copies the slots that were filled since. Slots are written once (invariant 1), so the rest of
//! the copy is still right. The end reads no record that was copied before.
//!
//! A tombstone that such a copy leaves out is RETIRED while its index is still the root. If its key is inserted again
//! meanwhile, the key gets another record, as after a rebuild that lost (invariant 6). A copy that is given up leaves
//! RETIRED records in the index; the next rebuild leaves them out.

use std::sync::atomic::AtomicPtr;

use crate::growth::{buckets_for, most_used};
use crate::layout::{MAX_RECORDS, SLOTS_PER_BUCKET};
use crate::liveness::Liveness;
use crate::mem::segments::Location;
use crate::shard::index::{Index, Shape};
use crate::shard::key::Key;
use crate::shard::new_index::{NewIndex, UnclearedIndex};
use crate::shard::published::Published;
use crate::shard::{CapacityError, Scope, Shard, reserve};
use crate::sync::failpoint;
use crate::word::{State, Word};

/// How often the seed may change before the index grows instead.
const MAX_RESEEDS: u32 = 2;

/// The sweeper rebuilds an index of at most this many buckets at once, which takes a tenth of a millisecond.
const AT_ONCE: u32 = if cfg!(loom) { 0 } else { 128 };

/// A bit for each slot of a bucket.
const ALL_SLOTS: u16 = ((1_u32 << SLOTS_PER_BUCKET) - 1) as u16;

/// Buckets that the sweeper copies in the time in which it visits 64 records.
const BUCKETS_PER_64: u32 = if cfg!(loom) { 1 } else { 8 };

/// Buckets that the sweeper clears in the time in which it copies one.
const CLEARED_PER_COPIED: u32 = 16;

impl<K: Key> Shard<K> {
    /// Replaces `old` with a copy without its tombstones, unless another thread does so first. When this returns `Ok`,
    /// `old` is no longer the root's index.
    ///
    /// `crowded`: a probe sequence of `old` was full.
    pub(crate) fn rebuild<P: Liveness>(
        &self,
        old: Index<'_>,
        crowded: bool,
        scope: &Scope<'_, P>,
    ) -> Result<(), CapacityError> {
        old.freeze();
        failpoint("rebuild: frozen");
        let mut shape = next_shape(old, crowded);
        loop {
            let mut rebuild = Rebuild::new(old, shape)?;
            match rebuild.copy::<K, P>(old, u32::MAX, scope)? {
                CopyEnd::All => {
                    self.publish(old, rebuild, scope);
                    return Ok(());
                }
                CopyEnd::Moving => return self.compact(old, scope),
                // The records that were left out are RETIRED, so the next copy leaves them out again.
                CopyEnd::Crowded => shape = crowded_shape(shape),
                CopyEnd::Part => unreachable!("an index has fewer than u32::MAX buckets"),
            }
        }
    }

    /// [`rebuild`](Shard::rebuild) that freezes `old` last, so that other threads may insert into `old` nearly all the
    /// time.
    pub(crate) fn rebuild_ahead<P: Liveness>(&self, old: Index<'_>, scope: &Scope<'_, P>) -> Result<(), CapacityError> {
        let mut rebuild = Rebuild::new(old, next_shape(old, false))?;
        let copied = rebuild.copy::<K, P>(old, u32::MAX, scope)?;
        if matches!(copied, CopyEnd::All) && self.finish(old, rebuild, scope)? {
            return Ok(());
        }
        self.rebuild(old, false, scope)
    }

    /// [`rebuild`](Shard::rebuild) for the sweeper. A call takes about as long as visiting `records` records, except
    /// for the last part. Keeps an unfinished copy in `parked`. Returns whether there is more to do.
    pub(crate) fn rebuild_part<P: Liveness>(
        &self,
        old: Index<'_>,
        records: u32,
        parked: &RebuildSlot,
        scope: &Scope<'_, P>,
    ) -> Result<bool, CapacityError> {
        let serial = old.shape().serial;
        let park = |phase| {
            parked.put(PartialRebuild {
                shard: self.number,
                serial,
                phase,
            });
            Ok(true)
        };
        let next = next_shape(old, false);
        let partial = parked.take().filter(|partial| partial.is_of(self.number, serial));
        // Insertions may have made the shard too large for the copy. They would fill the copy, and then one step would
        // copy the whole index.
        let partial = partial.filter(|partial| partial.phase.shape().buckets >= next.buckets);
        let buckets = (records / 64 + 1).saturating_mul(BUCKETS_PER_64);
        let mut rebuild = match partial.map(|partial| partial.phase) {
            None if old.shape().buckets <= AT_ONCE => return self.rebuild(old, false, scope).map(|()| false),
            None => {
                let new = UnclearedIndex::new(old.shared_slab(), next).ok_or(CapacityError::Memory)?;
                return park(Phase::Clear(new));
            }
            Some(Phase::Clear(mut new)) => {
                new.clear(buckets.saturating_mul(CLEARED_PER_COPIED));
                return park(match new.cleared() {
                    Ok(new) => Phase::Copy(Rebuild::into(new, old)?),
                    Err(new) => Phase::Clear(new),
                });
            }
            Some(Phase::Copy(rebuild)) => rebuild,
        };
        match rebuild.copy::<K, P>(old, buckets, scope)? {
            CopyEnd::Part => return park(Phase::Copy(rebuild)),
            CopyEnd::All if self.finish(old, rebuild, scope)? => return Ok(false),
            CopyEnd::All | CopyEnd::Crowded | CopyEnd::Moving => {}
        }
        self.rebuild(old, false, scope).map(|()| false)
    }

    /// Ends a rebuild that has copied all of `old` without freezing it. Returns `false` if the copy is of no use.
    fn finish<P: Liveness>(
        &self,
        old: Index<'_>,
        mut rebuild: Rebuild,
        scope: &Scope<'_, P>,
    ) -> Result<bool, CapacityError> {
        failpoint("rebuild: copied");
        let CopyEnd::All = rebuild.copy_late::<K, P>(old, scope)? else {
            return Ok(false);
        };
        old.freeze_segments();
        self.publish(old, rebuild, scope);
        Ok(true)
    }

    /// Makes a copy of `old` the root's index, unless another thread has replaced `old` first.
    fn publish<P: Liveness>(&self, old: Index<'_>, rebuild: Rebuild, scope: &Scope<'_, P>) {
        let Rebuild { new, left_out, .. } = rebuild;
        new.copy_segments(old);
        failpoint("rebuild: before the root");
        if self.replace_root(old, &new) {
            failpoint("rebuild: root replaced");
            new.publish();
            old.slab().slots_left_out(left_out.len() as u32);
            // SAFETY: this thread's CAS in `replace_root` unlinked `old` (invariant 8).
            unsafe { old.retire(left_out, scope.guard) };
        }
    }

    /// Whether shedding tombstones is worth a rebuild: more than a 32nd of the occupied slots are tombstones.
    pub(crate) fn is_littered(index: Index<'_>) -> bool {
        let (used, live) = (index.slab().used(), index.slab().live());
        used.saturating_sub(live) > used / 32 + SLOTS_PER_BUCKET / 2
    }
}

pub(crate) fn is_tombstone(word: Word) -> bool {
    matches!(word.state(), State::Dead | State::Retired)
}

/// An unfinished copy of an index, private to its holder.
pub(crate) struct Rebuild {
    new: NewIndex,
    /// For each copied bucket of the old index, the slots whose records were copied or left out.
    done: Vec<u16>,
    /// The numbers of RETIRED records, which the new index does not have.
    left_out: Vec<u32>,
}

/// How far a copy has come.
enum CopyEnd {
    Part,
    All,
    /// A probe sequence of the new index is full.
    Crowded,
    /// The copy has met a record with a frozen word.
    Moving,
}

impl Rebuild {
    fn new(old: Index<'_>, shape: Shape) -> Result<Rebuild, CapacityError> {
        let new = NewIndex::new(old.shared_slab(), shape).ok_or(CapacityError::Memory)?;
        Self::into(new, old)
    }

    /// A copy of `old` in the empty index `new`.
    fn into(new: NewIndex, old: Index<'_>) -> Result<Rebuild, CapacityError> {
        let mut done = Vec::new();
        reserve(&mut done, old.shape().buckets as usize)?;
        Ok(Rebuild {
            new,
            done,
            left_out: Vec::new(),
        })
    }

    /// Copies the next `most` buckets. Each record goes directly to its slot: a list of records would be as large as
    /// the index.
    fn copy<K: Key, P>(&mut self, old: Index<'_>, most: u32, scope: &Scope<'_, P>) -> Result<CopyEnd, CapacityError> {
        let buckets = old.shape().buckets;
        let from = self.done.len() as u32;
        let until = buckets.min(from.saturating_add(most));
        self.done.resize(until as usize, 0);
        let mut occupied = old.occupied_in(from..until);
        while let Some((number, record)) = occupied.next() {
            let (bucket, slot) = occupied.position();
            self.done[bucket as usize] |= 1 << slot;
            if let Some(stop) = self.copy_record::<K, P>(number, record, scope)? {
                return Ok(stop);
            }
        }
        Ok(if until == buckets { CopyEnd::All } else { CopyEnd::Part })
    }

    /// Freezes the slots that were EMPTY when `copy` reached them, and copies the slots that were filled since.
    fn copy_late<K: Key, P>(&mut self, old: Index<'_>, scope: &Scope<'_, P>) -> Result<CopyEnd, CapacityError> {
        for bucket in 0..self.done.len() {
            let mut left = !self.done[bucket] & ALL_SLOTS;
            while left != 0 {
                let slot = left.trailing_zeros() as usize;
                left &= left - 1;
                if let Some((number, record)) = old.freeze_slot(bucket as u32, slot)
                    && let Some(stop) = self.copy_record::<K, P>(number, record, scope)?
                {
                    return Ok(stop);
                }
            }
        }
        Ok(CopyEnd::All)
    }

    /// Copies a record or leaves it out, unless the copy has to stop.
    // Always inlined: an insertion pays for five copies of a record, by growth, and each call would cost 20
    // instructions.
    #[inline(always)]
    fn copy_record<K: Key, P>(
        &mut self,
        number: u32,
        record: Published<'_>,
        scope: &Scope<'_, P>,
    ) -> Result<Option<CopyEnd>, CapacityError> {
        failpoint("rebuild: mid copy");
        match retire_tombstone(record) {
            RecordKind::Tombstone => {
                // Without memory for its number, the record stays RETIRED in the old index, for the next rebuild.
                reserve(&mut self.left_out, 1)?;
                self.left_out.push(number);
            }
            RecordKind::Kept if self.new.place(number, K::hash_stored(record.key(), scope.hasher)) => {}
            RecordKind::Kept => return Ok(Some(CopyEnd::Crowded)),
            RecordKind::Moving => return Ok(Some(CopyEnd::Moving)),
        }
        Ok(None)
    }
}

/// A rebuild in parts, between two parts.
pub(crate) struct PartialRebuild {
    shard: u16,
    /// The serial of the index that is copied. Its address would not do: it could be reused.
    serial: u32,
    phase: Phase,
}

/// What the next part of a rebuild does.
enum Phase {
    /// It clears slots of the new index.
    Clear(UnclearedIndex),
    /// It copies.
    Copy(Rebuild),
}

impl Phase {
    /// The shape of the new index.
    fn shape(&self) -> Shape {
        match self {
            Phase::Clear(new) => new.shape(),
            Phase::Copy(rebuild) => rebuild.new.get().shape(),
        }
    }
}

// SAFETY: the new index is private, so no other thread touches it at the same time. Its header owns an `Arc` of a slab
// that all threads share. Its cells are empty until the index itself is replaced; the rest is atomics and numbers.
unsafe impl Send for PartialRebuild {}

impl PartialRebuild {
    fn is_of(&self, shard: u16, serial: u32) -> bool {
        (self.shard, self.serial) == (shard, serial)
    }
}

/// Where the sweeper keeps its unfinished rebuild between two parts. If several threads sweep, one of them takes the
/// rebuild; another thread finds none and begins a new rebuild, so no thread waits.
///
/// It uses an atomic of `std` even under loom: a thread that takes a rebuild has it alone, so no protocol depends on
/// it.
#[derive(Debug)]
pub(crate) struct RebuildSlot(AtomicPtr<PartialRebuild>);

impl Default for RebuildSlot {
    fn default() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }
}

impl RebuildSlot {
    fn take(&self) -> Option<Box<PartialRebuild>> {
        // Acquire: pairs with the Release in `put`, so that the whole rebuild is visible. The null publishes nothing.
        let partial = self.0.swap(std::ptr::null_mut(), std::sync::atomic::Ordering::Acquire);
        // SAFETY: `put` stored only pointers from `Box::into_raw`, and the swap removed this one, so no other thread
        // has it.
        (!partial.is_null()).then(|| unsafe { Box::from_raw(partial) })
    }

    fn put(&self, partial: PartialRebuild) {
        let partial = Box::into_raw(Box::new(partial));
        // AcqRel: Release pairs with the Acquire in `take`; Acquire pairs with the Release of another `put`, whose
        // rebuild is dropped here.
        let other = self.0.swap(partial, std::sync::atomic::Ordering::AcqRel);
        if !other.is_null() {
            // SAFETY: another `put` stored a pointer from `Box::into_raw`, and this swap removed it, so no other thread
            // has it.
            drop(unsafe { Box::from_raw(other) });
        }
    }
}

impl Drop for RebuildSlot {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// The kind of a record that a rebuild finds in a slot.
enum RecordKind {
    /// The copy has the record.
    Kept,
    /// The record is RETIRED, and the copy leaves it out.
    Tombstone,
    /// The record has a frozen word.
    Moving,
}

/// Makes a DEAD record RETIRED, so that its key cannot use the record again (invariant 6). The record stays RETIRED,
/// even if another copy wins the root.
fn retire_tombstone(record: Published<'_>) -> RecordKind {
    let mut word = record.load();
    loop {
        match word.state() {
            _ if word.is_frozen() => return RecordKind::Moving,
            State::Live | State::Spill => return RecordKind::Kept,
            State::Retired => return RecordKind::Tombstone,
            State::Dead => match record.compare_exchange(word, Word::RETIRED) {
                Ok(()) => return RecordKind::Tombstone,
                Err(won) => word = won,
            },
        }
    }
}

/// The shape of the index that follows `old`.
fn next_shape(old: Index<'_>, crowded: bool) -> Shape {
    let shape = Shape {
        serial: old.shape().serial.wrapping_add(1),
        ..old.shape()
    };
    // How many records stay is known only at the end. The slab's count is close enough: its error is at most the number
    // of changes that other threads have not finished.
    let keep = old.slab().live();
    let buckets = buckets_for(keep, old.slab().shard);
    // Numbers that will be reclaimed are not free yet. So the segment table covers the whole slab, and the numbers that
    // the index takes until it is full.
    let numbers = most_used(buckets).max(old.slab().numbers()) + SLOTS_PER_BUCKET;
    let segments = Location::segments(numbers.min(MAX_RECORDS)).max(shape.segments);
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

/// The shape to try after a probe sequence was full: other probe sequences, or a larger index after enough seed
/// changes.
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
