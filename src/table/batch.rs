//! Many nodes in one call.
//!
//! A look-up waits for memory twice: for its bucket of the index, then for its record. In single calls, these waits add
//! up. An epoch pin is a full fence, so the processor cannot start the wait of the next look-up during this look-up. A
//! batch pins once for a group of nodes. It prefetches all their buckets, then all their records, and then reads the
//! records (Chen et al., "Improving hash join performance through prefetching", 2004).

use std::fmt;
use std::iter::FusedIterator;

use smallvec::SmallVec;

use crate::error::{AddError, AddNodesError, ReportNodesError};
use crate::layout::MAX_ROUTES_PER_NODE;
use crate::shard::candidate::Candidate;
use crate::sync::{Guard, pin};
use crate::table::RouteTable;
use crate::table::copied::CopiedRoute;
use crate::types::client::ReportedProxy;
use crate::types::handle::RouteHandle;
use crate::types::node_id::NodeId;
use crate::types::proxy::ProxyRef;
use crate::types::route::Added;
use crate::types::routes::Routes;
use crate::word::State;

/// Nodes per pin: enough for the waits to overlap, few enough that prefetched lines stay in the cache and reclamation
/// is not held up.
pub(super) const GROUP: usize = 64;

/// The routes of each node of a batch, in the order of the nodes: an iterator, from [`RouteTable::get_proxies_batch`].
#[must_use = "iterators are lazy"]
pub struct BatchRoutes<'a> {
    table: &'a RouteTable,
    /// The nodes of the next groups.
    nodes: &'a [NodeId],
    /// How many routes each node of this group has.
    ///
    /// `counts` and `only` are arrays, not vectors: checking a vector's capacity for each node takes longer than the
    /// rest of storing a route.
    counts: [u8; GROUP],
    /// The route of each node of this group that has one route. Unused for the other nodes.
    only: [CopiedRoute; GROUP],
    /// The routes of the nodes of this group that have several routes.
    several: SmallVec<[CopiedRoute; 2 * GROUP]>,
    /// How many nodes this group has.
    loaded: usize,
    /// How many nodes of this group the caller has taken.
    taken: usize,
    /// Where the routes of the next node with several routes start in `several`.
    start: usize,
}

/// The result of [`add_nodes`](RouteTable::add_nodes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct AddedNodes {
    /// Routes that were unknown or expired.
    pub inserted: usize,
    /// Routes that were known and not expired.
    pub refreshed: usize,
}

impl AddedNodes {
    /// The number of nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inserted + self.refreshed
    }

    /// Whether there were no nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the counts, or the error that stopped the call after them.
    fn unless(self, done: Result<(), AddError>) -> Result<Self, AddNodesError> {
        match done {
            Ok(()) => Ok(self),
            Err(error) => Err(AddNodesError {
                added: self.len(),
                error,
            }),
        }
    }

    fn count(&mut self, added: Added) {
        match added {
            Added::Inserted => self.inserted += 1,
            Added::Refreshed => self.refreshed += 1,
        }
    }
}

/// A node of a group, between prefetch and answer.
struct Lane<'g> {
    hash: u64,
    candidate: Option<Candidate<'g>>,
}

/// # Batches
impl RouteTable {
    /// [`get_proxies`](Self::get_proxies) for many nodes: two to three times as fast as single calls if the table does
    /// not fit into the cache.
    ///
    /// When the caller takes the first of 64 nodes, the iterator looks up all 64. The iterator allocates nothing if at
    /// most half of the nodes have two routes, and no node has more than two.
    ///
    /// ```
    /// # use nodetracker::{NodeId, Proxy, RouteTable};
    /// # let table = RouteTable::new();
    /// # let proxy = table.register_proxy(&Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" })?;
    /// let nodes: Vec<NodeId> = vec!["node-1".parse()?, "node-2".parse()?];
    /// table.add_node(&nodes[0], proxy)?;
    ///
    /// for (node, routes) in nodes.iter().zip(table.get_proxies_batch(&nodes)) {
    ///     println!("{node} has {} routes", routes.len());
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_proxies_batch<'a>(&'a self, nodes: &'a [NodeId]) -> BatchRoutes<'a> {
        BatchRoutes {
            table: self,
            nodes,
            counts: [0; GROUP],
            only: [CopiedRoute::NONE; GROUP],
            several: SmallVec::new(),
            loaded: 0,
            taken: 0,
            start: 0,
        }
    }

    /// [`add_node`](Self::add_node) for many nodes, through one proxy: much faster than single calls if the table does
    /// not fit into the cache.
    ///
    /// # Errors
    ///
    /// [`AddNodesError`]: the proxy is no longer registered, or there is no room for one of the nodes. The error has
    /// the number of nodes that were added before; these nodes stay.
    pub fn add_nodes(&self, nodes: &[NodeId], proxy: ProxyRef) -> Result<AddedNodes, AddNodesError> {
        let mut added = AddedNodes::default();
        let done = self.add_each(nodes, proxy, &mut added, |_| ());
        added.unless(done)
    }

