//! The map from a proxy's ID to its number, a little more than 4 bytes for each.
//!
//! Each part of the map has an array of numbers; the IDs are in the numbers' entries. Only the registry's owner changes
//! the map. Readers need no lock. A number never moves within an array, and an array that is too small or too large is
//! replaced with a copy. So a reader of an array that was just replaced sees the map as it was at that moment. The
//! parts grow one at a time, each with its own sizes, so no registration copies more than one part.
//!
//! An `scc::HashIndex` of numbers takes 12.6 bytes for each of a million proxies, and 27 for each of a thousand. This
//! map takes 5 and 7 (`nodetracker-profiles prototype` and `ten-thousand`).

use std::fmt;
use std::ptr;
use std::sync::Arc;

use ahash::RandomState;

use crate::growth::{MIN_ROOM, next_size};
use crate::proxies::entry::Numbers;
use crate::proxies::id::ProxyId;
#[cfg(loom)]
use crate::sync::epoch::Fate;
use crate::sync::{AtomicPtr, AtomicU32, Guard, Ordering, Reclaim, new_hasher, retire};

const PART_BITS: u32 = if cfg!(loom) { 0 } else { 7 };
pub(super) const PARTS: usize = 1 << PART_BITS;

/// A slot that never had a number: it ends a probe sequence.
const EMPTY: u32 = 0;
/// A slot whose number was removed. No number has this value: numbers have 23 bits.
const REMOVED: u32 = NUMBER_MASK;

/// A slot has the number plus one, and above it some bits of the ID's hash. So a search nearly always reads only the
/// right entry.
const NUMBER_BITS: u32 = 24;
const NUMBER_MASK: u32 = (1 << NUMBER_BITS) - 1;

/// How many numbers ahead a copy prefetches.
const AHEAD: usize = 8;

/// The slots of one part.
struct Array {
    slots: Box<[AtomicU32]>,
    /// The number of slots that are not EMPTY. Only the owner uses this and `count`.
    used: AtomicU32,
    /// The number of slots with a number.
    count: AtomicU32,
    #[cfg(loom)]
    fate: Fate,
}

impl Array {
    fn new(len: u32) -> Array {
        Array {
            slots: (0..len).map(|_| AtomicU32::new(EMPTY)).collect(),
            used: AtomicU32::new(0),
            count: AtomicU32::new(0),
            #[cfg(loom)]
            fate: Fate::default(),
        }
    }

    fn slots(&self) -> &[AtomicU32] {
        #[cfg(loom)]
        self.fate.assert_alive();
        &self.slots
    }

    fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Every slot once, from the place of a hash on.
    fn probe(&self, hash: u64) -> impl Iterator<Item = &AtomicU32> {
        let slots = self.slots();
        // The hash's top bits are the part, its lowest bits the tag.
        let mixed = hash << PART_BITS >> 32;
        let from = ((mixed * slots.len() as u64) >> 32) as usize;
        slots[from..].iter().chain(&slots[..from])
    }

    /// Puts a number that the array does not have into the first slot that is free for it.
    fn put(&self, number: u32, hash: u64) {
        let free = self
            .probe(hash)
            // Relaxed, here and below: only the owner writes slots and counts.
            .find(|slot| matches!(slot.load(Ordering::Relaxed), EMPTY | REMOVED))
            .expect("there is room (`Ids::insert`)");
        if free.load(Ordering::Relaxed) == EMPTY {
            self.used
                .store(self.used.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        self.count
            .store(self.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // Release: pairs with the loads in `find` and `numbers`, so that the number's entry is visible with its ID.
        free.store(slot_for(number, hash), Ordering::Release);
    }

    /// The slot of a number; for the owner.
    fn slot_of(&self, number: u32, hash: u64) -> Option<&AtomicU32> {
        // Relaxed: only the owner writes slots.
        self.probe(hash)
            .find(|slot| number_in(slot.load(Ordering::Relaxed)) == Some(number))
    }

    /// The numbers in the array.
    fn numbers(&self) -> impl Iterator<Item = u32> {
        // Acquire: as in `find`.
        let values = self.slots().iter().map(|slot| slot.load(Ordering::Acquire));
        values.filter_map(number_in)
    }
}

fn tag(hash: u64) -> u32 {
    (hash as u32) << NUMBER_BITS
}

fn slot_for(number: u32, hash: u64) -> u32 {
    tag(hash) | (number + 1)
}

fn number_in(slot: u32) -> Option<u32> {
    (slot != EMPTY && slot != REMOVED).then(|| (slot & NUMBER_MASK) - 1)
}

impl Reclaim for Array {
    fn after_grace(&self) {}

    unsafe fn free(object: *mut Self) {
        // SAFETY: the array came from `Box::into_raw` in `replace`, and the caller has the only pointer to it.
        drop(unsafe { Box::from_raw(object) });
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.slots)
    }

    #[cfg(loom)]
    fn fate(&self) -> &Fate {
        &self.fate
    }
}

/// The map from IDs to numbers.
pub(crate) struct Ids {
    parts: [AtomicPtr<Array>; PARTS],
    numbers: Arc<Numbers>,
    hasher: RandomState,
}

impl fmt::Debug for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ids").finish_non_exhaustive()
    }
}

