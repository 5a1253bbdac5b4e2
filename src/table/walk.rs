//! Walks over all routes: copies one part of a shard at a time under a pin, and hands the copy out without a pin.

use std::convert::Infallible;
use std::ops::{ControlFlow, Range};

use smallvec::SmallVec;

use crate::shard::scan::{Next, PartEnd, Start};
use crate::sync::pin;
use crate::table::RouteTable;
use crate::table::copied::CopiedRoute;
use crate::types::node_id::NodeId;
use crate::types::route::Route;

/// A place in a table's order of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodePosition {
    /// The beginning of a shard. The numbers of the shards of names follow those of UUIDs.
    Shard(usize),
    /// Before the nodes of a shard that have at least this rank under a seed.
    Rank { shard: usize, seed: u64, rank: u32 },
    /// After a node, in its shard's order under a seed.
    After { seed: u64, node: NodeId },
}

impl Default for NodePosition {
    fn default() -> Self {
        Self::Shard(0)
    }
}

/// The end of a copy.
#[derive(Debug)]
pub(crate) struct ScanEnd {
    /// The seed of the order of the nodes.
    pub(crate) seed: u64,
    /// The shard of the nodes.
    pub(crate) shard: usize,
    /// How many slots were read.
    pub(crate) slots: u32,
    /// Where the next copy starts; `None` at the end of the table.
    pub(crate) next: Option<NodePosition>,
}

/// Some nodes with their routes.
#[derive(Debug, Default)]
pub(crate) struct ShardScan {
    nodes: SmallVec<[ScannedNode; 1]>,
    routes: SmallVec<[CopiedRoute; 1]>,
}

#[derive(Debug)]
struct ScannedNode {
    node: NumberedNode,
    /// The range of its routes.
    routes: Range<u32>,
}

/// A node, and the number of the record that it had when it was copied.
#[derive(Debug, Clone)]
pub(crate) struct NumberedNode {
    pub(crate) node: NodeId,
    pub(crate) number: u32,
}

/// # Walking over all routes
impl RouteTable {
    /// Calls `each` with every valid route and its node. The routes of a node come together, in the order of
    /// [`get_proxies`](Self::get_proxies); the nodes come in no particular order.
    ///
    /// The walk reports each route that exists during the whole walk exactly once, with the last refresh at some moment
    /// of the walk. If another thread adds or removes a route meanwhile, the walk reports the route once or not at all.
    /// The walk takes no lock, so it delays no other thread. `each` may use the table.
    ///
    /// The walk copies some 1,000 nodes at a time, however large the table is, and takes some 30 nanoseconds a route.
    /// Reclamation waits for at most one such copy, never for `each`.
    ///
    /// ```
    /// # use nodetracker::{Proxy, RouteTable};
    /// # let table = RouteTable::new();
    /// # let proxy = table.register_proxy(&Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" })?;
    /// table.add_node(&"node-1".parse()?, proxy)?;
    ///
    /// let mut nodes = Vec::new();
    /// table.for_each_route(|node, route| nodes.push((node.to_string(), route.proxy)));
    /// assert_eq!(nodes, [("node-1".to_owned(), proxy)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_route(&self, mut each: impl FnMut(&NodeId, Route)) {
        let ControlFlow::Continue(()) = self.try_for_each_route::<Infallible>(|node, route| {
            each(node, route);
            ControlFlow::Continue(())
        });
    }

    /// [`for_each_route`](Self::for_each_route) until `each` returns [`Break`](ControlFlow::Break). Returns the
    /// `Break`.
    ///
    /// ```
    /// # use std::ops::ControlFlow;
    /// # use nodetracker::{Proxy, RouteTable};
    /// # let table = RouteTable::new();
    /// # let proxy = table.register_proxy(&Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" })?;
    /// # table.add_node(&"node-1".parse()?, proxy)?;
    /// let is_used = table.try_for_each_route(|_node, route| {
    ///     if route.proxy == proxy { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    /// });
    /// assert!(is_used.is_break());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_for_each_route<B>(&self, mut each: impl FnMut(&NodeId, Route) -> ControlFlow<B>) -> ControlFlow<B> {
        let walked = self.walk(|node, routes| {
            for route in routes {
                let route = route.dated(self.time());
                if let ControlFlow::Break(value) = each(node, route) {
                    return Err(value);
                }
            }
            Ok(())
        });
        walked.map_or_else(ControlFlow::Break, ControlFlow::Continue)
    }
}

