//! The public table type.

pub(crate) mod batch;
pub(crate) mod incarnation;
pub(crate) mod page;
pub(crate) mod resolve;
pub(crate) mod walk;

use std::time::Duration;

use smallvec::SmallVec;

use crate::builder::{BuildError, Builder};
use crate::error::{AddError, RegisterError, ReportError};
use crate::feed::{Event, Feed, Subscription};
use crate::keep_alive::KeepAlive;
use crate::proxies::{Moment, Proxies};
use crate::route_limit::RouteLimit;
use crate::shard::routes::{Change, Words};
use crate::shard::{Refused, Scope};
use crate::shards::Shards;
use crate::sweep::{Cursor, collections};
use crate::sync::{Guard, collect, garbage, pin};
use crate::time::{Time, ticks};
use crate::types::node_id::NodeId;
use crate::types::proxy::{Proxy, ProxyDetails, ProxyRef};
use crate::types::route::{Added, ExplainedRoute, Route, Verdict};
use crate::word::{State, Word};

impl Builder {
    /// Makes an empty table.
    ///
    /// # Errors
    ///
    /// [`BuildError`]: a limit is greater than the greatest possible limit.
    pub fn build(self) -> Result<RouteTable, BuildError> {
        self.check()?;
        Ok(RouteTable::with(self))
    }
}

/// A concurrent table of nodes and the proxies that hold their tunnels.
///
/// A [`Sweeper`](crate::Sweeper) or the program must [`sweep`](RouteTable::sweep) the table: expired routes are not
/// returned, but keep their memory until they are swept.
///
/// Every method takes `&self` and may be called from any number of threads. Adding, refreshing, looking up, removing
/// and sweeping routes is lock-free: no thread ever waits for another thread, even if the operating system has stopped
/// the other thread in the middle of an operation. Registering and removing *proxies* takes a short lock if it changes
/// something. Calls that only read never take the lock. The [crate's
/// documentation](crate#which-calls-wait-for-another-thread) lists the calls that may wait.
///
/// An answer is linearizable per route, and in membership per node. The times in one answer may belong to different
/// instants of the call.
///
/// ```
/// use nodetracker::{NodeId, Proxy, RouteTable};
///
/// let table = RouteTable::new();
/// let node: NodeId = "550e8400-e29b-41d4-a716-446655440000".parse()?;
/// let proxy = table.register_proxy(&Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" })?;
/// table.add_node(&node, proxy)?;
///
/// let routes = table.get_proxies(&node);
/// let details = table.proxy(routes[0].proxy).expect("it is registered");
/// assert_eq!(details.addr, "10.0.0.1:3080");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RouteTable {
    shards: Shards,
    routes: RouteLimit,
    proxies: Proxies,
    time: Time,
    keep_alive: KeepAlive,
    cursor: Cursor,
    feed: Feed,
}

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
    /// Objects that this process's tables have retired but not freed yet, because some thread may still read them:
    /// route lists, indexes, changes of the feed, details of proxies, arrays of the map of proxy IDs, and grace periods
    /// that have not ended. One figure for all tables of the process.
    ///
    /// At most [`MAX_GARBAGE_PER_THREAD`](Stats::MAX_GARBAGE_PER_THREAD) for each thread that has used a table, unless
    /// a thread stays inside a call: objects that other threads retire meanwhile wait for that thread. During the
    /// microseconds of most calls, few objects wait; while a call replaces a large shard, more. If the operating system
    /// stops a thread inside a call, the figure has no bound. If only the sweeper uses the tables, two rounds leave at
    /// most 64 objects for each other thread.
    ///
    /// Not counted: the bags that crossbeam-epoch keeps the objects in, up to 130 KiB for each thread that has used a table.
    pub garbage: usize,
    /// The bytes of [`garbage`](Stats::garbage), without the allocator's overhead.
    pub garbage_bytes: usize,
}

impl Stats {
    /// The most objects of [`garbage`](Stats::garbage) for each thread, while no other thread stays inside a call.
    pub const MAX_GARBAGE_PER_THREAD: usize = 4_096;
}

/// What [`RouteTable::sweep`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SweepReport {
    /// Records visited, including free records and those of removed nodes, and proxies. Copying a part of an index and
    /// forgetting incarnations count as visits, too.
    pub visited: usize,
    /// Routes removed because they were expired or their proxy was removed.
    pub removed: usize,
    /// Whether this call ended a round: every record was visited since the end of the previous round.
    pub round_completed: bool,
}

