//! The state of a proxy number.

use std::fmt;

const STATE: u32 = 0b11;
const ALIVE: u32 = 0;
const CLOSING: u32 = 1;
const DEAD: u32 = 2;
const FREE: u32 = 3;
/// The ID is a name, not a UUID.
const IS_NAME: u32 = 0b100;
const GENERATION: u32 = 0b1000;

/// A number's state, the kind of its ID, and its generation: how many proxies had the number before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Life(u32);

impl Life {
    /// A number that no proxy has had.
    pub(crate) const NEW: Life = Life(FREE);

    pub(crate) fn is_alive(self) -> bool {
        self.0 & STATE == ALIVE
    }

    pub(crate) fn is_free(self) -> bool {
        self.0 & STATE == FREE
    }

    pub(crate) fn is_closing(self) -> bool {
        self.0 & STATE == CLOSING
    }

    /// Whether routes of this number may be returned: it is ALIVE or CLOSING.
    #[inline]
    pub(crate) fn has_routes(self) -> bool {
        self.0 & STATE <= CLOSING
    }

    /// Whether this is the proxy of `alive`, ALIVE or CLOSING.
    pub(crate) fn is_same_proxy(self, alive: Life) -> bool {
        self.has_routes() && self.alive() == alive
    }

    pub(crate) fn alive(self) -> Life {
        self.with(ALIVE)
    }

    /// The life of a FREE number in its next generation; `None` if the generations are used up.
    pub(crate) fn next_generation(self) -> Option<Life> {
        let last = self.0 | STATE | IS_NAME;
        last.checked_add(GENERATION).map(|next| Life(next).free())
    }

    /// The life of a number that was FREE, for a proxy whose ID is or is not a name.
    pub(crate) fn begin(self, is_name: bool) -> Life {
        let kind = if is_name { IS_NAME } else { 0 };
        Life(self.0 & !IS_NAME | kind).alive()
    }

    pub(crate) fn closing(self) -> Life {
        self.with(CLOSING)
    }

    pub(crate) fn dead(self) -> Life {
        self.with(DEAD)
    }

    pub(crate) fn free(self) -> Life {
        self.with(FREE)
    }

    pub(crate) fn to_bits(self) -> u32 {
        self.0
    }

    /// `bits` came from [`to_bits`](Life::to_bits).
    pub(crate) fn from_bits(bits: u32) -> Life {
        Life(bits)
    }

    fn with(self, state: u32) -> Life {
        Life(self.0 & !STATE | state)
    }

    pub(crate) fn is_name(self) -> bool {
        self.0 & IS_NAME != 0
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = ["alive", "closing", "dead", "free"][(self.0 & STATE) as usize];
        write!(f, "{state} in generation {}", self.0 / GENERATION)
    }
}
