//! The public table type.

pub(crate) mod batch;
mod changes;
mod copied;
pub(crate) mod handles;
pub(crate) mod incarnation;
mod look_up;
pub(crate) mod memory_use;
pub(crate) mod page;
mod proxies;
mod remove;
mod report;
pub(crate) mod stats;
pub(crate) mod sweep;
pub(crate) mod walk;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::brake::Brake;
use crate::builder::{BuildError, Builder};
use crate::feed::Feed;
use crate::keep_alive::KeepAlive;
use crate::proxies::{Moment, Proxies, ProxyLimits};
use crate::route_limit::RouteLimit;
use crate::shard::Scope;
use crate::shards::Shards;
use crate::sweep::{Cursor, collections};
use crate::sync::{Guard, collect, garbage, pin};
use crate::time::{Now, Time, ticks};
use crate::types::expiry_hold::{ExpiryHold, HoldCause};
use crate::types::node_id::NodeId;

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
/// returned, but keep their memory until they are swept. Visit every record at least four times in a keep-alive
/// interval, in steps of 256 records: [`SweepPace`](crate::SweepPace) computes the pauses between the steps, of 2 ms to
/// 1 s.
///
/// Every method takes `&self` and may be called from any number of threads. Adding, refreshing, looking up, removing
/// and sweeping routes is lock-free. No thread ever waits for another thread, even if the operating system has stopped
/// the other thread in the middle of an operation. Registering and removing *proxies* takes a short lock if it changes
/// something. Calls that only read never wait for the lock. The [crate's
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
/// assert_eq!(details.addr(), "10.0.0.1:3080");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RouteTable {
    shards: Shards,
    route_limit: RouteLimit,
    proxies: Proxies,
    time: Time,
    keep_alive: KeepAlive,
    brake: Brake,
    /// Whether a sweep is requested sooner than its pace, to make room for routes or proxies.
    sweep_requested: AtomicBool,
    /// The tick before which every last refresh was restored from a snapshot; 0 if the table was not restored.
    restored_at: AtomicU64,
    cursor: Cursor,
    feed: Feed,
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

/// # Making a table
impl RouteTable {
    /// Returns an empty table with the defaults of [`Builder`].
    #[must_use]
    pub fn new() -> Self {
        Self::with(Builder::default())
    }

    /// Returns the options for a table.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

/// # The keep-alive interval
impl RouteTable {
    /// The keep-alive interval that was set last: the greatest age of a route without a refresh. A longer interval may
    /// not be in force yet: see [`set_keep_alive`](Self::set_keep_alive).
    #[must_use]
    pub fn keep_alive(&self) -> Duration {
        Duration::from_millis(self.keep_alive.kept())
    }

    /// The greatest age of a route that a look-up returns now: the [keep-alive interval](Self::keep_alive), or more
    /// while [expiry is held](Self::expiry_hold).
    ///
    /// A [`SweepPace`](crate::SweepPace) or a [`Sweeper`](crate::Sweeper) reads the clock several times in a heartbeat
    /// interval (a third of the keep-alive interval). If no call has read the clock for longer, the process was stopped
    /// or its clock jumped, and no heartbeat could arrive. Then no further route expires for one heartbeat interval (at
    /// most 18.6 hours): the *grace*. The effective interval grows with the age of the routes, and is the keep-alive
    /// interval again at the end of the grace. A further stop restarts the grace, at most eight times. The [expiry
    /// brake](crate::Builder::expiry_brake) holds expiry in the same way, for longer.
    #[must_use]
    pub fn effective_keep_alive(&self) -> Duration {
        let raise = self.time.now().raise();
        Duration::from_millis(self.keep_alive.returned() + raise)
    }

    /// Whether expiry is held now, and why; `None` if routes expire after the keep-alive interval.
    ///
    /// Takes no lock. While expiry is held, [`explain`](Self::explain) marks the routes that are returned only for that
    /// reason.
    #[must_use]
    pub fn expiry_hold(&self) -> Option<ExpiryHold> {
        let left = self.time.hold_left();
        let now = self.time.now();
        (left > 0).then(|| ExpiryHold {
            cause: match () {
                () if self.brake.holds(&self.time) => HoldCause::Brake,
                // The hold after a restart begins before all others, so any other hold begins later.
                () if now.expiry < self.restored_at() => HoldCause::Restart,
                () => HoldCause::Stop,
            },
            raise: Duration::from_millis(now.raise()),
            left: Duration::from_millis(left),
        })
    }