impl Default for RouteTable {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouteTable")
            .field("stats", &self.stats())
            .field("keep_alive", &self.keep_alive())
            .finish_non_exhaustive()
    }
}

impl Drop for RouteTable {
    /// Frees at most some 12,000 retired objects, and none that a pinned thread may still read.
    fn drop(&mut self) {
        // The epoch advances at most once per pin, and garbage waits for two advances.
        for _ in 0..if cfg!(loom) { 0 } else { 3 } {
            collect(&pin(), collections(garbage().objects));
        }
    }
}

impl RouteTable {
    /// Returns an empty table with the defaults of [`Builder`].
    #[must_use]
    pub fn new() -> Self {
        Self::with(Builder::default())
    }

    /// `builder`'s limits are possible.
    pub(crate) fn with(builder: Builder) -> Self {
        Self {
            shards: Shards::new(),
            routes: RouteLimit::new(builder.max_routes),
            proxies: Proxies::new(builder.max_proxies),
            time: Time::new(builder.clock),
            keep_alive: KeepAlive::new(ticks(builder.keep_alive)),
            cursor: Cursor::default(),
            feed: Feed::new(builder.feed_ring),
        }
    }

    /// Returns the options for a table.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The hash under which a node is stored.
    #[inline]
    pub(crate) fn hash(&self, node: &NodeId) -> u64 {
        self.shards.hash(node)
    }

    #[inline]
    pub(crate) fn scope<'a>(&'a self, guard: &'a Guard) -> Scope<'a, Proxies> {
        self.scope_at(self.time.now(), guard)
    }

    /// The scope of an operation that has already read the clock.
    #[inline]
    fn scope_at<'a>(&'a self, now: u64, guard: &'a Guard) -> Scope<'a, Proxies> {
        Scope {
            guard,
            hasher: self.shards.hasher(),
            count: &self.routes,
            proxies: &self.proxies,
            now,
            keep_alive: self.keep_alive.returned(),
            kept_age: self.keep_alive.kept(),
            feed: &self.feed,
        }
    }

    /// Begins an operation on one node, before the pin: returns the node's hash and the tick.
    ///
    /// Order matters: prefetch the bucket before reading the clock and pinning. Both stall on earlier loads, but not on
    /// prefetches (`Shard::preload`).
    #[inline]
    pub(crate) fn begin(&self, node: &NodeId) -> (u64, u64) {
        let hash = self.hash(node);
        self.shards.preload(node, hash);
        (hash, self.time.now())
    }

    /// Registers a proxy. Returns the reference with which to add its routes.
    ///
    /// A proxy that is already registered keeps its reference. A new address or cluster applies to all of its routes at
    /// once.
    ///
    /// The reference is valid until [`remove_proxy`](Self::remove_proxy), until a greater
    /// [incarnation](Self::begin_incarnation) takes over, or until the sweeper drops the proxy as idle. For
    /// more than a keep-alive interval, an idle proxy was not registered again, and neither got nor lost a route; and a
    /// full round found no route of it. After that, [`add_node`](Self::add_node) fails with [`AddError::UnknownProxy`].
    ///
    /// If nothing changes, this is a look-up without a lock; otherwise it takes the registry's lock.
    ///
    /// # Errors
    ///
    /// [`RegisterError`]: one of the strings is not acceptable, or the table is full. The call has changed nothing.
    pub fn register_proxy(&self, proxy: &Proxy<'_>) -> Result<ProxyRef, RegisterError> {
        let guard = pin();
        self.register_pinned(proxy, self.time.now(), &guard)
    }

    fn register_pinned(&self, proxy: &Proxy<'_>, now: u64, guard: &Guard) -> Result<ProxyRef, RegisterError> {
        let moved = |proxy| self.proxy_moved(proxy, guard);
        self.proxies.register(proxy, now, guard, moved)
    }

    /// Marks for subscribers that a proxy's details have changed.
    pub(crate) fn proxy_moved(&self, proxy: ProxyRef, guard: &Guard) {
        self.feed.mark(Feed::PROXIES, guard, || Event::ProxyChanged { proxy });
    }