impl Ids {
    pub(crate) fn new(numbers: Arc<Numbers>) -> Self {
        Self {
            parts: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            numbers,
            hasher: new_hasher(),
        }
    }

    /// The number of IDs, if no other thread changes the map.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn len(&self, guard: &Guard) -> usize {
        (0..PARTS).map(|part| self.numbers(part, guard).count()).sum()
    }

    /// The bytes of the map's arrays.
    pub(crate) fn bytes(&self, guard: &Guard) -> usize {
        (0..PARTS)
            .filter_map(|part| self.array(part, guard))
            .map(Reclaim::bytes)
            .sum()
    }

    fn array<'g>(&'g self, part: usize, _guard: &'g Guard) -> Option<&'g Array> {
        // Acquire: pairs with `replace`, so that the whole array is visible.
        let array = self.parts[part].load(Ordering::Acquire);
        // SAFETY: the part had the array while the guard was pinned, and `replace` retires an array after it is
        // unlinked (E1). So the array is freed only after the guard is dropped (E2).
        unsafe { array.as_ref() }
    }

    /// The number of an ID.
    pub(crate) fn find(&self, id: ProxyId<'_>, guard: &Guard) -> Option<u32> {
        let hash = self.hash(id);
        for slot in self.array(part_of(hash), guard)?.probe(hash) {
            // Acquire: pairs with the stores in `put` and `swap`.
            let value = slot.load(Ordering::Acquire);
            if value == EMPTY {
                return None;
            }
            if (value ^ tag(hash)) >> NUMBER_BITS == 0
                && let Some(number) = number_in(value)
                // The map had the number while the guard was pinned, so its ID is not freed.
                && self.numbers.get(number).is_some_and(|entry| entry.has_id(id, guard))
            {
                return Some(number);
            }
        }
        None
    }

    /// Adds a number whose entry has its ID. The ID must not be in the map yet. For the registry's owner.
    pub(crate) fn insert(&self, number: u32, guard: &Guard) {
        let Some(hash) = self.hash_of(number, guard) else {
            return;
        };
        let part = part_of(hash);
        let has_room = |array: &&Array| {
            // Relaxed: only the owner uses it.
            let used = array.used.load(Ordering::Relaxed);
            used + array.len() / 8 < array.len() - 1
        };
        match self.array(part, guard).filter(has_room) {
            Some(array) => array.put(number, hash),
            None => self.replace(part, Some(number), guard),
        }
    }

    /// Replaces a number with another number of the same ID; for the registry's owner.
    pub(crate) fn swap(&self, old: u32, new: u32, guard: &Guard) {
        let Some(hash) = self.hash_of(old, guard) else {
            return;
        };
        if let Some(slot) = self
            .array(part_of(hash), guard)
            .and_then(|array| array.slot_of(old, hash))
        {
            // Release: as in `put`.
            slot.store(slot_for(new, hash), Ordering::Release);
        }
    }

    /// The numbers of one part. An ID that is in the map all the time is included once: with its present number, or
    /// with a number that was replaced meanwhile.
    pub(crate) fn numbers<'g>(&'g self, part: usize, guard: &'g Guard) -> impl Iterator<Item = u32> + 'g {
        self.array(part, guard).into_iter().flat_map(Array::numbers)
    }

    /// Removes a number whose entry still has its ID; for the registry's owner.
    pub(crate) fn remove(&self, number: u32, guard: &Guard) {
        let Some(hash) = self.hash_of(number, guard) else {
            return;
        };
        let part = part_of(hash);
        let Some(array) = self.array(part, guard) else { return };
        let Some(slot) = array.slot_of(number, hash) else {
            return;
        };
        // Relaxed, all: only the owner writes slots and counts. A reader that still finds the number checks its life.
        slot.store(REMOVED, Ordering::Relaxed);
        let count = array.count.load(Ordering::Relaxed) - 1;
        array.count.store(count, Ordering::Relaxed);
        // Shrink the array when it is less than half full.
        if array.len() > 16 && count < array.len() / 2 {
            self.replace(part, None, guard);
        }
    }

    /// Replaces a part's array with a copy of the right size, which also has the number `more`.
    fn replace(&self, part: usize, more: Option<u32>, guard: &Guard) {
        let old = self.array(part, guard);
        let numbers: Vec<u32> = old.into_iter().flat_map(Array::numbers).chain(more).collect();
        let count = numbers.len() as u32;
        // An eighth stays EMPTY. Without more room, each of the next IDs could replace the array again.
        let least = f64::from(count + 1) * MIN_ROOM * 8.0 / 7.0 + 1.0;
        let new = Array::new(next_size(least, part as f64 / PARTS as f64));
        // Prefetch: other threads wait for the lock meanwhile, and nearly all of the time would be cache misses.
        let ahead = |at: usize| self.numbers.get(*numbers.get(at)?);
        for (at, &number) in numbers.iter().enumerate() {
            if let Some(entry) = ahead(at + 2 * AHEAD) {
                entry.prefetch();
            }
            if let Some(entry) = ahead(at + AHEAD) {
                entry.prefetch_name();
            }
            if let Some(hash) = self.hash_of(number, guard) {
                new.put(number, hash);
            }
        }
        let old = old.map(ptr::from_ref);
        // Release: pairs with the load in `array`. Only the owner writes the pointer.
        self.parts[part].store(Box::into_raw(Box::new(new)), Ordering::Release);
        if let Some(old) = old {
            // SAFETY: the store above unlinked the array. Only the owner replaces arrays, so it is retired only once
            // (E1).
            unsafe { retire(guard, old.cast_mut()) };
        }
    }

    /// The hash of an ID. Its top bits are the part.
    pub(crate) fn hash(&self, id: ProxyId<'_>) -> u64 {
        self.hasher.hash_one(id)
    }

    fn hash_of(&self, number: u32, guard: &Guard) -> Option<u64> {
        self.numbers.get(number).map(|entry| self.hash(entry.id(guard)))
    }
}

