//! Pages of nodes and of proxies. The caller may ask for the next page much later.
//!
//! Nodes have an order: UUIDs before names, shard by shard, and within a shard by the hash that picks their bucket (see
//! [`scan`](crate::shard::scan)). So a page reads the buckets of its nodes, and few others. A place in the order is the
//! beginning of a shard, a rank in a shard, or the last node of the previous page. A place stays valid while the table
//! changes: growing and moving change a record's place in memory, but not its rank. Even the last node may have been
//! removed.

use std::cmp::Ordering;
use std::fmt;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::CursorError;
use crate::layout::{SHARDS, SLOTS_PER_BUCKET};
use crate::proxies::Proxies;
use crate::sync::pin;
use crate::table::RouteTable;
use crate::table::copied::CopiedRoute;
use crate::table::walk::{NodePosition, NumberedNode, ShardScan};
use crate::types::node_id::NodeId;
use crate::types::proxy::{ProxyDetails, ProxyRef};
use crate::types::route::Route;
use crate::types::routes::Routes;

/// A node with its routes, most recently refreshed first.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeRoutes {
    /// The node.
    pub node: NodeId,
    /// Its routes, as [`RouteTable::get_proxies`] returns them; never empty.
    pub routes: Routes,
}

/// Some nodes, from [`RouteTable::nodes_page`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodePage {
    /// The nodes, in no particular order. A page may be empty although other nodes follow.
    pub nodes: Vec<NodeRoutes>,
    /// Where the next page starts; `None` after the last node.
    pub next: Option<NodeCursor>,
}

/// A place in a table's order of nodes; by default, its beginning.
///
/// A cursor can be written as text and read again. A cursor is valid only for the table that returned the cursor:
/// another table has another order, even in a restarted process. A text that no cursor of the table has leads to some
/// place, and a page from this place costs no more than other pages.
///
/// A cursor may hold the IDs of up to 12 next nodes, so that small pages do not read the same bucket again. The text
/// does not have these IDs, and the comparison of two cursors ignores them.
#[derive(Debug, Clone, Default)]
pub struct NodeCursor {
    at: NodePosition,
    ahead: Option<Ahead>,
    /// Whether the cursor was parsed from text. Then the next cursor will probably be written as text, too. The text
    /// does not have the nodes that a page reads ahead, so the page reads no nodes ahead.
    is_text: bool,
}

impl PartialEq for NodeCursor {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for NodeCursor {}

impl From<NodePosition> for NodeCursor {
    fn from(at: NodePosition) -> Self {
        Self {
            at,
            ahead: None,
            is_text: false,
        }
    }
}

/// The nodes after a cursor's place that an earlier page has copied and not returned.
#[derive(Debug, Clone)]
struct Ahead {
    /// The seed of the order of the nodes.
    seed: u64,
    /// The shard of the nodes.
    shard: usize,
    /// With the numbers of their records, so that the next page need not search for them.
    nodes: Arc<[NumberedNode]>,
    /// How many of the nodes later pages have passed.
    passed: usize,
    /// The place after the nodes; `None` at the end of the table.
    next: Option<NodePosition>,
}

impl Ahead {
    /// The cursor after the `passed`th node; `None` at the end of the table.
    fn cursor_after(&self, passed: usize) -> Option<NodeCursor> {
        if passed == self.nodes.len() {
            return self.next.clone().map(NodeCursor::from);
        }
        let node = self.nodes[passed - 1].node.clone();
        Some(NodeCursor {
            at: NodePosition::After { seed: self.seed, node },
            ahead: Some(Self { passed, ..self.clone() }),
            is_text: false,
        })
    }
}

/// In a cursor's text: stands before the last node of a page, and after the order's seed if the seed is not 0.
const AFTER: char = '>';
/// In a cursor's text: separates the shard, the rank, and the order's seed if the seed is not 0.
const RANK: char = ':';

impl fmt::Display for NodeCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            NodePosition::Shard(shard) => write!(f, "{shard}"),
            NodePosition::Rank { shard, rank, seed: 0 } => write!(f, "{shard}{RANK}{rank}"),
            NodePosition::Rank { shard, rank, seed } => write!(f, "{shard}{RANK}{rank}{RANK}{seed:x}"),
            NodePosition::After { node, seed: 0 } => write!(f, "{AFTER}{node}"),
            NodePosition::After { node, seed } => write!(f, "{seed:x}{AFTER}{node}"),
        }
    }
}

