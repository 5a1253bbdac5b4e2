//! The names of clusters by number, which readers resolve without a lock.

use crate::mem::segmented_vec::SegmentedVec;
use crate::mem::thin_str::ThinStr;
#[cfg(loom)]
use crate::sync::epoch::PlainData;
use crate::sync::{AtomicU64, Ordering};

/// Names of clusters by number.
#[derive(Debug)]
pub(crate) struct ClusterNames(SegmentedVec<Name, 3>);

/// The bits of a cluster's name, a [`ThinStr`].
#[derive(Debug, Default)]
struct Name {
    bits: AtomicU64,
    #[cfg(loom)]
    text: PlainData,
}

impl ClusterNames {
    /// More numbers than memory can hold, even if a pinned thread keeps the numbers of former clusters from being
    /// reused.
    const LIMIT: u32 = 1 << 31;

    pub(super) fn new() -> Self {
        Self(SegmentedVec::new(Self::LIMIT))
    }

    /// # Safety
    ///
    /// The number is a cluster's while the result is in use.
    pub(super) unsafe fn name<'a>(&self, number: u32) -> &'a str {
        // Relaxed: written before the word with the number was stored (Release). Either the caller loaded the word with
        // Acquire, or the caller is the owner, who wrote it.
        let bits = self.0.get(number).map_or(0, |name| name.bits.load(Ordering::Relaxed));
        #[cfg(loom)]
        self.0.ensure(number).text.read();
        // SAFETY: the caller promises that the number, and so the text, is the cluster's while the result is in use.
        unsafe { ThinStr::from_bits(bits).as_str() }
    }

    pub(super) fn set_name(&self, number: u32, name: ThinStr) {
        // Relaxed: the store of the word with the number publishes it.
        self.0.ensure(number).bits.store(name.to_bits(), Ordering::Relaxed);
        #[cfg(loom)]
        self.0.ensure(number).text.write();
    }

    /// # Safety
    ///
    /// The number has a text that no thread reads any more, and gets another text before it is a cluster's again.
    pub(super) unsafe fn free_name(&self, number: u32) {
        // Relaxed: the owner wrote it.
        let bits = self.0.get(number).map_or(0, |name| name.bits.load(Ordering::Relaxed));
        #[cfg(loom)]
        self.0.ensure(number).text.write();
        // SAFETY: the caller promises that there is a text that no thread reads any more, and that it is freed once.
        unsafe { ThinStr::from_bits(bits).free() };
    }
}
