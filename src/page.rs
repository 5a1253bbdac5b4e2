//! Going through nodes and proxies in parts, where the next part may be asked for much later.
//!
//! Nodes have an order that is the same for the life of a table: UUIDs before names, and then by the hash that they are
//! found by. The top bits of it are the shard, so the order goes shard by shard. A place in it is a shard's beginning, or
//! the node that came last. It stays good whatever happens to the table in between: what grows or moves changes where a
//! record is, never the hash; and the node itself need not be there any more.

use std::fmt;
use std::str::FromStr;

use smallvec::SmallVec;

use crate::error::CursorError;
use crate::node_id::{Kind, NodeId};
use crate::proxies::{Proxies, ProxyDetails, ProxyRef};
use crate::route::Route;
use crate::sync::pin;
use crate::table::{RouteTable, SHARDS};
use crate::walk::Copy;

/// A node with its routes, most recently refreshed first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRoutes {
    /// The node.
    pub node: NodeId,
    /// Its routes, as [`RouteTable::get_proxies`] returns them; never empty.
    pub routes: SmallVec<[Route; 1]>,
}

/// Some nodes, from [`RouteTable::nodes_page`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePage {
    /// The nodes, in no particular order. There may be none although others follow.
    pub nodes: Vec<NodeRoutes>,
    /// Where to go on; `None` after the last node.
    pub next: Option<NodeCursor>,
}

/// A place in a table's order of nodes; by default, its beginning.
///
/// It can be written as text and read again. It means something to the table that gave it out only: in another one, as after
/// a restart, the order is another one too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCursor(At);

#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    /// The beginning of a shard; the shards of names are counted on from those of UUIDs.
    Shard(usize),
    After(NodeId),
}

impl Default for NodeCursor {
    fn default() -> Self {
        Self(At::Shard(0))
    }
}

/// What stands in front of the node that came last.
const AFTER: char = '>';

impl fmt::Display for NodeCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            At::Shard(number) => write!(f, "{number}"),
            At::After(node) => write!(f, "{AFTER}{node}"),
        }
    }
}

impl FromStr for NodeCursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let at = match text.strip_prefix(AFTER) {
            Some(node) => At::After(node.parse().map_err(|_| CursorError)?),
            None => match text.parse() {
                Ok(number) if number < 2 * SHARDS => At::Shard(number),
                _ => return Err(CursorError),
            },
        };
        Ok(Self(at))
    }
}

/// Some proxies, from [`RouteTable::proxies_page`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyPage {
    /// The proxies, in no particular order. There may be none although others follow.
    pub proxies: Vec<(ProxyRef, ProxyDetails)>,
    /// Where to go on; `None` after the last proxy.
    pub next: Option<ProxyCursor>,
}

/// A place in a table's order of proxies; by default, before the first one. As [`NodeCursor`], it can be written as text, and
/// belongs to one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProxyCursor(u64);

impl fmt::Display for ProxyCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for ProxyCursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        text.parse().map(Self).map_err(|_| CursorError)
    }
}

