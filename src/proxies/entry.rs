//! One proxy number: who has it, and how far it is in its life.

use std::fmt;
use std::sync::Arc;

use crate::key::Text;
use crate::proxies::details::SharedDetails;
use crate::proxies::grace::Grace;
use crate::proxies::id::ProxyId;
use crate::sweep::ROUNDS;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Guard, Ordering};

const _: () = assert!(cfg!(loom) || std::mem::size_of::<Entry>() == 40);

const STATE: u32 = 0b11;
const ALIVE: u32 = 0;
const CLOSING: u32 = 1;
const DEAD: u32 = 2;
const FREE: u32 = 3;
/// The ID is a name, not a UUID.
const IS_NAME: u32 = 0b100;
const GENERATION: u32 = 0b1000;

/// A number's state, what kind of ID it has, and its generation, which is how many proxies had the number before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Life(u32);

impl Life {
    pub(crate) fn is_alive(self) -> bool {
        self.0 & STATE == ALIVE
    }

    pub(crate) fn is_closing(self) -> bool {
        self.0 & STATE == CLOSING
    }

    /// Whether routes of this number may be returned: it is ALIVE or CLOSING.
    #[inline]
    pub(crate) fn has_routes(self) -> bool {
        self.0 & STATE <= CLOSING
    }

    /// Whether it is the proxy of `alive`, ALIVE or CLOSING.
    pub(crate) fn is_same_proxy(self, alive: Life) -> bool {
        self.has_routes() && self.alive() == alive
    }

    pub(crate) fn alive(self) -> Life {
        self.with(ALIVE)
    }

    fn with(self, state: u32) -> Life {
        Life(self.0 & !STATE | state)
    }

    fn is_name(self) -> bool {
        self.0 & IS_NAME != 0
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = ["alive", "closing", "dead", "free"][(self.0 & STATE) as usize];
        write!(f, "{state} in generation {}", self.0 / GENERATION)
    }
}

/// The unit of `Entry::used`, in ticks, as a power of two: 256 ms, so that 32 bits are 34 years.
const USED_SHIFT: u32 = 8;

/// A proxy number. Without the registry's lock, only `used` and `seen` change, and a life from CLOSING to ALIVE.
pub(crate) struct Entry {
    id: [AtomicU64; 2],
    /// An `Arc`'s address; null while FREE.
    details: AtomicPtr<SharedDetails>,
    /// While CLOSING or DEAD: the grace period that is waited for, or the round after which a full one is.
    waits_for: AtomicU32,
    life: AtomicU32,
    /// When the proxy was last registered, got a new route, or lost one, in units of 256 ms.
    used: AtomicU32,
    /// The last round of the sweeper in which a route of it was seen, or [`UNSEEN`].
    seen: AtomicU32,
}

/// In `Entry::seen`: in no round, or none that is worth to be told.
const UNSEEN: u32 = u32::MAX;

/// Whether the round `seen` is `round`, or one of those that follow it.
fn is_since(seen: u32, round: u32) -> bool {
    seen != UNSEEN && seen.wrapping_sub(round) % ROUNDS < ROUNDS / 4
}

/// In `Entry::waits_for`: the rest is a round.
const ROUND: u32 = 1 << 31;

impl Default for Entry {
    fn default() -> Self {
        Self {
            id: [AtomicU64::new(0), AtomicU64::new(0)],
            details: AtomicPtr::new(std::ptr::null_mut()),
            waits_for: AtomicU32::new(0),
            life: AtomicU32::new(FREE),
            used: AtomicU32::new(0),
            seen: AtomicU32::new(UNSEEN),
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("life", &self.life())
            .finish_non_exhaustive()
    }
}

impl Entry {
    #[inline]
    pub(crate) fn life(&self) -> Life {
        // Acquire: pairs with `set_life`, so that whoever sees a proxy alive sees its ID and details.
        Life(self.life.load(Ordering::Acquire))
    }

    fn set_life(&self, life: Life) {
        // Release: pairs with `life`.
        self.life.store(life.0, Ordering::Release);
    }

    /// The ID of a number that was not FREE when the guard was pinned, or later.
    pub(crate) fn id<'a>(&'a self, _guard: &'a Guard) -> ProxyId<'a> {
        let life = self.life();
        // Relaxed: written before the life that was loaded above, and not again while the guard is pinned.
        let bits = [self.id[0].load(Ordering::Relaxed), self.id[1].load(Ordering::Relaxed)];
        // SAFETY: `occupy` wrote them; a name is freed a grace period after the number died.
        unsafe { ProxyId::from_bits(bits, life.is_name()) }
    }

