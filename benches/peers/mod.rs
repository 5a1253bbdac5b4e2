//! The table and the maps that a program could use instead, behind one trait. Each contestant does the same work. A
//! call reads the clock once, leaves out expired routes and routes of dead proxies, and returns owned answers, newest
//! first.
//!
//! Every peer hashes with ahash, keeps a route in one word, and takes time and proxies from the same [`World`]. A call
//! reads the clock before it searches for the node, and outside of any lock. Reading the clock after the search changes
//! the times by 1 % in dashmap and 2 % in papaya. Either way, each call waits once for earlier loads. A prefetch of the
//! entry before the clock is read would help, but the peers' interfaces offer no prefetch.

pub(crate) mod baseline;
pub(crate) mod dashmap;
pub(crate) mod nodetracker;
pub(crate) mod papaya;
mod routes;
pub(crate) mod rwlock;
pub(crate) mod scc;
mod world;

use std::hash::{Hash, Hasher};
use std::time::Duration;

use ::nodetracker::{Added, ManualClock};
use uuid::Uuid;

pub(crate) use crate::support::results::ContestantKind;
use crate::support::steps::Step;

/// The setting for which each contestant is made.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) proxies: u32,
    pub(crate) keep_alive: Duration,
    /// `None`: the system's clock.
    pub(crate) clock: Option<ManualClock>,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            proxies: 1_000,
            keep_alive: Duration::from_secs(3_600),
            clock: None,
        }
    }
}

/// A table from nodes to the proxies that hold their tunnels.
pub(crate) trait Peer: Sized {
    const NAME: &'static str;
    const KIND: ContestantKind;

    type PeerRoutes;

    /// An empty table with `setting.proxies` proxies, numbered from zero.
    fn new(setting: &Setting) -> Self;

    /// The node's routes, newest first.
    fn look_up(&self, node: Uuid) -> Self::PeerRoutes;

    /// Adds or refreshes a route; `None` if the proxy is gone.
    fn add(&self, node: Uuid, proxy: u32) -> Option<Added>;

    /// Returns whether there was a route that a look-up would have returned.
    fn remove_node(&self, node: Uuid) -> bool;

    fn remove_proxy(&self, proxy: u32);

    /// Removes stale routes, and calls `step` at each place where it could stop and continue later. Returns the number
    /// of removed routes.
    fn sweep(&self, step: impl FnMut()) -> usize;

    /// An answer as proxies and milliseconds since the Unix epoch.
    fn plain(&self, answer: &Self::PeerRoutes) -> Vec<(u32, u64)>;

    /// Looks all nodes up. Peers have no such call: they loop, and make steps that all look-ups share only once.
    fn look_up_batch(&self, nodes: &[Step]);

    /// Adds routes of one proxy. Returns handles that refresh them, if the contestant has handles. Peers have no such
    /// call: they loop.
    fn announce(&self, nodes: &[Step]) -> Vec<u64> {
        for step in nodes {
            self.add(step.node, step.proxy);
        }
        Vec::new()
    }

    /// Refreshes announced routes; as with [`look_up_batch`](Peer::look_up_batch).
    fn heartbeat(&self, nodes: &[Step], handles: &[u64]);
}

/// Runs `$body` with `$peer` as each contestant's type in turn.
macro_rules! for_each_peer {
    ($peer:ident => $body:block) => {
        for_each_peer!(@each $peer $body
            $crate::peers::nodetracker::Nodetracker,
            $crate::peers::dashmap::Default,
            $crate::peers::dashmap::ManyShards,
            $crate::peers::scc::Scc,
            $crate::peers::papaya::Papaya,
            $crate::peers::rwlock::RwLocked,
        );
    };
    (single-threaded $peer:ident => $body:block) => {
        for_each_peer!($peer => $body);
        for_each_peer!(@each $peer $body $crate::peers::baseline::Baseline,);
    };
    (@each $peer:ident $body:block $($type:ty,)*) => {
        $({
            type $peer = $type;
            $body
        })*
    };
}
pub(crate) use for_each_peer;

/// A UUID as the peers' key: two words, so that the key needs a word's alignment, and one step to hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key([u64; 2]);

impl From<Uuid> for Key {
    #[inline]
    fn from(uuid: Uuid) -> Self {
        let (high, low) = uuid.as_u64_pair();
        Self([low, high])
    }
}

impl Hash for Key {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from(self.0[1]) << 64 | u128::from(self.0[0]));
    }
}
