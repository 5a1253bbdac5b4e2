//! The two kinds of key that records have: UUIDs and names.
//!
//! A record stores 128 bits. Any 128 bits are a valid UUID. So names have shards of their own, and are stored as a hash
//! and the address of the text.

use ahash::RandomState;
use uuid::Uuid;

use crate::mem::thin_str::ThinStr;
use crate::types::node_id::NodeId;

/// The key of a shard's records.
pub(crate) trait Key {
    /// Whether a stored key owns memory, which [`free`](Key::free) frees.
    const OWNS_MEMORY: bool;

    /// The hash that picks shard, bucket and tag.
    fn hash(&self, hasher: &RandomState) -> u64;

    /// Whether a record's 128 bits are this key.
    ///
    /// # Safety
    ///
    /// `stored` was read while this thread was pinned from a record that an index had, and this thread is still pinned.
    /// Or the record is the caller's alone.
    unsafe fn is(&self, stored: [u64; 2]) -> bool;

    /// The length of the text that [`store`](Key::store) copies, or zero.
    fn text_len(&self) -> usize {
        0
    }

    /// The 128 bits to store in a record; `None` if there is no memory.
    fn store(&self) -> Option<[u64; 2]>;

    /// The hash of a stored key.
    fn hash_stored(stored: [u64; 2], hasher: &RandomState) -> u64;

    /// The node of a stored key.
    ///
    /// # Safety
    ///
    /// As for [`is`](Key::is).
    unsafe fn node(stored: [u64; 2]) -> NodeId;

    /// Frees the memory to which `stored` points.
    ///
    /// # Safety
    ///
    /// `stored` came from [`store`](Key::store), no reader can reach it any more, and it is freed only once.
    unsafe fn free(stored: [u64; 2]);
}

/// A UUID, stored unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UuidKey(pub(crate) [u64; 2]);

impl From<Uuid> for UuidKey {
    fn from(uuid: Uuid) -> Self {
        let (high, low) = uuid.as_u64_pair();
        Self([low, high])
    }
}

impl Key for UuidKey {
    const OWNS_MEMORY: bool = false;

    #[inline]
    fn hash(&self, hasher: &RandomState) -> u64 {
        Self::hash_stored(self.0, hasher)
    }

    #[inline]
    unsafe fn is(&self, stored: [u64; 2]) -> bool {
        // One comparison of both halves: two branches would be predicted as well, but cost one more instruction.
        (self.0[0] ^ stored[0]) | (self.0[1] ^ stored[1]) == 0
    }

    fn store(&self) -> Option<[u64; 2]> {
        Some(self.0)
    }

    #[inline]
    fn hash_stored(stored: [u64; 2], hasher: &RandomState) -> u64 {
        hasher.hash_one(u128::from(stored[1]) << 64 | u128::from(stored[0]))
    }

    unsafe fn node(stored: [u64; 2]) -> NodeId {
        Uuid::from_u64_pair(stored[1], stored[0]).into()
    }

    unsafe fn free(_stored: [u64; 2]) {}
}

/// A name of 1 to 255 bytes with its hash, stored as the hash and the address of a [`ThinStr`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct NameKey<'a> {
    name: &'a str,
    hash: u64,
}

impl<'a> NameKey<'a> {
    /// `hash` is the name's [`hash_of`](Self::hash_of).
    pub(crate) fn new(name: &'a str, hash: u64) -> Self {
        Self { name, hash }
    }

    pub(crate) fn hash_of(name: &str, hasher: &RandomState) -> u64 {
        hasher.hash_one(name)
    }
}

impl Key for NameKey<'_> {
    const OWNS_MEMORY: bool = true;

    fn hash(&self, _hasher: &RandomState) -> u64 {
        self.hash
    }

    unsafe fn is(&self, stored: [u64; 2]) -> bool {
        // SAFETY: the contract of `Key::is`; the text is freed with its record (invariant 8).
        self.hash == stored[0] && unsafe { ThinStr::from_bits(stored[1]).as_str() == self.name }
    }

    fn text_len(&self) -> usize {
        self.name.len()
    }

    fn store(&self) -> Option<[u64; 2]> {
        Some([self.hash, ThinStr::new(self.name)?.to_bits()])
    }

    fn hash_stored(stored: [u64; 2], _hasher: &RandomState) -> u64 {
        stored[0]
    }

    unsafe fn node(stored: [u64; 2]) -> NodeId {
        // SAFETY: the contract of `Key::node`; the text is freed with its record (invariant 8).
        NodeId::from_name(unsafe { ThinStr::from_bits(stored[1]).as_str() })
    }

    unsafe fn free(stored: [u64; 2]) {
        // SAFETY: the caller promises that `store` made the text, that no reader can reach it, and that it is freed
        // once.
        unsafe { ThinStr::from_bits(stored[1]).free() };
    }
}