    /// Whether a number that was not FREE when the guard was pinned has this ID.
    pub(crate) fn has_id(&self, id: ProxyId<'_>, guard: &Guard) -> bool {
        self.id(guard) == id
    }

    pub(crate) fn details<'a>(&'a self, _guard: &'a Guard) -> Option<&'a SharedDetails> {
        // Acquire: pairs with `replace_details`, so that the details are seen whole.
        let details = self.details.load(Ordering::Acquire);
        // SAFETY: an `Arc` that the entry owns; it lets go of one only after a grace period.
        unsafe { details.as_ref() }
    }

    /// Puts `new` in the place of the details, and returns what was there, which readers may look at until a grace
    /// period has passed.
    pub(crate) fn replace_details(&self, new: Option<Arc<SharedDetails>>) -> Option<Arc<SharedDetails>> {
        let new = new.map_or(std::ptr::null(), Arc::into_raw);
        // AcqRel: Release pairs with `details`; Acquire, since what comes out is used below.
        let old = self.details.swap(new.cast_mut(), Ordering::AcqRel);
        if old.is_null() {
            return None;
        }
        // SAFETY: it came from `Arc::into_raw`, and the swap made it ours.
        Some(unsafe { Arc::from_raw(old) })
    }

    /// Notes that the proxy is, or was, in use.
    #[inline]
    pub(crate) fn touch(&self, tick: u64) {
        let used = (tick >> USED_SHIFT) as u32;
        // Relaxed, both: a time to judge idleness by; a round and a grace period follow before anything comes of it.
        if self.used.load(Ordering::Relaxed) < used {
            self.used.store(used, Ordering::Relaxed);
        }
    }

    /// Notes that a route was seen in a round. A sweeper that stood still since an earlier round takes back nothing of what
    /// was seen in a later one.
    #[inline]
    pub(crate) fn seen_in(&self, round: u32) {
        // Relaxed, both: the sweeper's cursor orders the rounds.
        let mut seen = self.seen.load(Ordering::Relaxed);
        while !is_since(seen, round) {
            match self
                .seen
                .compare_exchange_weak(seen, round, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(won) => seen = won,
            }
        }
    }

    /// Whether a route was seen in `round`, or in a later one.
    pub(crate) fn was_seen_since(&self, round: u32) -> bool {
        // Relaxed: as in `seen_in`.
        is_since(self.seen.load(Ordering::Relaxed), round)
    }

