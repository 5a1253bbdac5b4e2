//! The 64-bit word that holds a record's routes, or points to their list.
//!
//! ```text
//! LIVE   proxy number (23) | last refresh in ticks (38)    | FROZEN (1) | state (2)
//! SPILL  a list's length (7) | its address, 8-aligned (54) | FROZEN (1) | state (2)
//! ```
//!
//! A list's own words have the LIVE form, with a *rank* instead of the state. Of two routes that were refreshed in one
//! tick, the route with the greater rank was refreshed later. Rank 0 is encoded as LIVE, so a word of rank 0 is a LIVE
//! word. Ticks are milliseconds on the table's own scale (`src/time.rs`).

use std::fmt;

const STATE_MASK: u64 = 0b11;
const FROZEN: u64 = 0b100;
const TIME_SHIFT: u32 = 3;
const PROXY_SHIFT: u32 = TIME_SHIFT + TIME_BITS;
pub(crate) const TIME_BITS: u32 = 38;
/// The first bit of a list's length. User-space addresses have at most 56 bits on the supported processors.
const LEN_SHIFT: u32 = 57;

/// The number of proxy numbers that fit into a word.
pub(crate) const PROXY_NUMBERS: usize = 1 << (64 - PROXY_SHIFT);

/// The last tick that fits into a word: 8.7 years.
pub(crate) const LAST_TICK: u64 = (1 << TIME_BITS) - 1;

/// The greatest rank of a list's word.
pub(crate) const LAST_RANK: u64 = STATE_MASK;

/// The state of a record's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The record belongs to no key: it is free, or will be. Terminal until the record is reused.
    Retired = 0,
    /// The key has no route now; a route may be added.
    Dead = 1,
    /// The key has one route, in the word itself.
    Live = 2,
    /// The key has two routes or more, in a list that the word points to.
    Spill = 3,
}

/// A record's word, or a list's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    /// The word of a free record. It is zero, so zeroed memory is free records.
    pub(crate) const RETIRED: Word = Word(State::Retired as u64);
    pub(crate) const DEAD: Word = Word(State::Dead as u64);

    /// One route. `proxy` is below [`PROXY_NUMBERS`] and `time` at most [`LAST_TICK`].
    pub(crate) fn live(proxy: u32, time: u64) -> Word {
        debug_assert!((proxy as usize) < PROXY_NUMBERS && time <= LAST_TICK);
        Word(u64::from(proxy) << PROXY_SHIFT | time << TIME_SHIFT | State::Live as u64)
    }

    /// A list's address, which is 8-aligned, and its length.
    pub(crate) fn spill(address: u64, len: usize) -> Word {
        assert!(
            address & (STATE_MASK | FROZEN) == 0 && address >> LEN_SHIFT == 0 && len >> (64 - LEN_SHIFT) == 0,
            "{len} words at {address:#x}"
        );
        Word((len as u64) << LEN_SHIFT | address | State::Spill as u64)
    }

    pub(crate) fn state(self) -> State {
        match self.0 & STATE_MASK {
            0 => State::Retired,
            1 => State::Dead,
            2 => State::Live,
            _ => State::Spill,
        }
    }

    /// Whether the state is LIVE or SPILL.
    #[inline]
    pub(crate) fn has_routes(self) -> bool {
        self.0 & State::Live as u64 != 0
    }

    /// Whether a record's word is LIVE with a route through `proxy`, and not frozen.
    #[inline]
    pub(crate) fn is_live_through(self, proxy: u32) -> bool {
        self.0 & !(LAST_TICK << TIME_SHIFT) == Word::live(proxy, 0).0
    }

    /// The proxy number of a LIVE word.
    pub(crate) fn proxy(self) -> u32 {
        (self.0 >> PROXY_SHIFT) as u32
    }

    /// The last refresh of a LIVE word.
    pub(crate) fn time(self) -> u64 {
        self.0 >> TIME_SHIFT & LAST_TICK
    }

    /// A list's word with this rank.
    pub(crate) fn ranked(self, rank: u64) -> Word {
        debug_assert!(rank <= LAST_RANK);
        Word(self.0 & !STATE_MASK | (rank ^ State::Live as u64))
    }

    /// The rank of a list's word.
    pub(crate) fn rank(self) -> u64 {
        self.0 & STATE_MASK ^ State::Live as u64
    }

    /// The sort key of a list's words: time, then rank.
    pub(crate) fn recency(self) -> u64 {
        self.time() << STATE_MASK.count_ones() | self.rank()
    }

    /// The list's address in a SPILL word.
    pub(crate) fn address(self) -> u64 {
        self.0 & ((1 << LEN_SHIFT) - 1) & !(STATE_MASK | FROZEN)
    }

    /// The list's length in a SPILL word.
    pub(crate) fn list_len(self) -> usize {
        (self.0 >> LEN_SHIFT) as usize
    }

    pub(crate) fn is_frozen(self) -> bool {
        self.0 & FROZEN != 0
    }

    pub(crate) fn frozen(self) -> Word {
        Word(self.0 | FROZEN)
    }

    pub(crate) fn thawed(self) -> Word {
        Word(self.0 & !FROZEN)
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.state())?;
        match self.state() {
            State::Live => write!(f, "({}, {})", self.proxy(), self.time())?,
            State::Spill => write!(f, "({:#x})", self.address())?,
            State::Retired | State::Dead => {}
        }
        if self.is_frozen() { f.write_str("*") } else { Ok(()) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_a_word_keep_to_their_bits() {
        for proxy in [0, 1, 12_345, PROXY_NUMBERS as u32 - 1] {
            for time in [0, 1, 1 << 37, LAST_TICK] {
                let word = Word::live(proxy, time);
                for word in [word, word.frozen(), word.frozen().thawed()] {
                    assert_eq!((word.state(), word.proxy(), word.time()), (State::Live, proxy, time));
                }
            }
        }
        let live = Word::live(7, 9);
        for rank in 0..=LAST_RANK {
            let word = live.ranked(rank);
            for word in [word, word.frozen(), word.frozen().thawed()] {
                assert_eq!((word.rank(), word.proxy(), word.time()), (rank, 7, 9));
            }
            assert_eq!((word.ranked(0), word.recency()), (live, 9 << 2 | rank));
        }
        for (address, len) in [(0x7fff_ffff_fff8, 2), (8, 64), ((1 << 56) - 8, 127)] {
            let spill = Word::spill(address, len);
            for word in [spill, spill.frozen(), spill.frozen().thawed()] {
                let fields = (word.state(), word.address(), word.list_len());
                assert_eq!(fields, (State::Spill, address, len));
            }
        }
        assert_eq!((Word::DEAD.state(), Word(0).state()), (State::Dead, State::Retired));
        for word in [Word::DEAD, Word::RETIRED, Word::spill(8, 2), live] {
            for word in [word, word.frozen()] {
                let has_routes = matches!(word.state(), State::Live | State::Spill);
                assert_eq!((word.has_routes(), word.is_live_through(7)), (has_routes, word == live));
                assert!(!word.is_live_through(6));
            }
        }
    }
}