/// The first hash of a part.
pub(super) fn first_hash(part: usize) -> u64 {
    match PART_BITS {
        0 => 0,
        bits => (part as u64) << (64 - bits),
    }
}

pub(super) fn part_of(hash: u64) -> usize {
    match PART_BITS {
        0 => 0,
        bits => (hash >> (64 - bits)) as usize,
    }
}

impl Drop for Ids {
    fn drop(&mut self) {
        for part in &self.parts {
            // Relaxed: `&mut self` is exclusive, so every other access happens before this one.
            let array = part.load(Ordering::Relaxed);
            if !array.is_null() {
                // SAFETY: `&mut self` is exclusive, and replaced arrays are no longer in the map, so each array is
                // freed only once.
                unsafe { Array::free(array) };
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::proxies::details::Details;
    use crate::sync::pin;

    fn name(number: u32) -> String {
        format!("proxy-{number}")
    }

    #[test]
    fn the_map_finds_what_it_has_and_nothing_else() {
        let numbers = Arc::new(Numbers::new(20_000));
        let ids = Ids::new(Arc::clone(&numbers));
        let guard = pin();
        let mut expected = HashMap::new();
        let add = |number, expected: &mut HashMap<_, _>| {
            let name = name(number);
            numbers.ensure(number).occupy(ProxyId::of(&name), Details::NONE, 0);
            ids.insert(number, &guard);
            expected.insert(name, number);
        };
        let check = |expected: &HashMap<String, u32>| {
            for number in 0..21_000 {
                let name = name(number);
                assert_eq!(ids.find(ProxyId::of(&name), &guard), expected.get(&name).copied());
            }
        };
        let size = || -> u32 {
            (0..PARTS)
                .filter_map(|part| ids.array(part, &guard))
                .map(|a| a.len())
                .sum()
        };
        (0..20_000).for_each(|number| add(number, &mut expected));
        check(&expected);
        let full = size();
        assert!(full < 20_000 * 3 / 2, "{full} slots");
        for number in (0..20_000).filter(|number| number % 10 != 0) {
            ids.remove(number, &guard);
            expected.remove(&name(number));
        }
        check(&expected);
        assert!(size() < full / 4, "{} slots of {full}", size());
        for number in (0..20_000).filter(|number| number % 10 == 5) {
            // The entry still has the ID.
            ids.insert(number, &guard);
            expected.insert(name(number), number);
        }
        check(&expected);
    }

    /// While IDs come and go at one count, an array is replaced only after some of its slots are used up.
    #[test]
    fn ids_that_come_and_go_seldom_replace_an_array() {
        const COMING: usize = 64;
        let numbers = Arc::new(Numbers::new(1 << 20));
        let ids = Ids::new(Arc::clone(&numbers));
        let guard = pin();
        let mut in_first_part = (0..).filter(|&number| {
            let name = name(number);
            let is_in = part_of(ids.hash(ProxyId::of(&name))) == 0;
            if is_in {
                numbers.ensure(number).occupy(ProxyId::of(&name), Details::NONE, 0);
            }
            is_in
        });
        let coming: Vec<u32> = in_first_part.by_ref().take(COMING).collect();
        let mut worst = Vec::new();
        for (count, stays) in in_first_part.take(1_000).enumerate() {
            ids.insert(stays, &guard);
            let mut replaced = 0;
            for &number in &coming {
                for change in [Ids::insert, Ids::remove] {
                    let before = ids.parts[0].load(Ordering::Relaxed);
                    change(&ids, number, &guard);
                    replaced += usize::from(ids.parts[0].load(Ordering::Relaxed) != before);
                }
            }
            worst.push((replaced, count));
        }
        worst.sort_unstable();
        // A new array has room for at least three in a hundred more.
        for (replaced, count) in worst.iter().rev().take(9) {
            println!("{replaced} arrays at {count} IDs");
        }
        for &(replaced, count) in &worst {
            let most = COMING / (count * 3 / 100).max(1) + 2;
            assert!(replaced <= most, "{replaced} arrays at {count} IDs, not {most}");
        }
    }
}
