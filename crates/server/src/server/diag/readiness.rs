//! Whether the server is ready for clients.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a server is not ready before it serves.
pub(crate) const STARTING: &str = "the server is starting";

/// Whether the server is ready, and if not, why. A server is not ready before it [serves](Self::serving).
#[derive(Debug)]
pub(crate) struct Readiness {
    /// `None` if the server is ready.
    reason: Mutex<Option<&'static str>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            reason: Mutex::new(Some(STARTING)),
        }
    }
}

impl Readiness {
    fn reason(&self) -> MutexGuard<'_, Option<&'static str>> {
        // No critical section leaves the reason half changed.
        self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the server takes calls.
    pub(crate) fn serving(&self) {
        *self.reason() = None;
    }

    /// Notes that the server takes no calls, or will soon take none. `/readyz` reports the reason.
    pub(crate) fn not_ready(&self, reason: &'static str) {
        *self.reason() = Some(reason);
    }

    /// Reports whether the server is ready.
    ///
    /// # Errors
    ///
    /// The server is not ready. The error is the reason.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        self.reason().map_or(Ok(()), Err)
    }
}