impl RouteTable {
    /// Calls `visit` with every node that has valid routes and with these routes, as
    /// [`for_each_route`](Self::for_each_route) does, until `visit` fails.
    pub(crate) fn walk<E>(&self, mut visit: impl FnMut(&NodeId, &[CopiedRoute]) -> Result<(), E>) -> Result<(), E> {
        let mut copy = ShardScan::default();
        let mut at = Some(NodePosition::default());
        while let Some(from) = at {
            at = self.scan_next(&from, usize::MAX, &mut copy).next;
            for (node, routes) in copy.nodes() {
                visit(node, routes)?;
            }
        }
        Ok(())
    }

    /// Replaces `copy` with at most the next `most` nodes: a part of one shard ([`scan`](crate::shard::scan)), under
    /// one pin.
    pub(crate) fn scan_next(&self, from: &NodePosition, most: usize, copy: &mut ShardScan) -> ScanEnd {
        let (number, start) = match from {
            NodePosition::Shard(number) => (*number, Start::Beginning),
            &NodePosition::Rank { shard, seed, rank } => (shard, Start::Rank { seed, rank }),
            NodePosition::After { seed, node } => {
                let hash = self.hash(node);
                let start = Start::After {
                    seed: *seed,
                    hash,
                    node,
                };
                (self.shards().number_of(node, hash), start)
            }
        };
        let part = self.scan_shard(number, start, most, copy);
        let next = match part.next {
            Next::After(node) => Some(NodePosition::After { seed: part.seed, node }),
            Next::Rank(rank) => Some(NodePosition::Rank {
                shard: number,
                seed: part.seed,
                rank,
            }),
            Next::End => {
                // Checked last: if the first name is added meanwhile, the walk may report it, but need not.
                let end = self.shards().end();
                (number + 1 < end).then_some(NodePosition::Shard(number + 1))
            }
        };
        ScanEnd {
            seed: part.seed,
            shard: number,
            slots: part.slots,
            next,
        }
    }

    fn scan_shard(&self, number: usize, start: Start<'_>, most: usize, copy: &mut ShardScan) -> PartEnd {
        copy.clear();
        let ShardScan { nodes, routes } = copy;
        let (shards, guard) = (self.shards(), pin());
        shards.scan(number, start, most, &self.scope(&guard), |node, number, words| {
            let start = routes.len();
            routes.extend(words.iter().filter_map(|word| self.copied(*word)));
            // All proxies of the node may have been removed meanwhile.
            if routes.len() > start {
                nodes.push(ScannedNode {
                    node: NumberedNode { node, number },
                    routes: start as u32..routes.len() as u32,
                });
            }
        })
    }
}

impl ShardScan {
    /// Every copied node with its routes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&NodeId, &[CopiedRoute])> {
        self.nodes.iter().map(|scanned| {
            let routes = scanned.routes.start as usize..scanned.routes.end as usize;
            (&scanned.node.node, &self.routes[routes])
        })
    }

    /// The last nodes, `most` of them, with the numbers of their records.
    pub(crate) fn last(&self, most: usize) -> impl Iterator<Item = &NumberedNode> {
        self.nodes[self.nodes.len() - most..]
            .iter()
            .map(|scanned| &scanned.node)
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    fn clear(&mut self) {
        self.nodes.clear();
        self.routes.clear();
    }
}
