//! Going through all routes: one shard after the other is copied out under a pin, and looked at without one.

use std::convert::Infallible;
use std::ops::Range;

use smallvec::SmallVec;

use crate::key::Key;
use crate::node_id::NodeId;
use crate::proxies::ProxyRef;
use crate::route::Route;
use crate::shard::Shard;
use crate::sync::pin;
use crate::table::{RouteTable, SHARDS};

/// A route that was copied out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copied {
    pub(crate) proxy: ProxyRef,
    /// Of the last refresh.
    pub(crate) tick: u64,
}

/// What was copied of one shard.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    /// Each node, and where its routes are.
    nodes: Vec<(NodeId, Range<usize>)>,
    routes: Vec<Copied>,
}

impl RouteTable {
    /// Calls `each` with every route that may be returned, and its node; the routes of a node come together, most recently
    /// refreshed first, in the order of [`get_proxies`](Self::get_proxies), and nodes in none.
    ///
    /// A route that is there during the whole walk is reported exactly once. One that is added or removed meanwhile is
    /// reported once or not at all, and its time is that of some moment of the walk. Nothing is locked: other threads go
    /// on, and `each` may use the table.
    ///
    /// It copies one of 128 shards at a time, and takes some 50 nanoseconds a route; reclamation waits for one such copy at
    /// most, never for `each`.
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
        let Ok(()) = self.walk::<Infallible>(|node, routes| {
            for route in routes {
                let last_refresh = self.time().wall(route.tick);
                each(
                    node,
                    Route {
                        proxy: route.proxy,
                        last_refresh,
                    },
                );
            }
            Ok(())
        });
    }

    /// Calls `visit` with every node that has routes which may be returned, and these, as
    /// [`for_each_route`](Self::for_each_route) does, until it fails.
    pub(crate) fn walk<E>(&self, mut visit: impl FnMut(&NodeId, &[Copied]) -> Result<(), E>) -> Result<(), E> {
        let (uuids, ..) = self.parts();
        let mut copy = Copy::default();
        for number in 0..SHARDS {
            self.copy_shard(uuids.get(number), number, &mut copy);
            copy.visit(&mut visit)?;
        }
        // Looked at only now: names that came first while the UUIDs were copied need not be reported, but may be.
        let (_, names, _) = self.parts();
        for (number, names) in names.into_iter().flat_map(|names| (0..SHARDS).map(move |n| (n, names))) {
            self.copy_shard(names.get(number), number, &mut copy);
            copy.visit(&mut visit)?;
        }
        Ok(())
    }

    /// Copies what one shard has out, instead of what was copied before.
    pub(crate) fn copy_shard<K: Key>(&self, shard: &Shard<K>, number: usize, copy: &mut Copy) {
        let guard = pin();
        let Copy { nodes, routes } = copy;
        nodes.clear();
        routes.clear();
        let counts = shard.copy(&self.scope(&guard, number), |node, words| {
            let start = routes.len();
            // The number is resolved under the pin: later it may be another proxy's.
            routes.extend(words.iter().filter_map(|word| {
                Some(Copied {
                    proxy: self.proxies().reference(word.proxy())?,
                    tick: word.time(),
                })
            }));
            nodes.push((node, start..routes.len()));
        });
        drop(guard);
        let mut counts = counts.into_iter();
        nodes.retain(|_| counts.next() == Some(true));
    }
}

impl Copy {
    /// Every node that was copied, with its routes.
    pub(crate) fn into_nodes(self) -> impl Iterator<Item = (NodeId, SmallVec<[Copied; 1]>)> {
        let Self { nodes, routes } = self;
        nodes
            .into_iter()
            // All of its proxies may have been removed while it was copied.
            .filter(|(_, range)| !range.is_empty())
            .map(move |(node, range)| (node, routes[range].into()))
    }

    fn visit<E>(&self, visit: &mut impl FnMut(&NodeId, &[Copied]) -> Result<(), E>) -> Result<(), E> {
        for (node, range) in &self.nodes {
            // All of its proxies may have been removed while it was copied.
            if !range.is_empty() {
                visit(node, &self.routes[range.clone()])?;
            }
        }
        Ok(())
    }
}