impl RouteTable {
    /// The next nodes from a place on that have routes which may be returned, `most` of them at most (but one may always
    /// be), of those that `keep` wants; ask again with [`next`](NodePage::next) until there is none.
    ///
    /// A route that is there all the time is reported exactly once over all the pages, and one that comes or goes
    /// meanwhile once or not at all. Nothing is kept in the table between two pages.
    ///
    /// One page looks at one of 256 shards at most, copies all of it, and sorts it where it has more than `most`: some 100
    /// nanoseconds for each of its routes. So a page of a few nodes of a large table is dear, and the last part of a shard
    /// may be short.
    ///
    /// ```
    /// # use nodetracker::{NodeCursor, Proxy, RouteTable};
    /// # let table = RouteTable::new();
    /// # let proxy = table.register_proxy(&Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" })?;
    /// table.add_node(&"node-1".parse()?, proxy)?;
    ///
    /// let mut nodes = Vec::new();
    /// let mut place = Some(NodeCursor::default());
    /// while let Some(from) = place {
    ///     let page = table.nodes_page(&from, 100, |_node, _routes| true);
    ///     nodes.extend(page.nodes);
    ///     place = page.next;
    /// }
    /// assert_eq!(nodes[0].node.to_string(), "node-1");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn nodes_page(
        &self,
        from: &NodeCursor,
        most: usize,
        mut keep: impl FnMut(&NodeId, &[Route]) -> bool,
    ) -> NodePage {
        let (shard, after) = match &from.0 {
            At::Shard(number) => (*number, None),
            At::After(node) => {
                let names = matches!(node.kind(), Kind::Name(_));
                let shard = self.shard_of(node) + if names { SHARDS } else { 0 };
                (shard, Some((self.hash(node), node)))
            }
        };
        let mut copy = Copy::default();
        let (uuids, names, _) = self.parts();
        match (shard.checked_sub(SHARDS), names) {
            (None, _) => self.copy_shard(uuids.get(shard), shard, &mut copy),
            (Some(shard), Some(names)) => self.copy_shard(names.get(shard), shard, &mut copy),
            (Some(_), None) => {}
        }

        let mut nodes: Vec<(u64, NodeRoutes)> = Vec::new();
        for (node, routes) in copy.into_nodes() {
            let hash = self.hash(&node);
            if after.is_some_and(|after| (hash, &node) <= after) {
                continue;
            }
            let routes: SmallVec<[Route; 1]> = routes
                .iter()
                .map(|route| Route {
                    proxy: route.proxy,
                    last_refresh: self.time().wall(route.tick),
                })
                .collect();
            if keep(&node, &routes) {
                nodes.push((hash, NodeRoutes { node, routes }));
            }
        }
        let most = most.max(1);
        let next = if nodes.len() > most {
            nodes
                .sort_unstable_by(|(hash, one), (other_hash, other)| (hash, &one.node).cmp(&(other_hash, &other.node)));
            nodes.truncate(most);
            nodes.last().map(|(_, last)| At::After(last.node.clone()))
        } else {
            let end = if names.is_some() { 2 * SHARDS } else { SHARDS };
            (shard + 1 < end).then_some(At::Shard(shard + 1))
        };
        NodePage {
            nodes: nodes.into_iter().map(|(_, node)| node).collect(),
            next: next.map(NodeCursor),
        }
    }

    /// The next proxies that are registered, from a place on, `most` of them at most (but one may always be); ask again with
    /// [`next`](ProxyPage::next) until there is none.
    ///
    /// A proxy that is registered all the time is reported exactly once over all the pages, also if it
    /// [begins](Self::begin_incarnation) another incarnation meanwhile: by its older or its newer reference. How many routes
    /// it has is not known without going through all of them.
    ///
    /// One page looks at whole parts of the proxies, a 128th of them each, until it has enough: some 100 nanoseconds for each
    /// proxy of these parts.
    #[must_use]
    pub fn proxies_page(&self, from: ProxyCursor, most: usize) -> ProxyPage {
        let mut page = ProxyPage {
            proxies: Vec::new(),
            next: None,
        };
        let mut last = None;
        for part in Proxies::part_of(from.0)..Proxies::PARTS {
            if page.proxies.len() >= most.max(1) {
                page.next = Some(ProxyCursor(Proxies::first_hash(part)));
                break;
            }
            let guard = pin();
            for (hash, proxy) in self.proxies().in_part(part, &guard) {
                // IDs with one hash are on one page.
                if page.proxies.len() >= most.max(1) && last != Some(hash) {
                    page.next = Some(ProxyCursor(hash));
                    return page;
                }
                if hash >= from.0
                    && let Some(details) = self.proxies().last_details(proxy, &guard)
                {
                    page.proxies.push((proxy, details));
                    last = Some(hash);
                }
            }
        }
        page
    }
}
