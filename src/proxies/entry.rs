//! Proxy numbers: the proxy and the state of each number.

use std::fmt;
use std::num::NonZeroU64;

use once_cell::race::OnceBox;

use crate::layout::ROUNDS;
use crate::mem::prefetch::prefetch;
use crate::mem::segmented_vec::SegmentedVec;
use crate::mem::thin_str::ThinStr;
use crate::proxies::details::Details;
use crate::proxies::id::ProxyId;
use crate::sync::{AtomicU32, AtomicU64, Guard, Ordering};
use crate::types::life::Life;

/// The unit of `Fields::used`, in ticks, as a power of two: 256 ms, so that 32 bits are 34 years.
const USED_SHIFT: u32 = 8;

/// The life of a number: all that look-ups read of a proxy. Sixteen of them share a cache line.
pub(crate) struct LifeCell(AtomicU32);

/// The other fields of a number.
struct Fields {
    id: [AtomicU64; 2],
    /// A [`Details`]; none while FREE.
    details: AtomicU64,
    /// When the proxy was last registered, got a new route, or lost one, in units of 256 ms.
    used: AtomicU32,
    /// The last round of the sweeper that saw a route of the proxy, or [`UNSEEN`].
    seen: AtomicU32,
}

const _: () = assert!(cfg!(loom) || std::mem::size_of::<Fields>() == 32);

/// In `Fields::seen`: no round, or a round too long ago to matter.
const UNSEEN: u32 = u32::MAX;

/// Whether the round `seen` is `round` or a later round.
fn is_since(seen: u32, round: u32) -> bool {
    seen != UNSEEN && seen.wrapping_sub(round) % ROUNDS < ROUNDS / 4
}

impl Default for LifeCell {
    fn default() -> Self {
        Self(AtomicU32::new(Life::NEW.to_bits()))
    }
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            id: [AtomicU64::new(0), AtomicU64::new(0)],
            details: AtomicU64::new(Details::NONE.0),
            used: AtomicU32::new(0),
            seen: AtomicU32::new(UNSEEN),
        }
    }
}

/// All numbers that proxies have ever had.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// Few and large segments, because every look-up reads their pointers.
    lives: SegmentedVec<LifeCell, 2>,
    fields: SegmentedVec<Fields, 5>,
    /// The incarnation of each number's proxy, or zero; made when the first incarnation begins.
    incarnations: OnceBox<SegmentedVec<AtomicU64, 5>>,
    limit: u32,
}

impl Numbers {
    /// Room for the numbers below `limit`.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            lives: SegmentedVec::new(limit),
            fields: SegmentedVec::new(limit),
            incarnations: OnceBox::new(),
            limit,
        }
    }

    /// The bytes of the entries.
    pub(crate) fn bytes(&self) -> usize {
        let incarnations = self.incarnations.get().map_or(0, |incarnations| incarnations.bytes());
        self.lives.bytes() + self.fields.bytes() + incarnations
    }

    /// The life of a number, if the number or a number of its segment was ever used.
    #[inline]
    pub(crate) fn life(&self, number: u32) -> Option<&LifeCell> {
        self.lives.get(number)
    }

    /// The entry of a number, if the number or a number of its segment was ever used.
    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<ProxyEntry<'_>> {
        Some(ProxyEntry {
            life: self.lives.get(number)?,
            fields: self.fields.get(number)?,
        })
    }

    /// A number below the limit, for the registry's owner.
    pub(crate) fn ensure(&self, number: u32) -> ProxyEntry<'_> {
        ProxyEntry {
            life: self.lives.ensure(number),
            fields: self.fields.ensure(number),
        }
    }

    /// The incarnation of a number's proxy. The caller has loaded the proxy's life under its pin.
    pub(crate) fn incarnation(&self, number: u32) -> Option<NonZeroU64> {
        // Relaxed: written before the life that the caller has loaded (Release and Acquire), or later, when the proxy
        // began its first incarnation. In the second case, the value orders nothing.
        let incarnation = self.incarnations.get()?.get(number)?.load(Ordering::Relaxed);
        NonZeroU64::new(incarnation)
    }

    /// Sets the incarnation of a number that is FREE or has no incarnation; for the registry's owner.
    pub(crate) fn set_incarnation(&self, number: u32, incarnation: Option<NonZeroU64>) {
        let cell = match incarnation {
            Some(_) => {
                let incarnations = self
                    .incarnations
                    .get_or_init(|| Box::new(SegmentedVec::new(self.limit)));
                Some(incarnations.ensure(number))
            }
            // Clear the incarnation of the number's former proxy, if it has one.
            None => self
                .incarnations
                .get()
                .and_then(|incarnations| incarnations.get(number)),
        };
        if let Some(cell) = cell {
            // Relaxed: the store of the life publishes it; if the proxy is ALIVE already, the value orders nothing.
            cell.store(incarnation.map_or(0, NonZeroU64::get), Ordering::Relaxed);
        }
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        let entries = (0..).map_while(|number| self.get(number));
        entries
            .filter(|entry| !entry.life().is_free())
            .for_each(ProxyEntry::free_id);
    }
}

