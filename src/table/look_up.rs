//! Looking one node up.

use std::time::Duration;

use crate::proxies::Proxies;
use crate::shard::Scope;
use crate::shard::routes::Words;
use crate::sync::{Guard, pin};
use crate::table::RouteTable;
use crate::table::copied::CopiedRoute;
use crate::time::Now;
use crate::types::node_id::NodeId;
use crate::types::route::{ExplainedRoute, ResolvedRoute, Route, Verdict};
use crate::types::routes::Routes;
use crate::word::{State, Word};

/// # Looking up
impl RouteTable {
    /// The routes of a node, most recently refreshed first, without expired routes and routes of removed proxies. Two
    /// calls may refresh two routes within one millisecond. If the second call began after the first call had returned,
    /// the route of the second call comes first.
    ///
    /// Up to two routes need no allocation.
    #[must_use]
    pub fn get_proxies(&self, node: &NodeId) -> Routes {
        let (hash, now) = self.begin(node);
        let guard = pin();
        // Nearly all nodes have one route. They take a shorter path, with half as many instructions. So the processor
        // reaches the memory accesses of the next look-up while it waits for those of this look-up. The scope, and so
        // the keep-alive interval, is read before the route.
        let scope = self.scope_at(now.of_look_up(), &guard);
        match self.shards.word(node, hash, &guard) {
            Some(word) if word.state() == State::Spill => {}
            Some(word) if word.state() == State::Live => return self.only(word, &scope),
            _ => return Routes::new(),
        }
        let words = self.words_of(node, hash, now, &guard);
        words.iter().filter_map(|word| self.route(*word)).collect()
    }

    /// [`get_proxies`](Self::get_proxies), and [`proxy`](Self::proxy) for each route, in one step under one epoch pin.
    /// A proxy that is removed meanwhile is returned with its details, or not at all.
    ///
    /// Up to two routes need no allocation if their proxies' strings have at most 24 bytes.
    #[must_use]
    pub fn resolve(&self, node: &NodeId) -> Routes<ResolvedRoute> {
        let (hash, now) = self.begin(node);
        let guard = pin();
        let words = self.words_of(node, hash, now, &guard);
        words
            .iter()
            .filter_map(|word| {
                let proxy = self.proxies().reference(word.proxy())?;
                Some(ResolvedRoute {
                    proxy,
                    details: self.proxies().details(proxy, &guard)?,
                    last_refresh: self.time().wall(word.time()),
                })
            })
            .collect()
    }

    /// Every known route of a node, in the order of [`get_proxies`](Self::get_proxies), and whether or why not
    /// `get_proxies` returns it.
    #[must_use]
    pub fn explain(&self, node: &NodeId) -> Vec<ExplainedRoute> {
        let guard = pin();
        let hash = self.hash(node);
        let now = self.time.now();
        let returned = self.keep_alive.returned();
        let restored_at = self.restored_at();
        let words = self.shards.all_routes(node, hash, &guard);
        let explain = |word: &Word| {
            let proxy = self.proxies.reference(word.proxy());
            let age = now.tick.saturating_sub(word.time());
            ExplainedRoute {
                proxy: proxy.and_then(|proxy| self.proxies.details(proxy, &guard)),
                last_refresh: self.time.wall(word.time()),
                age: Duration::from_millis(age),
                verdict: match () {
                    () if proxy.is_none() => Verdict::ProxyRemoved,
                    () if age > returned + now.raise() => Verdict::Expired,
                    () if word.time() < restored_at => Verdict::Restored,
                    () if age > returned => Verdict::Held,
                    () => Verdict::Returned,
                },
            }
        };
        words.iter().map(explain).collect()
    }

    /// [`get_proxies`](Self::get_proxies) for a node whose record had a number in a shard. Nearly always the record is
    /// still the node's: then this call needs no hash and no bucket. Starts loading the record of the number `next`.
    pub(super) fn get_proxies_at(&self, shard: usize, node: &NodeId, number: u32, next: Option<u32>) -> Routes {
        let now = self.time.now();
        let guard = pin();
        // Before the word is read, as in `get_proxies`.
        let scope = self.scope_at(now.of_look_up(), &guard);
        match self.shards.word_at(shard, node, number, next, &guard) {
            Some(word) if word.state() == State::Live => self.only(word, &scope),
            _ => self.get_proxies(node),
        }
    }

    /// The answer for a node whose only route is `word`.
    #[inline]
    fn only(&self, word: Word, scope: &Scope<'_, Proxies>) -> Routes {
        let route = if scope.is_fresh(word) { self.route(word) } else { None };
        Routes::of(route)
    }

    /// A node's valid routes, most recently refreshed first.
    pub(crate) fn words_of(&self, node: &NodeId, hash: u64, now: Now, guard: &Guard) -> Words {
        self.shards.routes(node, hash, &self.scope_at(now.of_look_up(), guard))
    }

    /// The route of a word, unless its proxy has been removed meanwhile.
    #[inline]
    fn route(&self, word: Word) -> Option<Route> {
        Some(self.copied(word)?.dated(&self.time))
    }

    /// A copy of a word, unless the route's proxy has been removed meanwhile. Later, another proxy may have the number
    /// of the word, so the caller copies the word under the pin under which the call read it.
    #[inline]
    pub(super) fn copied(&self, word: Word) -> Option<CopiedRoute> {
        Some(CopiedRoute {
            proxy: self.proxies.reference(word.proxy())?,
            tick: word.time(),
        })
    }
}
