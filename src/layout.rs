//! The sizes that several parts of the table share.

/// How many of a hash's top bits are the shard's number. Few under a fuzzer, so that a few hundred nodes make shards
/// grow and move.
pub(crate) const SHARD_BITS: u32 = if cfg!(loom) {
    1
} else if cfg!(fuzzing) {
    2
} else {
    7
};

/// How many shards there are for each kind of key.
pub(crate) const SHARDS: usize = 1 << SHARD_BITS;

/// Slots of a bucket of an index: one cache line.
pub(crate) const SLOTS_PER_BUCKET: u32 = if cfg!(loom) { 2 } else { 16 };

/// Bits of a record's number in a slot of an index, and in a route's handle.
pub(crate) const RECORD_BITS: u32 = 22;

/// The most records of a slab: every number plus one fits into a slot, and is never FROZEN.
pub(crate) const MAX_RECORDS: u32 = (1 << RECORD_BITS) - 2;

/// The most routes of a table. With that many nodes of one kind, a random distribution still leaves each shard below
/// its maximum of records, tombstones included.
pub(crate) const MAX_ROUTES: usize = SHARDS * (MAX_RECORDS as usize / 16 * 15);

/// The most routes of one node.
pub const MAX_ROUTES_PER_NODE: usize = if cfg!(loom) { 3 } else { 64 };

/// The maximum length of an ID, a cluster name or an address, in bytes.
pub const MAX_TEXT: usize = 255;

/// Bits of the number of a round of the sweeper.
pub(crate) const ROUND_BITS: u32 = 22;

/// How many rounds of the sweeper there are before their numbers repeat. A round's number is compared only with those
/// of rounds shortly before.
pub(crate) const ROUNDS: u32 = 1 << ROUND_BITS;