    /// Forgets a round so long past that its number would soon be one to come. It is called once a round.
    pub(crate) fn forget_old_round(&self, round: u32) {
        // Relaxed, both: as in `seen_in`.
        let seen = self.seen.load(Ordering::Relaxed);
        if seen != UNSEEN && (ROUNDS / 4..ROUNDS / 4 * 3).contains(&(round.wrapping_sub(seen) % ROUNDS)) {
            _ = self
                .seen
                .compare_exchange(seen, UNSEEN, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Makes a FREE number ALIVE for a proxy.
    pub(crate) fn occupy(&self, id: ProxyId<'_>, details: Arc<SharedDetails>, tick: u64) -> Life {
        let bits = id.to_bits();
        // Relaxed, all: published by the life.
        self.id[0].store(bits[0], Ordering::Relaxed);
        self.id[1].store(bits[1], Ordering::Relaxed);
        self.details.store(Arc::into_raw(details).cast_mut(), Ordering::Relaxed);
        self.waits_for.store(0, Ordering::Relaxed);
        self.used.store((tick >> USED_SHIFT) as u32, Ordering::Relaxed);
        let kind = if id.is_name() { IS_NAME } else { 0 };
        let life = Life(self.life().0 & !(IS_NAME | STATE) | kind | ALIVE);
        self.set_life(life);
        life
    }

    /// Makes the number ALIVE where it is CLOSING; tells whether it is the proxy of `alive`, and ALIVE.
    #[inline]
    pub(crate) fn revive(&self, alive: Life) -> bool {
        let mut life = self.life();
        while life.is_same_proxy(alive) {
            if life == alive || self.change_life(life, alive) {
                return true;
            }
            life = self.life();
        }
        false
    }

    fn change_life(&self, from: Life, to: Life) -> bool {
        // AcqRel: as `life` and `set_life`.
        self.life
            .compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Makes an ALIVE number CLOSING, for the registry's owner.
    pub(crate) fn close(&self) {
        self.set_life(self.life().with(CLOSING));
    }

    /// Makes a number DEAD, for the registry's owner, whether it is ALIVE or CLOSING.
    pub(crate) fn die(&self) {
        self.set_life(self.life().with(DEAD));
    }

    /// Makes a number DEAD that is still CLOSING, for the registry's owner; nobody else can make it CLOSING again.
    #[must_use]
    pub(crate) fn die_if_closing(&self) -> bool {
        let life = self.life();
        life.is_closing() && self.change_life(life, life.with(DEAD))
    }

    pub(crate) fn wait_for_grace(&self, period: u32) {
        // Relaxed: only the registry's owner acts on it.
        self.waits_for.store(period, Ordering::Relaxed);
    }

    /// Waits for a full round that starts after `round`.
    pub(crate) fn wait_for_round(&self, round: u32) {
        // Relaxed: only the registry's owner acts on it.
        self.waits_for.store(ROUND | round, Ordering::Relaxed);
    }

    pub(crate) fn waits_for_round(&self) -> bool {
        // Relaxed: only the registry's owner acts on it.
        self.waits_for.load(Ordering::Relaxed) & ROUND != 0
    }

    /// Whether the proxy was last in use before a tick, as far as 256 ms tell.
    pub(crate) fn is_idle(&self, before: u64) -> bool {
        // Relaxed: as in `touch`.
        u64::from(self.used.load(Ordering::Relaxed)) < before >> USED_SHIFT
    }

    /// Whether something is to be done with the number at the end of a round.
    pub(crate) fn is_due(&self, round: u32, idle_before: u64, grace: &Grace) -> bool {
        let life = self.life();
        // Relaxed: looked at again under the lock.
        let waits_for = self.waits_for.load(Ordering::Relaxed);
        match life.0 & STATE {
            FREE => false,
            ALIVE => self.is_idle(idle_before) && !self.was_seen_since(round),
            _ if waits_for & ROUND != 0 => {
                let since = round.wrapping_sub(waits_for) % ROUNDS;
                since > 0 && since < ROUNDS / 2
            }
            _ => grace.is_over(waits_for),
        }
    }

    /// Makes a DEAD number FREE; tells whether it can be used again.
    #[must_use]
    pub(crate) fn vacate(&self) -> bool {
        self.free_id();
        let (generation, overflow) = (self.life().0 | STATE | IS_NAME).overflowing_add(GENERATION);
        self.set_life(Life(generation).with(FREE));
        !overflow
    }

    fn free_id(&self) {
        if self.life().is_name() {
            // Relaxed: the caller is alone with the ID.
            let bits = self.id[1].load(Ordering::Relaxed);
            // SAFETY: a name's bits refer to a text.
            let text = unsafe { Text::from_bits(bits) };
            // SAFETY: a grace period has passed since the number died (or the table is going away), so nobody reads the
            // ID any more; `vacate` and `drop` free it once, since they leave the number FREE or gone.
            unsafe { text.free() };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_late_sweeper_does_not_take_back_what_a_later_round_saw() {
        for round in [5, 0, ROUNDS - 1, ROUNDS / 2] {
            let entry = Entry::default();
            assert!(!entry.was_seen_since(round));
            entry.seen_in(round);
            let before = round.wrapping_sub(3) % ROUNDS;
            entry.seen_in(before);
            assert!(entry.was_seen_since(round), "round {round}");
            // For a sweeper that is late at the proxies, it is in use too.
            assert!(entry.was_seen_since(before), "round {round}");
            assert!(!entry.was_seen_since((round + 1) % ROUNDS), "round {round}");
        }
    }

    #[test]
    fn a_round_long_past_is_not_taken_for_one_to_come() {
        let entry = Entry::default();
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

impl Drop for Entry {
    fn drop(&mut self) {
        if self.life().0 & STATE != FREE {
            self.free_id();
        }
        // Relaxed: whoever drops the table is alone with it.
        let details = self.details.load(Ordering::Relaxed);
        if !details.is_null() {
            // SAFETY: it came from `Arc::into_raw`, and the entry owned it.
            drop(unsafe { Arc::from_raw(details) });
        }
    }
}