impl FromStr for NodeCursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let cursor = Self::from(parse(text).ok_or(CursorError)?);
        Ok(Self {
            is_text: true,
            ..cursor
        })
    }
}

fn parse(text: &str) -> Option<NodePosition> {
    let seed = |text: &str| u64::from_str_radix(text, 16).ok();
    let shard = |text: &str| text.parse().ok().filter(|&shard| shard < 2 * SHARDS);
    if let Some((before, node)) = text.split_once(AFTER) {
        let seed = if before.is_empty() { 0 } else { seed(before)? };
        let node = node.parse().ok()?;
        return Some(NodePosition::After { seed, node });
    }
    let Some((number, rank)) = text.split_once(RANK) else {
        return shard(text).map(NodePosition::Shard);
    };
    let (rank, of) = rank.split_once(RANK).unwrap_or((rank, "0"));
    Some(NodePosition::Rank {
        shard: shard(number)?,
        seed: seed(of)?,
        rank: rank.parse().ok()?,
    })
}

/// Some proxies, from [`RouteTable::proxies_page`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxyPage {
    /// The proxies, in no particular order. A page may be empty although other proxies follow.
    pub proxies: Vec<(ProxyRef, ProxyDetails)>,
    /// Where the next page starts; `None` after the last proxy.
    pub next: Option<ProxyCursor>,
}

/// A place in a table's order of proxies; by default, before the first proxy. Like a [`NodeCursor`], it can be written
/// as text, and is valid for one table only.
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

/// A page ends after this many slots; its last part may exceed them. Reading them takes a fraction of a millisecond.
const SLOTS_PER_PAGE: usize = 1 << 14;

/// The most keys that a page copies at a time, unless it asks for more nodes.
const MOST_AHEAD: usize = 1 << 10;

/// The fewest keys that a page copies at a time: the keys of the first key's bucket, since the page reads that bucket
/// anyway.
const LEAST_AHEAD: usize = 13;

/// Whether a page takes a node, and whether the page ends after the node.
fn taken(kept: ControlFlow<bool, bool>) -> (bool, bool) {
    match kept {
        ControlFlow::Continue(takes) => (takes, false),
        ControlFlow::Break(takes) => (takes, true),
    }
}

/// # Pages
impl RouteTable {
    /// The number of parts of the nodes: 256.
    pub const PARTS: usize = 2 * SHARDS;

    /// The part to which a node belongs, whether or not the table has the node. It depends on the node's hash, so nodes
    /// spread evenly over half of the parts, and names over the other half. It never changes in one table.
    #[must_use]
    pub fn part_of(&self, node: &NodeId) -> usize {
        self.shards().number_of(node, self.hash(node))
    }

