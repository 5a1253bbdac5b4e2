//! Going through nodes and proxies in parts, where the next part may be asked for much later.
//!
//! Nodes have an order: UUIDs before names, shard by shard, and in a shard as [`copy`](mod@crate::shard::copy) says: by
//! their hash as it picks their bucket. So a page looks at the buckets of the nodes that it has, and at few others. A place
//! in the order is a shard's beginning, a rank in it, or the node that came last. It stays good whatever happens to the table
//! in between: what grows or moves changes where a record is, never its rank; and the node itself need not be there any more.

use std::fmt;
use std::str::FromStr;

use smallvec::SmallVec;

use crate::error::CursorError;
use crate::node_id::NodeId;
use crate::proxies::{Proxies, ProxyDetails, ProxyRef};
use crate::route::Route;
use crate::shard::index::BUCKET;
use crate::sync::pin;
use crate::table::{RouteTable, SHARDS};
use crate::walk::{At, Copy};

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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeCursor(At);

/// What stands in front of the node that came last, after the order's seed if that is not 0.
const AFTER: char = '>';
/// What stands between a shard, a rank, and the order's seed if that is not 0.
const RANK: char = ':';

impl fmt::Display for NodeCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            At::Shard(shard) => write!(f, "{shard}"),
            At::Rank { shard, rank, seed: 0 } => write!(f, "{shard}{RANK}{rank}"),
            At::Rank { shard, rank, seed } => write!(f, "{shard}{RANK}{rank}{RANK}{seed:x}"),
            At::After { node, seed: 0 } => write!(f, "{AFTER}{node}"),
            At::After { node, seed } => write!(f, "{seed:x}{AFTER}{node}"),
        }
    }
}

impl FromStr for NodeCursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        parse(text).map(Self).ok_or(CursorError)
    }
}

fn parse(text: &str) -> Option<At> {
    let seed = |text: &str| u64::from_str_radix(text, 16).ok();
    let shard = |text: &str| text.parse().ok().filter(|&shard| shard < 2 * SHARDS);
    if let Some((before, node)) = text.split_once(AFTER) {
        let seed = if before.is_empty() { 0 } else { seed(before)? };
        let node = node.parse().ok()?;
        return Some(At::After { seed, node });
    }
    let Some((number, rank)) = text.split_once(RANK) else {
        return shard(text).map(At::Shard);
    };
    let (rank, of) = rank.split_once(RANK).unwrap_or((rank, "0"));
    Some(At::Rank {
        shard: shard(number)?,
        seed: seed(of)?,
        rank: rank.parse().ok()?,
    })
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

/// Slots that one page looks at, and one part of a shard more: a fraction of a millisecond.
const SLOTS_PER_PAGE: usize = 1 << 14;

/// Keys that one page copies at a time at most, if it asks for fewer nodes.
const MOST_AHEAD: usize = 1 << 10;

impl RouteTable {
    /// The next nodes from a place on that have routes which may be returned, `most` of them at most (but one may always
    /// be), of those that `keep` wants; ask again with [`next`](NodePage::next) until there is none.
    ///
    /// A route that is there all the time is reported exactly once over all the pages, and one that comes or goes
    /// meanwhile once or not at all. Nothing is kept in the table between two pages.
    ///
    /// A page costs some 100 nanoseconds for each of its nodes, however large the table is, and a few hundred beside. It
    /// looks at some 16,000 slots of the index at most, so it may be short if few nodes are wanted, or few are left of many.
    /// Of these, it copies some 1,000 at a time; `keep` is called after that, and may use the table. (All of this but after
    /// a flood of nodes whose hashes collide: what is left of a shard is copied as a whole if its order changed since the
    /// place was given out.)
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
        let most = most.max(1);
        let mut nodes: Vec<NodeRoutes> = Vec::new();
        let mut copy = Copy::default();
        let mut at = from.0.clone();
        let mut ahead = most;
        let mut slots = 0;
        let next = 'page: loop {
            let copied = self.copy_next(&at, ahead, &mut copy);
            let before = nodes.len();
            let mut left = copy.len();
            for (node, routes) in copy.nodes() {
                left -= 1;
                let routes: SmallVec<[Route; 1]> = routes
                    .iter()
                    .map(|route| Route {
                        proxy: route.proxy,
                        last_refresh: self.time().wall(route.tick),
                    })
                    .collect();
                if !keep(node, &routes) {
                    continue;
                }
                nodes.push(NodeRoutes {
                    node: node.clone(),
                    routes,
                });
                if nodes.len() == most {
                    if left == 0 {
                        break 'page copied.next;
                    }
                    let seed = copied.seed;
                    break 'page Some(At::After {
                        seed,
                        node: node.clone(),
                    });
                }
            }
            // An empty shard is not free either.
            slots += copied.slots.max(BUCKET) as usize;
            match copied.next {
                Some(next) if slots < SLOTS_PER_PAGE => at = next,
                next => break next,
            }
            // Where few are wanted, more and more are copied at a time, so that what is copied in vain at the end of the page
            // is in proportion to what was looked at before.
            let few = 4 * (nodes.len() - before) < ahead.min(copied.slots as usize);
            let least = most - nodes.len();
            ahead = if few {
                ahead.saturating_mul(2).min(MOST_AHEAD).max(least)
            } else {
                least
            };
        };
        NodePage {
            nodes,
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
