//! One shard of the table: a slab of records and a small index over it.
//!
//! ```text
//! root ──▶ index: header │ slots │ segment table          the root is the only pointer that is ever replaced
//!                   │        │           │
//!                 slab       │       segments
//!    (free list, counts)     └──▶ record number in the segments' 24-byte records: key (128 bits), word
//! ```
//!
//! # Operations
//!
//! Each operation loads the root under one epoch pin, and keeps the pin until its last CAS. No thread ever waits for
//! another thread: a thread that meets an unfinished step finishes it, or repeats it on a private copy.
//!
//! * **Look-up**: follow the key's probe sequence to its record, load the word. It writes nothing.
//! * **Refresh**: the same, then one CAS on the word, or on the route's word in its list.
//! * **Insert**: take a free record, write the key, make the record DEAD, and CAS the *first* EMPTY slot of the probe
//!   sequence to it. A thread that loses the CAS reads the slot again, which may have the same key now, and continues
//!   with that slot. Then a CAS makes the record LIVE, as for a key that was removed before.
//! * **Remove**: CAS the word to DEAD. The record stays in the index until the next rebuild.
//! * **List**: a second route moves the routes to a heap list ([`list`]). A change of membership replaces the list, and
//!   so does a refresh when the ranks of a tick are used up. To replace a list: freeze each of its words, copy them
//!   with the change, CAS the record's word. A thread that meets a frozen word builds the replacement with its own
//!   change, so each CAS that wins finishes some thread's operation.
//! * **Rebuild** ([`rebuild`]): freeze the index, copy it without tombstones, CAS the root. The sweeper copies most of
//!   a large index before it freezes it.
//! * **Move** ([`compact`]): freeze the index and the words of its records, copy both to a new slab of the least size,
//!   CAS the root.
//! * **Fill** ([`bulk_load`]): if there is no root yet, make slab and index in private, CAS the root from null.
//! * **Scan** ([`scan`]): read the records in some buckets of one index. It writes nothing.
//!
//! # Invariants
//!
//! 1. *A slot is written once*, from EMPTY to a record or to FROZEN. So if two threads insert one key, both aim at the
//!    first EMPTY slot of the same sequence, and the loser sees the winner's record.
//! 2. *A record's key is written before the slot that publishes it* (Release), and does not change until the record is
//!    reused. So a thread that loads the slot (Acquire) reads the key that belongs to it.
//! 3. *A record is LIVE or SPILL only while an index has it.* A private record is DEAD, a free record RETIRED. So a
//!    thread that walks the slab never meets a route that was not published. (No thread walks a slab that is private as
//!    a whole.)
//! 4. *A frozen index is final*: each slot and each entry of the segment table is taken or FROZEN before a copy becomes
//!    the root. The copy has the record of each taken slot, except RETIRED records. So a copy that wins has every
//!    key that was inserted before, and later keys are inserted into the new root.
//! 5. *The segment of a published record is in the table of the index that has it, and of all later ones.* A number is
//!    taken only after its segment is installed, and an installed segment is copied to every later table.
//! 6. *RETIRED is terminal until the record is reused.* A rebuild makes each DEAD record RETIRED before it leaves the
//!    record out. An operation on the key that meets RETIRED searches further, or starts again from the root, and gives
//!    the key another record. An index that won may have a RETIRED record: its rebuild copied the record, then the
//!    record died, then a losing rebuild retired it. Such a record is skipped like another key's.
//! 7. *A record is reused only after the last index that had it was reclaimed.* The replaced index owns the list of the
//!    numbers that its winner left out, and hands it over when no reader is left. Only the winner's list counts: a
//!    record is left out once, by the rebuild whose copy became the root without it.
//! 8. *The target of a root or a record is freed only after every thread that was pinned when it was unlinked has
//!    unpinned.* Only the thread whose CAS unlinked the target retires it.
//! 9. *A frozen word of a record is final*; its routes are still valid. Only a mover freezes a record's word, after it
//!    froze the index. So all movers of one index copy the same words. A later change meets the frozen word, and moves
//!    the shard first.
//! 10. *A record's word changes only by a CAS from a value that the CAS names, or is frozen.* A CAS compares lists by
//!     address. No address is reused while a thread that read it is pinned (8). So a count that follows a CAS is exact.