    /// The proxy that is registered under an ID, or `None`. The reference is valid as long as that of
    /// [`register_proxy`](Self::register_proxy).
    ///
    /// A proxy that begins another incarnation is found at every moment: first by its older reference, and from one
    /// moment on by its newer reference. Routes of the older reference are gone from the same moment on. The look-up
    /// takes no lock. It searches again only if another thread has replaced or removed the proxy meanwhile.
    #[must_use]
    pub fn find_proxy(&self, id: &str) -> Option<ProxyRef> {
        self.proxies.find(id, &pin())
    }

    /// The ID, cluster and address of a proxy, or `None` if it is no longer registered.
    #[must_use]
    pub fn proxy(&self, proxy: ProxyRef) -> Option<ProxyDetails> {
        self.proxies.details(proxy, &pin())
    }

    /// Records that `proxy` holds a tunnel to `node`, as of now. Returns whether the route is new or refreshed.
    ///
    /// A node has at most 64 routes; another route replaces the route whose last refresh is the oldest.
    ///
    /// # Errors
    ///
    /// [`AddError`]: the proxy is no longer registered, or there is no room or no memory for the route. The call has
    /// changed nothing.
    pub fn add_node(&self, node: &NodeId, proxy: ProxyRef) -> Result<Added, AddError> {
        let (hash, now) = self.begin(node);
        let guard = pin();
        // Under the pin that the CAS is under: see `proxies`.
        if !self.proxies.takes_routes(proxy) {
            return Err(AddError::UnknownProxy);
        }
        self.shards.ensure_for(node);
        self.add_pinned(node, hash, proxy, now, &guard).map(|(added, _)| added)
    }

    /// [`register_proxy`](Self::register_proxy) and [`add_node`](Self::add_node) in one call, for callers that keep no
    /// references. The proxy cannot be dropped in between.
    ///
    /// # Errors
    ///
    /// [`ReportError`]: as for both calls, but never [`AddError::UnknownProxy`].
    pub fn report_node(&self, node: &NodeId, proxy: &Proxy<'_>) -> Result<Added, ReportError> {
        let (hash, now) = self.begin(node);
        let guard = pin();
        // One pin covers both the registration and the CAS, so a removal between them counts as a removal after both:
        // see `proxies`.
        let proxy = self.register_pinned(proxy, now, &guard)?;
        self.shards.ensure_for(node);
        let (added, _) = self.add_pinned(node, hash, proxy, now, &guard)?;
        Ok(added)
    }

    /// Adds a route of a proxy that takes routes, as the caller has checked under `guard`. Also returns the record's
    /// number.
    pub(crate) fn add_pinned(
        &self,
        node: &NodeId,
        hash: u64,
        proxy: ProxyRef,
        now: u64,
        guard: &Guard,
    ) -> Result<(Added, u32), AddError> {
        let scope = self.scope_at(now, guard);
        let added = self.shards.put(node, hash, Change::Add(proxy.number), &scope);
        if let Ok((Added::Inserted, _)) = added {
            self.proxies.touch(proxy.number, now);
        }
        added.map_err(|refused| self.add_error(refused))
    }

    pub(crate) fn add_error(&self, refused: Refused) -> AddError {
        match refused {
            Refused::Routes => AddError::TooManyRoutes {
                limit: self.routes.limit(),
            },
            Refused::Memory => AddError::OutOfMemory,
        }
    }

    /// The routes of a node, most recently refreshed first. Of two refreshes within a millisecond, the later comes
    /// first if it was called after the earlier had returned. Expired routes and routes of removed proxies are left
    /// out.
    ///
    /// Up to two routes need no allocation.
    #[must_use]
    pub fn get_proxies(&self, node: &NodeId) -> SmallVec<[Route; 2]> {
        let (hash, now) = self.begin(node);
        let guard = pin();
        // Nearly all nodes have one route. They take a shorter path: half as many instructions, so that the processor
        // reaches the memory accesses of the next look-up while it waits for those of this look-up.
        // The scope, and so the keep-alive interval, is read before the route.
        let scope = self.scope_at(now, &guard);
        match self.shards.word(node, hash, &guard) {
            Some(word) if word.state() == State::Spill => {}
            Some(word) if word.state() == State::Live => return self.only(word, &scope),
            _ => return SmallVec::new(),
        }
        let words = self.words_of(node, hash, now, &guard);
        words.iter().filter_map(|word| self.route(*word)).collect()
    }