    /// [`register_proxy`](Self::register_proxy) and [`add_nodes`](Self::add_nodes) in one call, for callers that keep
    /// no references. If the proxy is removed meanwhile, the call registers it again for the remaining nodes.
    ///
    /// # Errors
    ///
    /// [`ReportNodesError`]: as for both calls, but never [`AddError::UnknownProxy`].
    pub fn report_nodes<'a>(
        &self,
        nodes: &[NodeId],
        proxy: impl Into<ReportedProxy<'a>>,
    ) -> Result<AddedNodes, ReportNodesError> {
        let (reported, mut added) = (proxy.into(), AddedNodes::default());
        loop {
            let registered = self.register_proxy(reported)?;
            let done = self.add_each(&nodes[added.len()..], registered, &mut added, |_| ());
            if added.inserted > 0 {
                self.proxies().claim(registered, reported.client, &pin());
            }
            if done != Err(AddError::UnknownProxy) {
                return Ok(added.unless(done)?);
            }
        }
    }
}

impl RouteTable {
    /// Adds routes, and calls `each` with the handle of each route. Counts in `added`, also if the call fails.
    pub(super) fn add_each(
        &self,
        nodes: &[NodeId],
        proxy: ProxyRef,
        added: &mut AddedNodes,
        mut each: impl FnMut(RouteHandle),
    ) -> Result<(), AddError> {
        let done = self.add_groups(nodes, proxy, added, &mut each);
        if added.inserted > 0 {
            self.proxies().touch(proxy.number, self.now());
        }
        done
    }

    fn add_groups(
        &self,
        nodes: &[NodeId],
        proxy: ProxyRef,
        added: &mut AddedNodes,
        each: &mut impl FnMut(RouteHandle),
    ) -> Result<(), AddError> {
        for group in nodes.chunks(GROUP) {
            let guard = pin();
            // Check and CAS need the same pin: see `proxies`.
            if !self.proxies().takes_routes(proxy) {
                return Err(AddError::UnknownProxy);
            }
            group.iter().for_each(|node| self.shards().ensure_for(node));
            let now = self.time().now();
            let scope = self.scope_at(now, &guard);
            let lanes = self.load(group, &guard);
            for (node, lane) in group.iter().zip(lanes) {
                let done = lane.candidate.and_then(|candidate| {
                    let added = candidate.add_to(node, proxy.number, &scope)?;
                    Some(
                        added
                            .map(|added| (added, candidate.number))
                            .map_err(|refused| self.add_error(refused)),
                    )
                });
                let (one, number) = done.unwrap_or_else(|| self.add_pinned(node, lane.hash, proxy, now, &guard))?;
                added.count(one);
                each(RouteHandle::new(node.is_name(), lane.hash, number));
            }
        }
        Ok(())
    }

    /// Hashes a group of nodes, and prefetches their buckets, then their records.
    fn load<'g>(&self, group: &[NodeId], guard: &'g Guard) -> SmallVec<[Lane<'g>; GROUP]> {
        let mut lanes: SmallVec<[Lane<'g>; GROUP]> = group
            .iter()
            .map(|node| {
                let hash = self.hash(node);
                self.shards().prefetch(node, hash, guard);
                Lane { hash, candidate: None }
            })
            .collect();
        for (node, lane) in group.iter().zip(&mut lanes) {
            lane.candidate = self.shards().candidate(node, lane.hash, guard);
        }
        lanes
    }
}

impl BatchRoutes<'_> {
    /// Looks up the next group of nodes, under one pin.
    #[inline(never)]
    fn load_group(&mut self) {
        let (group, rest) = self.nodes.split_at(self.nodes.len().min(GROUP));
        self.nodes = rest;
        self.several.clear();
        (self.loaded, self.taken, self.start) = (group.len(), 0, 0);
        let table = self.table;
        let guard = pin();
        let now = table.time().now();
        let scope = table.scope_at(now.of_look_up(), &guard);
        let lanes = table.load(group, &guard);
        let stores = self.counts.iter_mut().zip(&mut self.only);
        for ((node, lane), (count, only)) in group.iter().zip(lanes).zip(stores) {
            *count = match lane.candidate.and_then(|candidate| candidate.word_of(node)) {
                // Nearly all nodes have one route.
                Some(word) if word.state() == State::Live => match table.copied(word) {
                    Some(route) if scope.is_fresh(word) => {
                        *only = route;
                        1
                    }
                    _ => 0,
                },
                _ => {
                    let words = table.words_of(node, lane.hash, now, &guard);
                    let before = self.several.len();
                    self.several
                        .extend(words.into_iter().filter_map(|word| table.copied(word)));
                    match &self.several[before..] {
                        [route] => {
                            *only = *route;
                            self.several.truncate(before);
                            1
                        }
                        routes => routes.len() as u8,
                    }
                }
            };
        }
    }
}

// A node's routes are counted in 8 bits.
const _: () = assert!(MAX_ROUTES_PER_NODE <= u8::MAX as usize);

impl Iterator for BatchRoutes<'_> {
    type Item = Routes;

    #[inline]
    fn next(&mut self) -> Option<Routes> {
        if self.taken == self.loaded {
            if self.nodes.is_empty() {
                return None;
            }
            self.load_group();
        }
        let at = self.taken;
        self.taken += 1;
        let time = self.table.time();
        Some(match self.counts[at] {
            0 => Routes::new(),
            // Cheaper than collecting, and nearly always.
            1 => Routes::of(Some(self.only[at].dated(time))),
            count => {
                let start = self.start;
                self.start += usize::from(count);
                let routes = &self.several[start..self.start];
                routes.iter().map(|route| route.dated(time)).collect()
            }
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.loaded - self.taken + self.nodes.len();
        (left, Some(left))
    }
}

impl ExactSizeIterator for BatchRoutes<'_> {}
impl FusedIterator for BatchRoutes<'_> {}

impl fmt::Debug for BatchRoutes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchRoutes")
            .field("left", &self.len())
            .finish_non_exhaustive()
    }
}