mod bucket;
pub(crate) mod bulk_load;
pub(crate) mod candidate;
mod compact;
pub(crate) mod index;
pub(crate) mod key;
pub(crate) mod list;
#[cfg(all(test, loom))]
mod models;
mod new_index;
mod occupied;
mod probe;
pub(crate) mod published;
pub(crate) mod rebuild;
pub(crate) mod routes;
pub(crate) mod scan;
pub(crate) mod slab;
#[cfg(all(test, not(loom)))]
mod tests;

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use ahash::RandomState;

use crate::feed::Feed;
use crate::growth::{buckets_for, max_used, most_used};
use crate::layout::MAX_RECORDS;
use crate::liveness::{Census, Holder, Liveness};
use crate::mem::segments::Location;
use crate::route_limit::{Reservation, RouteLimit};
use crate::shard::index::{Header, Index, Moved, Shape};
use crate::shard::key::Key;
use crate::shard::new_index::NewIndex;
use crate::shard::probe::Filled;
use crate::shard::published::Published;
use crate::shard::rebuild::RebuildSlot;
use crate::shard::routes::{Change, Changed, Words, change, read, read_all};
use crate::shard::slab::{NoRecord, Private, Record, Slab};
use crate::sync::{AtomicPtr, Guard, Ordering, Reclaim, failpoint};
use crate::types::route::Added;
use crate::word::{State, Word};

/// An operation's view of the table around the shards.
pub(crate) struct Scope<'a, P> {
    pub(crate) guard: &'a Guard,
    pub(crate) hasher: &'a RandomState,
    pub(crate) route_limit: &'a RouteLimit,
    pub(crate) proxies: &'a P,
    /// The tick at which the operation began.
    pub(crate) now: u64,
    /// The greatest age in ticks of a valid route; read before any route.
    pub(crate) keep_alive: u64,
    /// The age in ticks beyond which a call may remove a route: `keep_alive`, or more while a longer interval comes
    /// into force (`keep_alive.rs`).
    pub(crate) kept_age: u64,
    pub(crate) feed: &'a Feed,
}

impl<P: Liveness> Scope<'_, P> {
    /// Whether a route may be returned.
    #[inline]
    pub(crate) fn is_valid(&self, route: Word) -> bool {
        self.is_fresh(route) && self.proxies.has(route.proxy())
    }

    /// Whether a route is not expired.
    #[inline]
    pub(crate) fn is_fresh(&self, route: Word) -> bool {
        self.age(route) <= self.keep_alive
    }

    /// Whether no call may remove a route because of its age. Fresh routes are young.
    #[inline]
    pub(crate) fn is_young(&self, route: Word) -> bool {
        self.age(route) <= self.kept_age
    }

    /// Whether the sweeper must keep a route. It keeps all valid routes.
    #[inline]
    pub(crate) fn is_kept(&self, route: Word) -> bool {
        self.is_young(route) && self.proxies.has(route.proxy())
    }

    #[inline]
    fn age(&self, route: Word) -> u64 {
        self.now.saturating_sub(route.time())
    }
}

/// The table or the memory has no room for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CapacityError {
    /// The table's limit of routes or the shard's limit of records is reached.
    Routes,
    /// The limit of routes of the proxy or of its client is reached.
    RoutesOf(Holder),
    /// The table's limit of text is reached.
    Text,
    Memory,
}

/// Reserves room in a vector whose length depends on the shard's size.
pub(crate) fn reserve<T>(vec: &mut Vec<T>, more: usize) -> Result<(), CapacityError> {
    vec.try_reserve(more).map_err(|_| CapacityError::Memory)
}

