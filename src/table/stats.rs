//! What a table holds.

use std::time::Duration;

use crate::sync::{garbage, pin};
use crate::table::RouteTable;
use crate::types::expiry_hold::ExpiryHold;

/// What a table holds. Each figure is correct at some moment of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Stats {
    /// Routes, counted until they are removed or swept.
    pub routes: usize,
    /// Nodes with at least one of these routes.
    pub nodes: usize,
    /// Records of the slabs, in use and free; 24 bytes each.
    pub records: usize,
    /// Registered proxies.
    pub proxies: usize,
    /// Incarnations that the table knows: those of registered proxies, and those that ended within a keep-alive
    /// interval. The sweeper forgets the others.
    pub incarnations: usize,
    /// The [effective keep-alive interval](RouteTable::effective_keep_alive).
    pub effective_keep_alive: Duration,
    /// Whether [expiry is held](RouteTable::expiry_hold), and why.
    pub expiry_hold: Option<ExpiryHold>,
    /// Objects that the tables of this process have retired but not freed yet, because a thread may still read them.
    /// These are route lists, indexes, changes of the feed, details of proxies, arrays of the map of proxy IDs, and
    /// grace periods that have not ended. All tables of the process share the figure.
    ///
    /// The figure is at most [`MAX_GARBAGE_PER_THREAD`](Stats::MAX_GARBAGE_PER_THREAD) for each thread that has used a
    /// table, unless a thread stays inside a call. Then objects that other threads retire wait for that thread: few
    /// objects during most calls, more while a call replaces a large shard. If the operating system stops a thread
    /// inside a call, the figure has no bound. If only the sweeper uses the tables, two rounds of the sweeper leave at
    /// most 64 objects for each other thread.
    ///
    /// Not counted: the bags that crossbeam-epoch keeps the objects in, up to 130 KiB for each thread that has used a
    /// table.
    pub garbage: usize,
    /// The bytes of [`garbage`](Stats::garbage), without the allocator's overhead.
    pub garbage_bytes: usize,
}

impl Stats {
    /// The most objects of [`garbage`](Stats::garbage) for each thread, while no other thread stays inside a call.
    pub const MAX_GARBAGE_PER_THREAD: usize = 4_096;
}

/// The limits of a table. An optional limit is `None` if the table has no such limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableLimits {
    /// [`Builder::max_routes`](crate::Builder::max_routes).
    pub routes: usize,
    /// [`Builder::max_routes_per_proxy`](crate::Builder::max_routes_per_proxy).
    pub routes_per_proxy: Option<usize>,
    /// [`Builder::max_routes_per_client`](crate::Builder::max_routes_per_client).
    pub routes_per_client: Option<usize>,
    /// [`Builder::max_proxies`](crate::Builder::max_proxies).
    pub proxies: usize,
    /// [`Builder::max_proxies_per_client`](crate::Builder::max_proxies_per_client).
    pub proxies_per_client: Option<usize>,
    /// The most [incarnations](Stats::incarnations): a sixteenth and 8 more than [`proxies`](Self::proxies).
    pub incarnations: usize,
    /// The most incarnations of a client: a sixteenth and 8 more than [`proxies_per_client`](Self::proxies_per_client).
    pub incarnations_per_client: Option<usize>,
    /// [`Builder::max_text_bytes`](crate::Builder::max_text_bytes); `usize::MAX` without a limit.
    pub text_bytes: usize,
}

/// # Figures
impl RouteTable {
    /// What the table holds. Reads counts of each shard, which takes some microseconds and no lock.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let guard = pin();
        let garbage = garbage();
        let (nodes, records) = self.shards.records(&guard);
        Stats {
            routes: self.len(),
            nodes,
            records,
            proxies: self.proxies.len(),
            incarnations: self.proxies.incarnations(),
            effective_keep_alive: self.effective_keep_alive(),
            expiry_hold: self.expiry_hold(),
            garbage: garbage.objects,
            garbage_bytes: garbage.bytes,
        }
    }

    /// The number of routes, counted until they are removed or swept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.route_limit.get()
    }

    /// The limits of the table, as its [`Builder`](crate::Builder) has set them.
    #[must_use]
    pub fn limits(&self) -> TableLimits {
        let of_proxies = self.proxies.limits();
        TableLimits {
            routes: self.route_limit.limit(),
            routes_per_proxy: of_proxies.routes_each,
            routes_per_client: of_proxies.routes_of_client,
            proxies: of_proxies.proxies,
            proxies_per_client: of_proxies.of_client,
            incarnations: self.proxies.most_incarnations(),
            incarnations_per_client: self.proxies.most_incarnations_of_client(),
            text_bytes: of_proxies.text_bytes,
        }
    }

    /// Whether there are no routes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