    /// The answer for a node whose only route is `word`.
    #[inline]
    fn only(&self, word: Word, scope: &Scope<'_, Proxies>) -> SmallVec<[Route; 2]> {
        let mut routes = SmallVec::new();
        if scope.is_fresh(word)
            && let Some(route) = self.route(word)
        {
            routes.push(route);
        }
        routes
    }

    /// A node's valid routes, most recently refreshed first.
    pub(crate) fn words_of(&self, node: &NodeId, hash: u64, now: u64, guard: &Guard) -> Words {
        self.shards.routes(node, hash, &self.scope_at(now, guard))
    }

    /// The route of a word, unless its proxy has been removed meanwhile.
    #[inline]
    pub(crate) fn route(&self, word: Word) -> Option<Route> {
        let proxy = self.proxies.reference(word.proxy())?;
        Some(Route {
            proxy,
            last_refresh: self.time.wall(word.time()),
        })
    }

    /// Removes all routes of a node. Returns `true` if [`get_proxies`](Self::get_proxies) would have returned at least one of
    /// them.
    ///
    /// In rare cases a removal needs memory. If there is none, the call removes nothing and returns `false`; the routes
    /// expire.
    pub fn remove_node(&self, node: &NodeId) -> bool {
        self.remove(node, Change::RemoveNode)
    }

    /// Removes the route of a node through one proxy. Returns `true` if [`get_proxies`](Self::get_proxies) would have returned
    /// the route.
    ///
    /// A removal from three routes or more needs memory. If there is none, the call removes nothing and returns `false`; the
    /// route expires.
    pub fn remove_route(&self, node: &NodeId, proxy: ProxyRef) -> bool {
        let guard = pin();
        // The pin covers the removal, too, so the number cannot become another proxy's meanwhile.
        let is_current = self.proxies.reference(proxy.number) == Some(proxy);
        let removed = is_current && self.remove(node, Change::RemoveRoute(proxy.number));
        drop(guard);
        removed
    }

    fn remove(&self, node: &NodeId, what: Change) -> bool {
        let (hash, now) = self.begin(node);
        let guard = pin();
        let valid = self.shards.remove(node, hash, what, &self.scope_at(now, &guard));
        valid > 0
    }

    /// Removes a proxy with all its routes. Returns `true` if the proxy was registered.
    ///
    /// The removal takes effect at once, and costs the same however many routes there are: from then on, no call
    /// returns these routes, and the sweeper removes them. If the proxy has an [incarnation](Self::begin_incarnation),
    /// the incarnation is over. The table remembers it for a keep-alive interval. Takes the registry's lock if the
    /// proxy is registered.
    pub fn remove_proxy(&self, proxy: ProxyRef) -> bool {
        let guard = pin();
        let removed = self.proxies.remove(proxy, self.time.now(), &guard);
        if removed {
            self.proxy_removed(proxy, &guard);
        }
        removed
    }

    /// [`remove_proxy`](Self::remove_proxy) by the proxy's ID. A proxy that was registered under the ID when the call
    /// began is removed when it returns.
    pub fn remove_proxy_by_id(&self, id: &str) -> bool {
        while let Some(proxy) = self.find_proxy(id) {
            // On failure, another thread has removed the proxy, and may have registered it again.
            if self.remove_proxy(proxy) {
                return true;
            }
        }
        false
    }

    /// Marks for subscribers that a proxy was removed.
    pub(crate) fn proxy_removed(&self, proxy: ProxyRef, guard: &Guard) {
        self.feed.mark(Feed::PROXIES, guard, || Event::ProxyRemoved {
            proxy,
            id: self.proxies.id(proxy, guard),
        });
    }

    /// The time of now, and of a keep-alive interval ago.
    pub(crate) fn moment(&self) -> Moment {
        Moment::new(self.time.now(), self.keep_alive.kept())
    }