/// Sorts routes that are in their record's order.
#[inline]
pub(crate) fn newest_first(words: &mut Words) {
    if words.len() > 1 {
        // Stable: within one tick and rank, the position decides.
        words.sort_by_key(|word| std::cmp::Reverse(word.recency()));
    }
}

/// How many pairs of records the sweeper prefetches in the next segment.
const PREFETCHED: usize = 32;

/// The record at which the next visit of a sweep starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RecordPosition {
    /// The move count of the slab that has the number.
    pub(crate) move_count: u8,
    pub(crate) number: u32,
}

impl RecordPosition {
    /// After all records that the slab has or will have: the next visit moves the shard, if it is still sparse.
    fn of_move(move_count: u8) -> Self {
        Self {
            move_count,
            number: MAX_RECORDS + 1,
        }
    }
}

/// The results of a sweeper's visit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Visit {
    /// Records visited, at most as many as were asked for. A record with many routes counts as several. A part of a
    /// rebuild and a move count as the whole rest of the visit, and so does a visit before a move.
    pub(crate) visited: u32,
    /// Routes removed.
    pub(crate) removed: usize,
    /// Of these, routes that were expired.
    pub(crate) expired: usize,
    /// Whether the visit moved the shard.
    pub(crate) has_moved: bool,
    /// Where the next visit starts; `None` at the shard's end.
    pub(crate) next: Option<RecordPosition>,
}

/// One of the table's shards: 16 bytes, without heap memory until its first key.
pub(crate) struct Shard<K: Key> {
    root: AtomicPtr<Header>,
    /// How many buckets the root's index has, or had a moment ago, for [`preload`](Shard::preload), which must not read
    /// the index. A hint, so not an atomic of loom's.
    buckets: std::sync::atomic::AtomicU32,
    /// The shard's number in its table. It selects the sizes of the shard's index (`growth.rs`) and its ring of the
    /// feed.
    number: u16,
    key: PhantomData<fn() -> K>,
}

impl<K: Key> Shard<K> {
    /// `number`: the shard's number in its table, below twice [`SHARDS`](crate::layout::SHARDS).
    pub(crate) fn new(number: usize) -> Self {
        Self {
            root: AtomicPtr::new(std::ptr::null_mut()),
            buckets: std::sync::atomic::AtomicU32::new(0),
            number: number as u16,
            key: PhantomData,
        }
    }