impl fmt::Debug for ProxyEntry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyEntry")
            .field("life", &self.life())
            .finish_non_exhaustive()
    }
}

impl LifeCell {
    #[inline]
    pub(crate) fn get(&self) -> Life {
        // Acquire: pairs with the store in `set`, so that a thread that sees a proxy ALIVE sees its ID and details.
        Life::from_bits(self.0.load(Ordering::Acquire))
    }

    fn set(&self, life: Life) {
        // Release: pairs with the load in `get`.
        self.0.store(life.to_bits(), Ordering::Release);
    }

    fn change(&self, from: Life, to: Life) -> bool {
        // AcqRel: Release pairs with the load in `get`; Acquire pairs with the store in `set`.
        self.0
            .compare_exchange(from.to_bits(), to.to_bits(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Makes a CLOSING number ALIVE. Returns whether the number is the proxy of `alive`, and ALIVE.
    #[inline]
    pub(crate) fn revive(&self, alive: Life) -> bool {
        let mut life = self.get();
        while life.is_same_proxy(alive) {
            if life == alive || self.change(life, alive) {
                return true;
            }
            life = self.get();
        }
        false
    }
}

/// A proxy number. Without the registry's lock, only `used` and `seen` change, and a life from CLOSING to ALIVE.
#[derive(Clone, Copy)]
pub(crate) struct ProxyEntry<'a> {
    life: &'a LifeCell,
    fields: &'a Fields,
}

impl ProxyEntry<'_> {
    #[inline]
    pub(crate) fn life(self) -> Life {
        self.life.get()
    }

    /// The ID of a number that was not FREE when the guard was pinned, or later.
    pub(crate) fn id(self, _guard: &Guard) -> ProxyId<'_> {
        let life = self.life();
        let id = &self.fields.id;
        // Relaxed: written before the life that was loaded above, and not again while the guard is pinned.
        let bits = [id[0].load(Ordering::Relaxed), id[1].load(Ordering::Relaxed)];
        // SAFETY: `occupy` wrote the bits before the life (N1), and a name is freed only a grace period after its
        // number died (N2).
        unsafe { ProxyId::from_bits(bits, life.is_name()) }
    }

    /// Prefetches the memory that [`prefetch_name`](ProxyEntry::prefetch_name) reads.
    pub(crate) fn prefetch(self) {
        prefetch(self.fields);
    }

    /// Prefetches the text of [`id`](ProxyEntry::id), if the ID is a name.
    pub(crate) fn prefetch_name(self) {
        // Relaxed: a hint.
        let bits = self.fields.id[1].load(Ordering::Relaxed);
        prefetch(bits as *const u8);
    }

    /// Whether a number that was not FREE when the guard was pinned has this ID.
    pub(crate) fn has_id(self, id: ProxyId<'_>, guard: &Guard) -> bool {
        self.id(guard) == id
    }

    pub(crate) fn details(self) -> Details {
        // Acquire: pairs with `replace_details`, so that their whole objects are visible.
        Details(self.fields.details.load(Ordering::Acquire))
    }

    /// Replaces the details. Returns the former details.
    pub(crate) fn replace_details(self, new: Details) -> Details {
        // AcqRel: Release pairs with `details`; Acquire, because the caller uses the former details.
        Details(self.fields.details.swap(new.0, Ordering::AcqRel))
    }

    /// Records a present or past use of the proxy.
    #[inline]
    pub(crate) fn touch(self, tick: u64) {
        let used = (tick >> USED_SHIFT) as u32;
        // Relaxed, both: the time decides only idleness, a round and a grace period later. `fetch_max`: a thread that
        // was stopped here does not undo a later use.
        if self.fields.used.load(Ordering::Relaxed) < used {
            self.fields.used.fetch_max(used, Ordering::Relaxed);
        }
    }

    /// Records that a round saw a route. A sweeper that was stopped since an earlier round does not overwrite a later
    /// round.
    #[inline]
    pub(crate) fn seen_in(self, round: u32) {
        // Relaxed, both: the sweeper's cursor (AcqRel in `Cursor::step`) orders the rounds.
        let mut seen = self.fields.seen.load(Ordering::Relaxed);
        while !is_since(seen, round) {
            match self
                .fields
                .seen
                .compare_exchange_weak(seen, round, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(won) => seen = won,
            }
        }
    }

    /// Whether `round` or a later round saw a route.
    pub(crate) fn was_seen_since(self, round: u32) -> bool {
        // Relaxed: as in `seen_in`.
        is_since(self.fields.seen.load(Ordering::Relaxed), round)
    }

