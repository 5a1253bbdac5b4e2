//! Records that an index has published.

use std::ops::Deref;

use crate::shard::key::Key;
use crate::shard::slab::Record;
use crate::types::node_id::NodeId;

/// A record that belongs to a key while the guard of `'g` is pinned. An index has published the record (invariant 2),
/// or its word had routes (invariant 3). No thread reuses the record before the guard is dropped (invariant 7).
#[derive(Clone, Copy)]
pub(crate) struct Published<'g>(&'g Record);

impl<'g> Published<'g> {
    /// # Safety
    ///
    /// The record was read from a slot of an index, or its word had routes, while the guard of `'g` was pinned.
    #[inline]
    pub(crate) unsafe fn new(record: &'g Record) -> Self {
        Self(record)
    }

    /// Whether the record is the key's.
    #[inline]
    pub(crate) fn is<K: Key>(self, key: &K) -> bool {
        // SAFETY: the record has a key, and keeps the key under the pin (invariants 2 and 7, by the type).
        unsafe { key.is(self.key()) }
    }

    /// The node whose record this is.
    pub(crate) fn node<K: Key>(self) -> NodeId {
        // SAFETY: the record has a key, and keeps the key under the pin (invariants 2 and 7, by the type).
        unsafe { K::node(self.key()) }
    }
}

impl Deref for Published<'_> {
    type Target = Record;

    #[inline]
    fn deref(&self) -> &Record {
        self.0
    }
}