    /// Calls `each` with the next nodes of a part: at most `most` of them (0 counts as 1), and some 1,000. `from` is
    /// `None`, or the place that the last call for this part returned. Returns the next place; `None` after the part's
    /// last node. Some nodes may have no valid route, which shortens the call. A place that is not in the part, but
    /// before or after it, stands for the beginning or the end of the part.
    ///
    /// The guarantees are the same as those of [`nodes_page`](Self::nodes_page). A call costs some 50 nanoseconds a
    /// node. If the call returns fewer nodes because of `most`, it sorts the nodes, which costs as much again.
    /// Reclamation does not wait for `each`.
    ///
    /// ```
    /// # use nodetracker::{Proxy, RouteTable};
    /// # let table = RouteTable::new();
    /// # let proxy = table.register_proxy(&Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" })?;
    /// let node = "node-1".parse()?;
    /// table.add_node(&node, proxy)?;
    ///
    /// let (part, mut nodes, mut place) = (table.part_of(&node), Vec::new(), None);
    /// loop {
    ///     place = table.nodes_of_part(part, place.as_ref(), usize::MAX, |node, _routes| nodes.push(node.clone()));
    ///     if place.is_none() {
    ///         break;
    ///     }
    /// }
    /// assert_eq!(nodes, [node]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn nodes_of_part(
        &self,
        part: usize,
        from: Option<&NodeCursor>,
        most: usize,
        mut each: impl FnMut(&NodeId, &[Route]),
    ) -> Option<NodeCursor> {
        if part >= Self::PARTS {
            return None;
        }
        let at = match from.map(|place| (self.part_at(&place.at).cmp(&part), &place.at)) {
            None | Some((Ordering::Less, _)) => NodePosition::Shard(part),
            Some((Ordering::Equal, at)) => at.clone(),
            Some((Ordering::Greater, _)) => return None,
        };
        let mut copy = ShardScan::default();
        let end = self.scan_next(&at, most.max(1), &mut copy);
        for (node, routes) in copy.nodes() {
            each(node, &self.routes_at(routes));
        }
        end.next
            .filter(|next| !matches!(next, NodePosition::Shard(_)))
            .map(NodeCursor::from)
    }

    /// The part that a place is in.
    fn part_at(&self, place: &NodePosition) -> usize {
        match place {
            NodePosition::Shard(shard) | NodePosition::Rank { shard, .. } => *shard,
            NodePosition::After { node, .. } => self.part_of(node),
        }
    }

    fn routes_at(&self, routes: &[CopiedRoute]) -> Routes {
        routes.iter().map(|route| route.dated(self.time())).collect()
    }

    /// A page of the nodes from a place on: at most `most` (0 counts as 1) nodes with valid routes for which `keep`
    /// returns `true`. Continue from [`next`](NodePage::next) until it is `None`.
    ///
    /// A route that exists all the time is reported exactly once over all pages. A route that is added or removed
    /// meanwhile is reported once or not at all. The table keeps no state between two pages.
    ///
    /// A large page costs some 100 nanoseconds for each of its nodes, in a table of any size. Each page costs a few
    /// hundred nanoseconds more, or nearly a microsecond if its cursor was read from text. So small pages cost the most
    /// for each node (`cargo bench --bench pages`). A page reads at most some 16,000 slots of the index. So the page
    /// may be short if `keep` takes few nodes, or if most nodes were removed. The call copies some 1,000 nodes at a
    /// time, and then calls `keep`, which may use the table. Reclamation waits for at most one such copy. (If the
    /// hashes of very many nodes collide, a shard may change its order. Then a page with an earlier cursor copies the
    /// whole rest of the shard.)
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
        self.page(from, most, |node, routes| ControlFlow::Continue(keep(node, routes)))
    }

    /// As [`nodes_page`](Self::nodes_page), but the page also ends after `keep` returns [`Break`](ControlFlow::Break).
    /// The value in `Continue` or `Break` says whether the page takes the node. The next page starts with the next
    /// node.
    ///
    /// So a caller can bound how many nodes one call reads while few of them match. The call may have copied more nodes
    /// than `keep` has seen, and the next call copies them again: up to twice as many, or the rest of `most` nodes. So
    /// if `keep` returns `Break` after some nodes, the caller should pass at most this number of nodes as `most`.
    ///
    /// ```
    /// # use std::ops::ControlFlow;
    /// # use nodetracker::{NodeCursor, Proxy, RouteTable};
    /// # let table = RouteTable::new();
    /// # let proxy = table.register_proxy(&Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" })?;
    /// # for name in ["node-1", "node-2", "node-3"] {
    /// #     table.add_node(&name.parse()?, proxy)?;
    /// # }
    /// // Reads two nodes at most, whether or not they match.
    /// let mut read = 0;
    /// let page = table.try_nodes_page(&NodeCursor::default(), 2, |node, _routes| {
    ///     read += 1;
    ///     let takes = node.to_string() == "node-1";
    ///     if read < 2 { ControlFlow::Continue(takes) } else { ControlFlow::Break(takes) }
    /// });
    /// assert!(read == 2 && page.nodes.len() <= 1 && page.next.is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn try_nodes_page(
        &self,
        from: &NodeCursor,
        most: usize,
        keep: impl FnMut(&NodeId, &[Route]) -> ControlFlow<bool, bool>,
    ) -> NodePage {
        // A copy of `usize::MAX` keys is not sorted, so no place is in its middle.
        self.page(from, most.min(usize::MAX - 1), keep)
    }

    fn page(
        &self,
        from: &NodeCursor,
        most: usize,
        mut keep: impl FnMut(&NodeId, &[Route]) -> ControlFlow<bool, bool>,
    ) -> NodePage {
        let most = most.max(1);
        let mut nodes: Vec<NodeRoutes> = Vec::new();
        let mut at = from.at.clone();
        if let Some(ahead) = &from.ahead {
            for (passed, NumberedNode { node, number }) in (1..).zip(&*ahead.nodes).skip(ahead.passed) {
                let next = ahead.nodes.get(passed).map(|next| next.number);
                let routes = self.get_proxies_at(ahead.shard, node, *number, next);
                if routes.is_empty() {
                    continue;
                }
                let (takes, ends) = taken(keep(node, &routes));
                if takes {
                    let node = node.clone();
                    nodes.push(NodeRoutes { node, routes });
                }
                if ends || nodes.len() == most {
                    let next = ahead.cursor_after(passed);
                    return NodePage { nodes, next };
                }
            }
            match &ahead.next {
                Some(next) => at = next.clone(),
                None => return NodePage { nodes, next: None },
            }
        }
        let least_ahead = if from.is_text { 1 } else { LEAST_AHEAD };
        let mut copy = ShardScan::default();
        let mut ahead = (most - nodes.len()).max(least_ahead);
        let mut slots = 0;
        let next = 'page: loop {
            let copied = self.scan_next(&at, ahead, &mut copy);
            let before = nodes.len();
            let mut left = copy.len();
            for (node, routes) in copy.nodes() {
                left -= 1;
                let routes = self.routes_at(routes);
                let (takes, ends) = taken(keep(node, &routes));
                if takes {
                    nodes.push(NodeRoutes {
                        node: node.clone(),
                        routes,
                    });
                }
                if ends || nodes.len() == most {
                    if left == 0 {
                        break 'page copied.next.map(NodeCursor::from);
                    }
                    let seed = copied.seed;
                    let node = node.clone();
                    if left < least_ahead {
                        let ahead = Ahead {
                            seed,
                            shard: copied.shard,
                            nodes: copy.last(left + 1).cloned().collect(),
                            passed: 0,
                            next: copied.next,
                        };
                        break 'page ahead.cursor_after(1);
                    }
                    break 'page Some(NodePosition::After { seed, node }.into());
                }
            }
            // Count an empty shard, too: visiting it has a cost.
            slots += copied.slots.max(SLOTS_PER_BUCKET) as usize;
            match copied.next {
                Some(next) if slots < SLOTS_PER_PAGE => at = next,
                next => break next.map(NodeCursor::from),
            }
            // If `keep` takes few nodes, copy more nodes each time. So the nodes that the end of the page copies in
            // vain are in proportion to the nodes that it has read before.
            let few = 4 * (nodes.len() - before) < ahead.min(copied.slots as usize);
            let least = (most - nodes.len()).max(least_ahead);
            ahead = if few {
                ahead.saturating_mul(2).min(MOST_AHEAD).max(least)
            } else {
                least
            };
        };
        NodePage { nodes, next }
    }

    /// A page of the registered proxies from a place on: at most `most` (0 counts as 1), or more if IDs have the same
    /// hash. Continue from [`next`](ProxyPage::next) until it is `None`.
    ///
    /// All pages together have each proxy that is registered all the time exactly once. If the proxy
    /// [begins](Self::begin_incarnation) another incarnation meanwhile, a page has the older or the newer reference.
    ///
    /// A page reads whole parts of the proxies, each a 128th of them, until it has enough proxies. It takes some 100
    /// nanoseconds for each proxy of these parts.
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
                // A page has all IDs of a hash or none, because the cursor is a hash.
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