    /// Clears a round this long ago that its number will be used again. Called once per round.
    pub(crate) fn forget_old_round(self, round: u32) {
        // Relaxed, both: as in `seen_in`.
        let seen = self.fields.seen.load(Ordering::Relaxed);
        if seen != UNSEEN && (ROUNDS / 4..ROUNDS / 4 * 3).contains(&(round.wrapping_sub(seen) % ROUNDS)) {
            _ = self
                .fields
                .seen
                .compare_exchange(seen, UNSEEN, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Makes a FREE number ALIVE for a proxy.
    pub(crate) fn occupy(self, id: ProxyId<'_>, details: Details, tick: u64) -> Life {
        let bits = id.to_bits();
        // Relaxed, all: the store of the life publishes them.
        self.fields.id[0].store(bits[0], Ordering::Relaxed);
        self.fields.id[1].store(bits[1], Ordering::Relaxed);
        self.fields.details.store(details.0, Ordering::Relaxed);
        self.fields.used.store((tick >> USED_SHIFT) as u32, Ordering::Relaxed);
        let life = self.life().begin(id.is_name());
        self.life.set(life);
        life
    }

    /// Makes a CLOSING number ALIVE. Returns whether the number is the proxy of `alive`, and ALIVE.
    pub(crate) fn revive(self, alive: Life) -> bool {
        self.life.revive(alive)
    }

    /// Makes an ALIVE number CLOSING, for the registry's owner.
    pub(crate) fn close(self) {
        self.life.set(self.life().closing());
    }

    /// Makes an ALIVE or CLOSING number DEAD, for the registry's owner.
    pub(crate) fn die(self) {
        self.life.set(self.life().dead());
    }

    /// Makes a number DEAD if it is still CLOSING, for the registry's owner: no other thread can make it CLOSING again.
    #[must_use]
    pub(crate) fn die_if_closing(self) -> bool {
        let life = self.life();
        life.is_closing() && self.life.change(life, life.dead())
    }

    /// Whether the proxy's last use was before a tick, to a precision of 256 ms.
    pub(crate) fn is_idle(self, before: u64) -> bool {
        // Relaxed: as in `touch`.
        u64::from(self.fields.used.load(Ordering::Relaxed)) < before >> USED_SHIFT
    }

    /// Makes a DEAD number FREE. Returns whether it can be used again.
    #[must_use]
    pub(crate) fn vacate(self) -> bool {
        self.free_id();
        let next = self.life().next_generation();
        self.life.set(next.unwrap_or(Life::NEW));
        next.is_some()
    }

    /// The FREE number after this number, among those that were used before; for the registry's owner.
    pub(crate) fn next_free(self) -> Option<u32> {
        // Relaxed: only the owner reads and writes it.
        let next = self.fields.id[0].load(Ordering::Relaxed);
        next.checked_sub(1).map(|number| number as u32)
    }

    /// Sets the result of [`next_free`](ProxyEntry::next_free), stored in the place of the ID, which a FREE number does
    /// not have.
    pub(crate) fn set_next_free(self, next: Option<u32>) {
        // Relaxed: only the owner reads and writes it.
        let next = next.map_or(0, |number| u64::from(number) + 1);
        self.fields.id[0].store(next, Ordering::Relaxed);
    }

    fn free_id(self) {
        if self.life().is_name() {
            // Relaxed: no other thread uses the ID.
            let bits = self.fields.id[1].load(Ordering::Relaxed);
            // SAFETY: a grace period has passed since the number died (N2), or the table is being dropped, so no thread
            // reads the ID any more. `vacate` and `Numbers::drop` free it only once, because the number is then FREE or
            // dropped.
            unsafe { ThinStr::from_bits(bits).free() };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_late_sweeper_does_not_take_back_what_a_later_round_saw() {
        for round in [5, 0, ROUNDS - 1, ROUNDS / 2] {
            let numbers = Numbers::new(1);
            let entry = numbers.ensure(0);
            assert!(!entry.was_seen_since(round));
            entry.seen_in(round);
            let before = round.wrapping_sub(3) % ROUNDS;
            entry.seen_in(before);
            assert!(entry.was_seen_since(round), "round {round}");
            // A sweeper that visits the proxies late also finds the proxy in use.
            assert!(entry.was_seen_since(before), "round {round}");
            assert!(!entry.was_seen_since((round + 1) % ROUNDS), "round {round}");
        }
    }

    #[test]
    fn a_round_long_past_is_not_taken_for_one_to_come() {
        let numbers = Numbers::new(1);
        let entry = numbers.ensure(0);
        entry.seen_in(7);
        for round in 8..ROUNDS + 7 {
            let round = round % ROUNDS;
            entry.forget_old_round(round);
            assert!(!entry.was_seen_since(round), "round {round}");
        }
        entry.seen_in(6);
        assert!(entry.was_seen_since(6));
    }
}