    /// Sets the keep-alive interval, rounded up to whole milliseconds; at least one millisecond, at most 8.7 years. The
    /// interval applies to all routes, also to those added before: a longer interval brings back expired routes that
    /// were not swept yet.
    ///
    /// A shorter interval applies at once. A longer interval applies when all calls that began earlier have ended. Such
    /// a call might still remove a route that the longer interval makes valid again. So a route that was returned under
    /// the new interval does not vanish. This call checks up to ten thousand times whether the earlier calls have
    /// ended, and yields the processor in between. If a thread is stopped inside a call, the longer interval applies
    /// later.
    ///
    /// Takes a lock of its own, so it waits for another thread that sets the interval.
    pub fn set_keep_alive(&self, interval: Duration) {
        self.keep_alive.set(ticks(interval));
    }
}

impl RouteTable {
    /// `builder`'s limits are possible.
    pub(crate) fn with(builder: Builder) -> Self {
        Self {
            shards: Shards::new(),
            route_limit: RouteLimit::new(builder.max_routes),
            proxies: Proxies::new(ProxyLimits {
                proxies: builder.max_proxies,
                routes_each: builder.max_routes_per_proxy,
                of_client: builder.max_proxies_per_client,
                routes_of_client: builder.max_routes_per_client,
                text_bytes: builder.max_text_bytes,
            }),
            time: Time::new(builder.clock),
            keep_alive: KeepAlive::new(ticks(builder.keep_alive)),
            brake: Brake::new(builder.expiry_brake),
            sweep_requested: AtomicBool::new(false),
            restored_at: AtomicU64::new(0),
            cursor: Cursor::default(),
            feed: Feed::new(builder.feed_ring),
        }
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
    pub(crate) fn scope_at<'a>(&'a self, now: Now, guard: &'a Guard) -> Scope<'a, Proxies> {
        Scope {
            guard,
            hasher: self.shards.hasher(),
            route_limit: &self.route_limit,
            proxies: &self.proxies,
            now: now.tick,
            keep_alive: self.keep_alive.returned() + now.raise(),
            kept_age: self.keep_alive.kept() + now.raise(),
            feed: &self.feed,
        }
    }

    /// Begins an operation on one node, before the pin: returns the node's hash and the time.
    ///
    /// Order matters: prefetch the bucket before reading the clock and pinning. Both stall on earlier loads, but not on
    /// prefetches (`Shard::preload`).
    ///
    /// Always inlined: the returned values do not fit into registers, and a call costs every look-up and refresh 12 to
    /// 20 instructions.
    #[inline(always)]
    pub(crate) fn begin(&self, node: &NodeId) -> (u64, Now) {
        let hash = self.hash(node);
        self.shards.preload(node, hash);
        (hash, self.time.now())
    }

    /// The tick of now.
    pub(crate) fn now(&self) -> u64 {
        self.time.now().tick
    }

    /// The time of now, and of an effective keep-alive interval ago.
    pub(crate) fn moment(&self) -> Moment {
        let now = self.time.now();
        Moment::new(now.tick, self.keep_alive.kept() + now.raise())
    }

    /// Begins the grace of a table without routes that is about to be restored. For a keep-alive interval, no route
    /// expires that was valid at the tick `since`. All restored routes were last refreshed before the present tick.
    pub(crate) fn begin_grace(&self, since: u64) {
        // Relaxed: a hint for `explain` and `expiry_hold`.
        self.restored_at.store(self.now(), Ordering::Relaxed);
        self.time.hold_since(since, self.keep_alive.kept());
    }

    fn restored_at(&self) -> u64 {
        // Relaxed: as in `begin_grace`.
        self.restored_at.load(Ordering::Relaxed)
    }

    /// Requests a fast sweep to make room: it removes expired routes and the routes of removed proxies, and frees the
    /// numbers of removed proxies.
    pub(crate) fn request_sweep(&self) {
        // Relaxed, here and below: a hint.
        self.sweep_requested.store(true, Ordering::Relaxed);
    }

    /// Returns whether a fast sweep was requested since the last call.
    pub(crate) fn take_sweep_request(&self) -> bool {
        // The load keeps the cache line shared while no sweep is requested.
        self.sweep_requested.load(Ordering::Relaxed) && self.sweep_requested.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn shards(&self) -> &Shards {
        &self.shards
    }

    pub(crate) fn time(&self) -> &Time {
        &self.time
    }

    pub(crate) fn route_limit(&self) -> &RouteLimit {
        &self.route_limit
    }

    pub(crate) fn feed(&self) -> &Feed {
        &self.feed
    }

    pub(crate) fn proxies(&self) -> &Proxies {
        &self.proxies
    }
}
