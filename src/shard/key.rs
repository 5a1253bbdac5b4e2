//! The two kinds of key that records have: UUIDs and names.
//!
//! A record stores 128 bits. Any 128 bits are a valid UUID, so names live in shards of their own, as a hash and the
//! address of the text.

use ahash::RandomState;
use uuid::Uuid;

use crate::mem::thin_str::ThinStr;
use crate::types::node_id::NodeId;

/// What a shard's records are found by.
pub(crate) trait Key {
    /// The hash that picks shard, bucket and tag.
    fn hash(&self, hasher: &RandomState) -> u64;

    /// Whether a record's 128 bits stand for this key.
    ///
    /// # Safety
    ///
    /// `stored` was read from a record that an index held while this thread was pinned, and it still is.
    unsafe fn is(&self, stored: [u64; 2]) -> bool;

    /// What to store in a record; `None` where there is no memory for it.
    fn store(&self) -> Option<[u64; 2]>;

    /// The hash of the key that `stored` stands for.
    fn hash_stored(stored: [u64; 2], hasher: &RandomState) -> u64;

    /// The node that `stored` stands for.
    ///
    /// # Safety
    ///
    /// As for [`is`](Key::is).
    unsafe fn node(stored: [u64; 2]) -> NodeId;

    /// Frees what `stored` refers to.
    ///
    /// # Safety
    ///
    /// `stored` came from [`store`](Key::store), no reader can reach it any more, and it is freed once.
    unsafe fn free(stored: [u64; 2]);
}

/// A UUID, stored as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UuidKey(pub(crate) [u64; 2]);

impl From<Uuid> for UuidKey {
    fn from(uuid: Uuid) -> Self {
        let (high, low) = uuid.as_u64_pair();
        Self([low, high])
    }
}

impl Key for UuidKey {
    #[inline]
    fn hash(&self, hasher: &RandomState) -> u64 {
        Self::hash_stored(self.0, hasher)
    }

    #[inline]
    unsafe fn is(&self, stored: [u64; 2]) -> bool {
        // One comparison of the whole: two branches would both be predicted well, but cost an instruction more.
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
    /// `hash` is the [`hash_of`](Self::hash_of) the name.
    pub(crate) fn new(name: &'a str, hash: u64) -> Self {
        Self { name, hash }
    }

    pub(crate) fn hash_of(name: &str, hasher: &RandomState) -> u64 {
        hasher.hash_one(name)
    }
}

impl Key for NameKey<'_> {
    fn hash(&self, _hasher: &RandomState) -> u64 {
        self.hash
    }

    unsafe fn is(&self, stored: [u64; 2]) -> bool {
        self.hash == stored[0] && {
            // SAFETY: the text is freed with its record, which this pinned thread found in an index.
            let text = unsafe { ThinStr::from_bits(stored[1]) };
            // SAFETY: as above.
            unsafe { text.as_str() == self.name }
        }
    }

    fn store(&self) -> Option<[u64; 2]> {
        Some([self.hash, ThinStr::new(self.name)?.to_bits()])
    }

    fn hash_stored(stored: [u64; 2], _hasher: &RandomState) -> u64 {
        stored[0]
    }

    unsafe fn node(stored: [u64; 2]) -> NodeId {
        // SAFETY: as in `is`.
        let text = unsafe { ThinStr::from_bits(stored[1]) };
        // SAFETY: as in `is`.
        NodeId::from_name(unsafe { text.as_str() })
    }

    unsafe fn free(stored: [u64; 2]) {
        // SAFETY: it came from `store`, and nobody reaches it any more.
        let text = unsafe { ThinStr::from_bits(stored[1]) };
        // SAFETY: as above.
        unsafe { text.free() };
    }
}