    #[inline]
    fn root<'g>(&self, _guard: &'g Guard) -> Option<Index<'g>> {
        // Acquire: pairs with `replace_root`, so that the whole index is visible.
        let header = NonNull::new(self.root.load(Ordering::Acquire))?;
        // SAFETY: loaded with Acquire from the root under the guard (invariant 8).
        Some(unsafe { Index::from_raw(header) })
    }

    /// The root's index. Makes an index if there is none.
    #[inline]
    fn ensure_root<'g, P: Liveness>(&self, scope: &Scope<'g, P>) -> Result<Index<'g>, CapacityError> {
        loop {
            if let Some(index) = self.root(scope.guard) {
                return Ok(index);
            }
            self.make_root()?;
        }
    }

    /// Makes the first index, unless another thread does.
    ///
    /// Not inlined into its caller: there, every insertion and refresh would compute the size of an index, two
    /// logarithms and a power, before its loop.
    #[cold]
    #[inline(never)]
    fn make_root(&self) -> Result<(), CapacityError> {
        let buckets = buckets_for(0, self.number);
        let segments = Location::segments(most_used(buckets));
        let shape = Shape {
            buckets,
            segments,
            seed: 0,
            reseeds: 0,
            serial: 0,
        };
        let new = NewIndex::new(Arc::new(Slab::new(self.number)), shape).ok_or(CapacityError::Memory)?;
        if self.set_root(&new) {
            new.publish();
        }
        Ok(())
    }

    /// Makes `new` the first root.
    fn set_root(&self, new: &NewIndex) -> bool {
        self.exchange_root(std::ptr::null_mut(), new)
    }

    fn replace_root(&self, old: Index<'_>, new: &NewIndex) -> bool {
        self.exchange_root(old.as_ptr(), new)
    }

    fn exchange_root(&self, old: *mut Header, new: &NewIndex) -> bool {
        let new = new.get();
        // Release: pairs with `root`, and passes on the values that this thread acquired from the old index's slots and
        // segment table. Relaxed on failure: the caller loads the root again.
        let exchanged = self
            .root
            .compare_exchange(old, new.as_ptr(), Ordering::Release, Ordering::Relaxed)
            .is_ok();
        if exchanged {
            // Relaxed: a hint. If two exchanges race, the earlier one's value may stay.
            self.buckets
                .store(new.shape().buckets, std::sync::atomic::Ordering::Relaxed);
        }
        exchanged
    }

    /// Prefetches the key's bucket, most probably.
    ///
    /// Call it before the pin, and before reading the clock: both stall on earlier loads, but not on prefetches. So the
    /// bucket arrives while the previous look-up still waits for its record. One of the two cache misses of a look-up
    /// overlaps with the previous look-up's.
    #[inline]
    pub(crate) fn preload(&self, hash: u64) {
        #[cfg(not(loom))]
        {
            // Relaxed, both: this thread reads nothing through them.
            let (root, buckets) = (self.root.load(Ordering::Relaxed), self.buckets.load(Ordering::Relaxed));
            probe::prefetch_bucket(root, buckets, hash);
        }
        #[cfg(loom)]
        let _ = (hash, &self.buckets);
    }

    /// The key's record, unless it is RETIRED.
    #[inline]
    fn find<'g>(&self, key: &K, hash: u64, guard: &'g Guard) -> Option<(Index<'g>, Published<'g>)> {
        let index = self.root(guard)?;
        index
            .find(hash, |record| {
                let found = record.is(key) && record.load().state() != State::Retired;
                found.then_some(record)
            })
            .map(|record| (index, record))
    }

    /// The key's word, unless its record is RETIRED or there is none: for callers that need no list.
    #[inline]
    pub(crate) fn word(&self, key: &K, hash: u64, guard: &Guard) -> Option<Word> {
        self.root(guard)?.find(hash, |record| {
            let is_key = record.is(key);
            let word = record.load();
            (is_key && word.state() != State::Retired).then_some(word)
        })
    }

    /// The key's valid routes, most recently refreshed first.
    #[inline]
    pub(crate) fn get<P: Liveness>(&self, key: &K, hash: u64, scope: &Scope<'_, P>) -> Words {
        let mut words = Words::new();
        let Some(index) = self.root(scope.guard) else {
            return words;
        };
        index.find(hash, |record| {
            let found = record.is(key) && read(&record, scope, |word| words.push(word));
            found.then_some(())
        });
        newest_first(&mut words);
        words
    }

    /// All routes of the key, valid or not.
    pub(crate) fn get_all(&self, key: &K, hash: u64, guard: &Guard) -> Words {
        let mut words = Words::new();
        if let Some((_, record)) = self.find(key, hash, guard) {
            read_all(&record, guard, |word| words.push(word));
            newest_first(&mut words);
        }
        words
    }

    /// Adds or refreshes a route of `key`: [`Change::Add`] or [`Change::Restore`]. Also returns the record's number.
    pub(crate) fn put<P: Liveness>(
        &self,
        key: &K,
        hash: u64,
        what: Change,
        scope: &Scope<'_, P>,
    ) -> Result<(Added, u32), CapacityError> {
        let mut private: Option<Private<'_>> = None;
        let mut place: Option<Reservation<'_>> = None;
        loop {
            let index = self.ensure_root(scope)?;
            private = private.filter(|private| private.is_of(index));
            let accept = |record: Published<'_>| record.is(key) && record.load().state() != State::Retired;
            failpoint("insert: root loaded");
            let filled = index.find_or_fill(hash, accept, || {
                // Reserve before a record is taken, so that a refused key leaves no record behind.
                if place.is_none() {
                    place = Some(Self::reserve_place(key, what, scope)?);
                }
                match &private {
                    Some(private) => Ok(private.number),
                    None => {
                        let number = private.insert(Private::take(index, key)?).number;
                        failpoint("insert: record taken");
                        Ok(number)
                    }
                }
            });
            let (number, record, used) = match filled {
                Ok(Filled::Found(number, record)) => (number, record, 0),
                Ok(Filled::Won) => {
                    let private = private.take().expect("the slot was filled with the private record");
                    // SAFETY: this thread has won the slot for the record's number (invariant 1).
                    let (number, record) = unsafe { private.publish() };
                    failpoint("insert: slot won");
                    (number, record, index.slab().slot_won())
                }
                Ok(Filled::Frozen) | Err(NoRecord::StaleIndex) => {
                    self.rebuild(index, false, scope)?;
                    continue;
                }
                Ok(Filled::Crowded) => {
                    self.rebuild(index, true, scope)?;
                    continue;
                }
                Err(NoRecord::OutOfMemory) => return Err(CapacityError::Memory),
                Err(NoRecord::NoPlace) => return Err(CapacityError::Routes),
                Err(NoRecord::NoPlaceOf(holder)) => return Err(CapacityError::RoutesOf(holder)),
                Err(NoRecord::NoTextRoom) => return Err(CapacityError::Text),
                Err(NoRecord::NoNumber) => {
                    // A rebuild frees the numbers of tombstones a grace period later, for later keys.
                    if Self::is_littered(index) {
                        self.rebuild(index, false, scope)?;
                    }
                    return Err(CapacityError::Routes);
                }
            };
            let changed = change::<K, P>(record, what, place.take(), index.slab(), scope);
            if used > max_used(index.shape().buckets) {
                self.rebuild_full(index, used, scope);
            }
            match changed? {
                Changed::Added(added) => return Ok((added, number)),
                Changed::Frozen => self.compact(index, scope)?,
                Changed::Retired | Changed::Absent | Changed::Removed { .. } => {}
            }
        }
    }

    /// Reserves a place for a route of a new node. Fails early if the proxy or its client has no room, or if there is
    /// no room for the node's name. So a refused node leaves no record behind. The insertion itself counts the route
    /// for the proxy and its client. Routes of a snapshot need no room for their names.
    ///
    /// Not inlined: refreshes reserve nothing.
    #[inline(never)]
    fn reserve_place<'a, P: Liveness>(
        key: &K,
        what: Change,
        scope: &Scope<'a, P>,
    ) -> Result<Reservation<'a>, NoRecord> {
        let len = key.text_len();
        match what {
            Change::Add(_) if len > 0 && !scope.proxies.has_text_room(len) => return Err(NoRecord::NoTextRoom),
            Change::Add(proxy) => scope.proxies.has_room(proxy).map_err(NoRecord::NoPlaceOf)?,
            _ => {}
        }
        Reservation::new(scope.route_limit).ok_or(NoRecord::NoPlace)
    }

    /// Replaces an index after an insertion has exceeded its limit. Without memory for a larger index, insertions
    /// beyond the second limit try again.
    #[inline(never)]
    fn rebuild_full<P: Liveness>(&self, index: Index<'_>, used: u32, scope: &Scope<'_, P>) {
        let buckets = index.shape().buckets;
        let first = max_used(buckets) + 1;
        if used == first {
            _ = self.rebuild_ahead(index, scope);
        } else if used > first.max(most_used(buckets)) {
            _ = self.rebuild(index, false, scope);
        }
    }

    /// Prefetches the first memory that a look-up of a key reads.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64, guard: &Guard) {
        if let Some(index) = self.root(guard) {
            index.prefetch(hash);
        }
    }

    /// Removes routes of a key. Returns how many of them were valid.
    pub(crate) fn remove<P: Liveness>(&self, key: &K, hash: u64, what: Change, scope: &Scope<'_, P>) -> usize {
        while let Some((index, record)) = self.find(key, hash, scope.guard) {
            match change::<K, P>(record, what, None, index.slab(), scope) {
                Ok(Changed::Removed { valid, .. }) => return valid,
                Ok(Changed::Frozen) if self.compact(index, scope).is_ok() => {}
                Ok(Changed::Retired) => {}
                // Without memory for a shorter list, or for a move, the routes stay until they expire.
                Ok(Changed::Frozen | Changed::Absent | Changed::Added(_)) | Err(_) => return 0,
            }
        }
        0
    }

    /// Removes the stale routes of at most `most` records, starting at `at`. Returns the record at which the next visit
    /// starts. `census` sees the proxy of each route that stays. If the shard is sparse at its end, the next visit
    /// moves it: a move takes as long as thousands of visits. Otherwise this visit and the next visits put the records
    /// that rebuilds left out on the free list. If there are many tombstones, they then rebuild the index in parts;
    /// each part uses up the visit.
    pub(crate) fn visit<P: Liveness>(
        &self,
        at: RecordPosition,
        most: u32,
        parked: &RebuildSlot,
        scope: &Scope<'_, P>,
        census: &mut impl Census,
    ) -> Visit {
        let mut visit = Visit {
            visited: 0,
            removed: 0,
            expired: 0,
            has_moved: false,
            next: None,
        };
        let Some(index) = self.root(scope.guard) else {
            return visit;
        };
        let move_count = index.slab().move_count;
        // A shard that has moved since has its records under other numbers, perhaps before `at`.
        let mut number = if at.move_count == move_count { at.number } else { 0 };
        let end = index.slab().numbers();
        let mut can_move = true;
        while number < end && visit.visited < most {
            let place = Location::of(number);
            // The table of an index that was just replaced may be shorter than the slab. Later records were added after
            // this visit began, so the round need not see them: see `sweep.rs`.
            let Some(records) = index.segment(place.segment) else {
                return visit;
            };
            // The processor prefetches within a segment, but not from the next segment: this halves the time of a sweep
            // at a million routes. (Not in models: the load only hints.)
            if !cfg!(loom)
                && let Some(next) = index.segment(place.segment + 1)
            {
                next.iter().step_by(2).take(PREFETCHED).for_each(Record::prefetch);
            }
            let records = &records[place.offset as usize..];
            let count = (end - number).min(most - visit.visited).min(records.len() as u32);
            let mut done = 0;
            for record in &records[..count as usize] {
                done += 1;
                match sweep_record::<K, P>(record, index, scope, census) {
                    Some(Swept { removed, expired, more }) => {
                        visit.removed += removed;
                        visit.expired += expired;
                        if more > 0 {
                            visit.visited += more;
                            if visit.visited + done >= most {
                                break;
                            }
                        }
                    }
                    // The shard is moving: finish the move, and start again in the new slab.
                    None if can_move && self.compact(index, scope).is_ok() => {
                        visit.next = Some(RecordPosition::default());
                        visit.visited += 1;
                        visit.has_moved = true;
                        return visit;
                    }
                    // Without memory for the move, the routes stay, and so do the numbers of their proxies.
                    None => {
                        can_move = false;
                        read_all(record, scope.guard, |word| census.see(word));
                    }
                }
            }
            number += done;
            visit.visited += done;
        }
        visit.visited = visit.visited.min(most);
        let here = Some(RecordPosition { move_count, number });
        let left = most - visit.visited;
        if number < end || left == 0 {
            visit.next = here;
        } else if Self::is_sparse(index) {
            visit.visited = most;
            let of_move = RecordPosition::of_move(move_count);
            if here == Some(of_move) {
                // Without memory, the next round tries again.
                visit.has_moved = self.compact(index, scope).is_ok();
            } else {
                visit.next = Some(of_move);
            }
        } else {
            let given_back = index.slab().take_returned::<K>(index, left);
            visit.visited += given_back;
            if given_back == left {
                visit.next = here;
            } else if Self::is_littered(index) && self.rebuild_part(index, left - given_back, parked, scope) == Ok(true)
            {
                visit.visited = most;
                visit.next = here;
            }
        }
        visit
    }

    /// The numbers of records with a route, and of all records that the slab ever had.
    pub(crate) fn records(&self, guard: &Guard) -> (usize, usize) {
        let slab = self.root(guard).map(Index::slab);
        slab.map_or((0, 0), |slab| (slab.live() as usize, slab.numbers() as usize))
    }

    /// The bytes of the records and of the index.
    pub(crate) fn bytes(&self, guard: &Guard) -> (usize, usize) {
        self.root(guard).map_or((0, 0), |index| {
            let records = Location::capacity(index.slab().numbers()) as usize;
            (records * size_of::<Record>(), index.shape().layout().size())
        })
    }
}

