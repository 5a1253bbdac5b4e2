//! How many bytes a table has, by part.

use crate::mem::thin_str::ThinStr;
use crate::shard::list;
use crate::sync::pin;
use crate::table::RouteTable;

/// The bytes that a table has allocated, by part: without [garbage](crate::Stats::garbage_bytes), rebuilds under way
/// and the allocator's overhead. Each figure is correct at some moment of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct MemoryUse {
    /// The records of the nodes, in use and free.
    pub records: usize,
    /// The indexes of the shards.
    pub indexes: usize,
    /// The lists of nodes with two routes or more. One figure for all tables of the process.
    pub lists: usize,
    /// Names of nodes, and IDs, addresses and clusters of proxies, if they are stored as text. One figure for all
    /// tables of the process.
    pub strings: usize,
    /// The numbers of the proxies, their counts of routes, and the map of their IDs.
    pub proxies: usize,
    /// The change feed, since the first subscription.
    pub feed: usize,
}

/// # Memory
impl RouteTable {
    /// Returns how many bytes the table has allocated, by part. Reads a few words of each shard, of the map of proxy
    /// IDs and of the change feed, which takes some microseconds and no lock.
    #[must_use]
    pub fn memory_use(&self) -> MemoryUse {
        let guard = pin();
        let (records, indexes) = self.shards.bytes(&guard);
        MemoryUse {
            records,
            indexes,
            lists: list::bytes_of_all(),
            strings: ThinStr::bytes_of_all(),
            proxies: self.proxies.bytes(&guard),
            feed: self.feed.bytes(),
        }
    }
}
