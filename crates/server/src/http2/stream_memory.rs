//! The memory that h2 keeps for the streams of a connection.
//!
//! h2 has slabs for streams, for received events and for frames to send. A slab grows to the most elements that it has
//! had at one time, and never shrinks. After 256 calls at one time, the slabs take some 530 kB. So the server charges a
//! connection for the most calls that it has had at one time. The server drains the connection after it has been idle
//! for a while. `docs/memory.md` has the figures.
//!
//! The frames of DATA that no call has read are received events, too. [`FRAMES_PER_STREAM`] of them count as a call.

#[cfg(doc)]
use crate::limits::FRAMES_PER_STREAM;
use crate::limits::{SMALL_CONNECTION_CALLS, STREAM_MEMORY};
use crate::memory::Charge;

/// The most calls at one time, and their charge.
#[derive(Debug)]
pub(super) struct StreamMemory {
    most: usize,
    charge: Charge,
    /// Whether a charge was refused since the last [`take_refusal`](Self::take_refusal).
    is_refused: bool,
}

impl StreamMemory {
    /// Returns the memory of a new connection. `charge` is a charge of nothing.
    pub(super) fn new(charge: Charge) -> Self {
        Self {
            most: SMALL_CONNECTION_CALLS,
            charge,
            is_refused: false,
        }
    }

    /// Charges the memory for `calls` calls at one time, unless it was charged before.
    pub(super) fn open(&mut self, calls: usize) {
        if calls > self.most {
            // h2 has taken the memory already, so the server does not try a refused charge again.
            self.is_refused |= self.charge.grow((calls - self.most) * STREAM_MEMORY).is_err();
            self.most = calls;
        }
    }

    /// Reports whether a charge was refused since the last call of this function.
    pub(super) fn take_refusal(&mut self) -> bool {
        std::mem::take(&mut self.is_refused)
    }

    /// Reports whether h2 keeps more memory than that of a small connection.
    pub(super) fn is_large(&self) -> bool {
        self.most > SMALL_CONNECTION_CALLS
    }
}