/// What a sweep did to one record.
#[derive(Clone, Copy, Default)]
struct Swept {
    /// Routes removed.
    removed: usize,
    /// Of these, routes that were expired.
    expired: usize,
    /// How many visits the record counts for, beside the first.
    more: u32,
}

/// Routes of a list that take as long as the visit of a record.
const ROUTES_OF_A_VISIT: u32 = 8;

/// Removes the stale routes of one record, or returns `None` if the record is moving.
#[inline]
fn sweep_record<K: Key, P: Liveness>(
    record: &Record,
    index: Index<'_>,
    scope: &Scope<'_, P>,
    census: &mut impl Census,
) -> Option<Swept> {
    let word = record.load();
    let (removed, expired) = match word.state() {
        State::Retired | State::Dead => return Some(Swept::default()),
        _ if word.is_frozen() => return None,
        State::Live if scope.is_young(word) && census.see_valid(word, scope.proxies) => return Some(Swept::default()),
        State::Live | State::Spill => {
            // SAFETY: the word has routes (invariant 3), and the scope's guard is pinned.
            let record = unsafe { Published::new(record) };
            match change::<K, P>(record, Change::Sweep, None, index.slab(), scope) {
                Ok(Changed::Removed { stale, expired, .. }) => (stale, expired),
                Ok(Changed::Frozen) => return None,
                // Without memory for a shorter list, the routes stay until the next round, and the census sees them
                // below.
                Ok(Changed::Retired | Changed::Absent | Changed::Added(_)) | Err(_) => (0, 0),
            }
        }
    };
    // Include invalid routes: while a route remains, its proxy's number must not become another proxy's.
    read_all(record, scope.guard, |word| census.see(word));
    let more = match word.state() {
        State::Spill => word.list_len() as u32 / ROUTES_OF_A_VISIT,
        _ => 0,
    };
    Some(Swept { removed, expired, more })
}

impl<K: Key> Drop for Shard<K> {
    fn drop(&mut self) {
        // Relaxed: `&mut self` is exclusive, so every other access happens before this one.
        let Some(header) = NonNull::new(self.root.load(Ordering::Relaxed)) else {
            return;
        };
        // SAFETY: the index is the root's, and `&mut self` is exclusive.
        let index = unsafe { Index::from_raw(header) };
        // SAFETY: `&mut self` is exclusive, so no other thread can reach the index or its records.
        unsafe { index.free_keys_and_lists(K::free, Moved::No) };
        // SAFETY: `&mut self` is exclusive, and the keys and lists of the records are freed above.
        unsafe { index.free_segments() };
        // SAFETY: no other thread can reach the index. Earlier indexes share only the slab, which has a reference
        // count.
        unsafe { Header::free(header.as_ptr()) };
    }
}
