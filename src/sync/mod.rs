//! The only module that knows whether the table runs for real or inside a loom model.
//!
//! Outside loom this is `std`'s atomics and crossbeam-epoch. Under `--cfg loom` the atomics are loom's, and reclamation
//! is a model. The model frees an object when every guard that was pinned at its retirement is gone. Even then it is
//! only *marked* as freed, so that each access can assert that it is not too late. loom deliberately does not see the
//! bookkeeping of that model. The bookkeeping must not add an edge that crossbeam does not have, because the edge would
//! hide a missing edge. The model's docs list its edges.

use std::sync::{PoisonError, TryLockError};

use ahash::RandomState;

#[cfg(not(loom))]
pub(crate) use atomic_waker::AtomicWaker;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(loom)]
pub(crate) use loom::future::AtomicWaker;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

pub(crate) use epoch::{Guard, after_grace, collect, garbage, pin, retire};

/// A point within an operation at which `verify/failpoints.rs` can stop a thread while others run. Does nothing outside
/// unit tests.
#[inline(always)]
pub(crate) fn failpoint(_name: &'static str) {
    #[cfg(all(test, not(loom)))]
    crate::verify::failpoints::failpoint(_name);
}

/// A hash function with a random seed for each table, so that an attacker cannot choose keys that collide. A loom model
/// must be deterministic, so there the seed is fixed.
pub(crate) fn new_hasher() -> RandomState {
    if cfg!(loom) {
        RandomState::with_seeds(1, 2, 3, 4)
    } else {
        RandomState::new()
    }
}

/// A lock, for calls that are not lock-free. A panic under the lock leaves no invariant broken, so poisoning is
/// ignored.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(lock::Mutex<T>);

#[cfg(not(loom))]
use std::sync as lock;

#[cfg(loom)]
use loom::sync as lock;

pub(crate) use lock::MutexGuard;

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(lock::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> lock::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, if no thread has it.
    pub(crate) fn try_lock(&self) -> Option<lock::MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// The objects that are retired and not freed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Garbage {
    pub(crate) objects: usize,
    pub(crate) bytes: usize,
}

/// A heap object that the table unlinks while readers may still use it.
pub(crate) trait Reclaim {
    /// Runs when no thread can reach the object any more, before it is freed. It must not touch records or indexes: the
    /// table may be dropped by then.
    fn after_grace(&self);

    /// Frees the memory.
    ///
    /// # Safety
    ///
    /// `object` came from its type's own allocation, no other thread can reach it, and it is freed once.
    unsafe fn free(object: *mut Self);

    /// Approximately how many bytes `free` frees.
    #[cfg_attr(loom, allow(dead_code, reason = "the model does not count"))]
    fn bytes(&self) -> usize;

    /// The mark by which accesses assert that the object is not freed.
    #[cfg(loom)]
    fn fate(&self) -> &epoch::Fate;
}

#[cfg(not(loom))]
mod epoch;
#[cfg(loom)]
#[path = "epoch_model.rs"]
pub(crate) mod epoch;
pub(crate) mod stripes;
