//! Many nodes in one call.
//!
//! A look-up waits for memory twice: for its bucket of the index, then for its record. One by one, these waits add up:
//! an epoch pin is a full fence, so the processor cannot start the next look-up's wait during this look-up's. A batch
//! pins once for a group of nodes. It prefetches all their buckets, then all their records, and then reads the records
//! (Chen et al., "Improving hash join performance through prefetching", 2004).

use smallvec::SmallVec;

use crate::error::{AddError, AddNodesError, ReportNodesError};
use crate::shard::candidate::Candidate;
use crate::sync::{Guard, pin};
use crate::table::RouteTable;
use crate::types::handle::RouteHandle;
use crate::types::node_id::NodeId;
use crate::types::proxy::{Proxy, ProxyRef};
use crate::types::route::{Added, Route};
use crate::word::State;

/// Nodes per pin: enough for the waits to overlap, few enough that prefetched lines stay in the cache and reclamation
/// is not held up.
const GROUP: usize = 64;

/// The answers of [`RouteTable::get_proxies_batch`]. It keeps its memory, so reuse it.
#[derive(Debug, Default, Clone)]
pub struct RouteBatch {
    routes: Vec<Route>,
    /// Where each node's routes end in `routes`.
    ends: Vec<usize>,
}

impl RouteBatch {
    /// Returns an empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of nodes in the call.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the call had no nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The routes of the `nth` node of the call, as [`get_proxies`](RouteTable::get_proxies) returns them. `None` if
    /// the call had fewer nodes.
    #[must_use]
    pub fn get(&self, nth: usize) -> Option<&[Route]> {
        let end = *self.ends.get(nth)?;
        let start = nth.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.routes[start..end])
    }

    /// The routes of each node, in the order of the nodes of the call.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[Route]> {
        (0..self.len()).map(|nth| self.get(nth).unwrap_or_default())
    }

    fn clear(&mut self) {
        self.routes.clear();
        self.ends.clear();
    }
}

/// The result of [`add_nodes`](RouteTable::add_nodes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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

impl RouteTable {
    /// [`get_proxies`](Self::get_proxies) for many nodes: two to three times as fast as single calls if the table does
    /// not fit into the cache. Clears `answers` first. Does not allocate once `answers` has grown.
    pub fn get_proxies_batch(&self, nodes: &[NodeId], answers: &mut RouteBatch) {
        answers.clear();
        answers.routes.reserve(nodes.len());
        answers.ends.reserve(nodes.len());
        for group in nodes.chunks(GROUP) {
            let guard = pin();
            let scope = self.scope(&guard);
            let lanes = self.load(group, &guard);
            for (node, lane) in group.iter().zip(lanes) {
                match lane.candidate.and_then(|candidate| candidate.word_of(node)) {
                    // Nearly all nodes have one route.
                    Some(word) if word.state() == State::Live => {
                        if scope.is_fresh(word) {
                            answers.routes.extend(self.route(word));
                        }
                    }
                    _ => {
                        let words = self.words_of(node, lane.hash, scope.now, &guard);
                        answers
                            .routes
                            .extend(words.into_iter().filter_map(|word| self.route(word)));
                    }
                }
                answers.ends.push(answers.routes.len());
            }
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
    pub fn report_nodes(&self, nodes: &[NodeId], proxy: &Proxy<'_>) -> Result<AddedNodes, ReportNodesError> {
        let mut added = AddedNodes::default();
        loop {
            let registered = self.register_proxy(proxy)?;
            match self.add_each(&nodes[added.len()..], registered, &mut added, |_| ()) {
                Err(AddError::UnknownProxy) => {}
                done => return Ok(added.unless(done)?),
            }
        }
    }

    /// [`add_nodes`](Self::add_nodes) that also pushes the handle of each node's route to `handles`, in the nodes'
    /// order. With the handles, [`refresh_routes`](Self::refresh_routes) refreshes the routes without their nodes.
    ///
    /// # Errors
    ///
    /// As for `add_nodes`. `handles` has the handles of the nodes that were added.
    pub fn add_nodes_with_handles(
        &self,
        nodes: &[NodeId],
        proxy: ProxyRef,
        handles: &mut Vec<RouteHandle>,
    ) -> Result<AddedNodes, AddNodesError> {
        let mut added = AddedNodes::default();
        let done = self.add_each(nodes, proxy, &mut added, |handle| handles.push(handle));
        added.unless(done)
    }

    fn add_each(
        &self,
        nodes: &[NodeId],
        proxy: ProxyRef,
        added: &mut AddedNodes,
        mut each: impl FnMut(RouteHandle),
    ) -> Result<(), AddError> {
        for group in nodes.chunks(GROUP) {
            let guard = pin();
            // Check and CAS need the same pin: see `proxies`.
            if !self.proxies().takes_routes(proxy) {
                return Err(AddError::UnknownProxy);
            }
            group.iter().for_each(|node| self.shards().ensure_for(node));
            let scope = self.scope(&guard);
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
                let (one, number) =
                    done.unwrap_or_else(|| self.add_pinned(node, lane.hash, proxy, scope.now, &guard))?;
                added.count(one);
                each(RouteHandle::new(node.is_name(), lane.hash, number));
            }
        }
        if added.inserted > 0 {
            self.proxies().touch(proxy.number, self.now());
        }
        Ok(())
    }

    /// Refreshes the routes that `handles` name, all of them through `proxy`. Returns the number of refreshed routes.
    /// Pushes the positions of the other handles to `gone`: their route was removed or has expired, or its record has
    /// moved. Add those nodes again.
    ///
    /// This is the fastest way to write to the table: it needs no look-up.
    ///
    /// # Errors
    ///
    /// [`AddError::UnknownProxy`]: the proxy is no longer registered. Routes that were refreshed before stay refreshed.
    pub fn refresh_routes(
        &self,
        handles: &[RouteHandle],
        proxy: ProxyRef,
        gone: &mut Vec<usize>,
    ) -> Result<usize, AddError> {
        let mut refreshed = 0;
        for (nth, group) in handles.chunks(GROUP).enumerate() {
            let guard = pin();
            if !self.proxies().takes_routes(proxy) {
                return Err(AddError::UnknownProxy);
            }
            let scope = self.scope(&guard);
            let mut records = [None; GROUP];
            for (record, handle) in records.iter_mut().zip(group) {
                *record = self.shards().numbered(*handle, &guard);
            }
            for (at, (handle, record)) in group.iter().zip(records).enumerate() {
                let refresh = |record| self.shards().refresh(record, *handle, proxy.number, &scope);
                if record.is_some_and(refresh) {
                    refreshed += 1;
                } else {
                    gone.push(nth * GROUP + at);
                }
            }
        }
        Ok(refreshed)
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