    /// Subscribes to the changes of the table from now on: routes added and removed, proxies changed and removed, but not
    /// refreshes.
    ///
    /// To follow the table, subscribe, then read the whole table, then drain its events, and look up the node of each
    /// event. Writers do not wait for subscribers. The first subscription makes each change cost more; further
    /// subscriptions do not.
    #[must_use]
    pub fn subscribe(&self) -> Subscription<'_> {
        self.feed.subscribe()
    }

    /// The number of [subscriptions](Self::subscribe).
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.feed.subscriptions()
    }

    /// The number of changes marked for [subscriptions](Self::subscribe) since the table was made. A change is marked
    /// once, however many subscriptions there are, and not at all while there are none. Adds up 257 counters.
    #[must_use]
    pub fn marked_changes(&self) -> u64 {
        self.feed.marked()
    }

    /// Every known route of a node, in the order of [`get_proxies`](Self::get_proxies), and whether or why not
    /// `get_proxies` returns it.
    #[must_use]
    pub fn explain(&self, node: &NodeId) -> Vec<ExplainedRoute> {
        let guard = pin();
        let hash = self.hash(node);
        let now = self.time.now();
        let returned = self.keep_alive.returned();
        let words = self.shards.all_routes(node, hash, &guard);
        let explain = |word: &Word| {
            let proxy = self.proxies.reference(word.proxy());
            let age = now.saturating_sub(word.time());
            ExplainedRoute {
                proxy: proxy.and_then(|proxy| self.proxies.details(proxy, &guard)),
                last_refresh: self.time.wall(word.time()),
                age: Duration::from_millis(age),
                verdict: match () {
                    () if proxy.is_none() => Verdict::ProxyRemoved,
                    () if age > returned => Verdict::Expired,
                    () => Verdict::Returned,
                },
            }
        };
        words.iter().map(explain).collect()
    }

    /// Does a part of the sweeper's work, and reports it: removes expired routes and those of removed proxies, sheds
    /// tombstones, frees garbage that other threads have left and the numbers of removed proxies, and drops idle
    /// proxies.
    ///
    /// The call starts where the last call stopped, visits at most `max_records` records (but at least one), and
    /// returns at the end of a round. Several threads may sweep at once, but they find the same work. Proxies are
    /// skipped while another thread has the registry's lock. If there is nothing to remove, a record costs a few
    /// nanoseconds. Moving a sparse shard to smaller memory is one step, whatever `max_records` is.
    pub fn sweep(&self, max_records: usize) -> SweepReport {
        self.time.look_at_the_wall();
        let mut report = SweepReport::default();
        let mut left = u32::try_from(max_records.max(1)).unwrap_or(u32::MAX);
        while left > 0 && !report.round_completed {
            let guard = pin();
            let step = self.cursor.step(left, &self.shards, &self.proxies, &self.scope(&guard));
            left = left.saturating_sub(step.visited.max(1));
            report.visited += step.visited as usize;
            report.removed += step.removed;
            report.round_completed = step.round_completed;
        }
        report
    }

    pub(crate) fn shards(&self) -> &Shards {
        &self.shards
    }

    pub(crate) fn time(&self) -> &Time {
        &self.time
    }

    pub(crate) fn count(&self) -> &RouteLimit {
        &self.routes
    }

    pub(crate) fn feed(&self) -> &Feed {
        &self.feed
    }

    pub(crate) fn proxies(&self) -> &Proxies {
        &self.proxies
    }

    /// The tick of now.
    pub(crate) fn now(&self) -> u64 {
        self.time.now()
    }

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
            garbage: garbage.objects,
            garbage_bytes: garbage.bytes,
        }
    }

    /// The number of routes, counted until they are removed or swept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.routes.get()
    }

    /// Whether there are no routes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keep-alive interval that was set last: the greatest age of a route without a refresh. A longer interval may
    /// not be in force yet: see [`set_keep_alive`](Self::set_keep_alive).
    #[must_use]
    pub fn keep_alive(&self) -> Duration {
        Duration::from_millis(self.keep_alive.kept())
    }

    /// Sets the keep-alive interval, rounded up to whole milliseconds; at least one millisecond, at most 8.7 years. The
    /// interval applies to all routes, also to those added before: a longer interval brings back expired routes that
    /// were not swept yet.
    ///
    /// A shorter interval comes into force at once. A longer interval comes into force when the calls that other
    /// threads have begun before have ended, because these calls might still remove routes that it brings back. So no
    /// route vanishes after it was returned under the new interval. This call checks up to ten thousand times whether
    /// those calls have ended, and yields the processor in between. If a thread is stopped inside a call, the longer
    /// interval comes into force later.
    ///
    /// Takes a lock of its own, so it waits for another thread that sets the interval.
    pub fn set_keep_alive(&self, interval: Duration) {
        self.keep_alive.set(ticks(interval));
    }
}
