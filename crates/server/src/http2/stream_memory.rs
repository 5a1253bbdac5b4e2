//! The memory that h2 keeps for the streams of a connection.
//!
//! h2 has slabs for streams, for received events and for frames to send. A slab grows to the most elements that it has
//! had at one time, and never shrinks. After 256 calls at one time, the slabs take some 530 kB. So the server charges a
//! connection for the most calls that the connection has had at one time, and drains the connection after it has been
//! idle for a while. `docs/memory.md` has the figures.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{SMALL_CONNECTION_CALLS, STREAM_MEMORY};
use crate::memory::Charge;

/// The most calls at one time, and their charge.
#[derive(Debug)]
pub(super) struct StreamMemory {
    most: usize,
    charge: Charge,
    /// Whether a charge was refused since the last [`take_refusal`](Self::take_refusal).
    is_refused: bool,
    /// Since when the connection has been idle, and the number of its calls at that time.
    idle: Option<(Instant, u64)>,
}

impl StreamMemory {
    /// Returns the memory of a new connection. `charge` is a charge of nothing.
    pub(super) fn new(charge: Charge) -> Self {
        Self {
            most: SMALL_CONNECTION_CALLS,
            charge,
            is_refused: false,
            idle: None,
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

    /// Takes note whether the connection `is_idle` now. Reports whether all calls of this function for `at_least` found
    /// the connection idle, and the connection had no call meanwhile. `calls` counts the calls of the connection so
    /// far.
    pub(super) fn is_idle(&mut self, is_idle: bool, calls: u64, at_least: Duration) -> bool {
        match self.idle {
            Some((since, before)) if is_idle && before == calls => since.elapsed() >= at_least,
            _ => {
                self.idle = is_idle.then(|| (Instant::now(), calls));
                false
            }
        }
    }
}
