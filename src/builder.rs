//! The options of a table.

use std::time::Duration;

use thiserror::Error;

use crate::brake::ExpiryBrake;
use crate::clock::{Clock, SystemClock};
use crate::feed::RING;
use crate::layout;
use crate::word::PROXY_NUMBERS;

/// A [`Builder`] was given a limit that a table cannot keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{limit} is {asked}, but must be between {least} and {most}")]
#[non_exhaustive]
pub struct BuildError {
    /// The name of the builder's method.
    pub limit: &'static str,
    /// The limit that was asked for.
    pub asked: usize,
    /// The least possible limit.
    pub least: usize,
    /// The greatest possible limit.
    pub most: usize,
}

/// Options of a [`RouteTable`](crate::RouteTable).
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    pub(crate) keep_alive: Duration,
    pub(crate) clock: Box<dyn Clock>,
    pub(crate) max_routes: usize,
    pub(crate) max_proxies: usize,
    pub(crate) max_routes_per_proxy: Option<usize>,
    pub(crate) max_routes_per_client: Option<usize>,
    pub(crate) max_proxies_per_client: Option<usize>,
    pub(crate) max_text_bytes: usize,
    pub(crate) feed_ring: usize,
    pub(crate) expiry_brake: Option<ExpiryBrake>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(300),
            clock: Box::new(SystemClock::new()),
            // Models and fuzzers have fewer shards.
            max_routes: Builder::MAX_ROUTES.min(1 << 24),
            max_proxies: 1 << 20,
            max_routes_per_proxy: None,
            max_routes_per_client: None,
            max_proxies_per_client: None,
            max_text_bytes: usize::MAX,
            feed_ring: RING,
            expiry_brake: None,
        }
    }
}

impl Builder {
    /// Whether a table can keep all limits.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        for (limit, asked, least, most) in [
            ("max_routes", self.max_routes, 0, Self::MAX_ROUTES),
            ("max_proxies", self.max_proxies, 0, Self::MAX_PROXIES),
            ("feed_ring", self.feed_ring, 1, Self::MAX_FEED_RING),
        ] {
            if !(least..=most).contains(&asked) {
                return Err(BuildError {
                    limit,
                    asked,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }

    /// The greatest possible [`max_routes`](Builder::max_routes), some 500 million. With that many nodes of one kind, a
    /// random distribution still leaves each shard below its maximum of records, tombstones included.
    pub const MAX_ROUTES: usize = layout::MAX_ROUTES;

    /// The greatest possible [`max_proxies`](Builder::max_proxies): 8,388,608.
    pub const MAX_PROXIES: usize = PROXY_NUMBERS;

    /// The greatest possible [`feed_ring`](Builder::feed_ring): 1,048,576.
    pub const MAX_FEED_RING: usize = 1 << 20;

    /// How old a route may become without a refresh; 5 minutes by default. The interval is rounded up to whole
    /// milliseconds. It is at least one millisecond; more than 8.7 years count as 8.7 years.
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.keep_alive = interval;
        self
    }

    /// The table's source of time; the system's clocks by default.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Box::new(clock);
        self
    }

    /// The most routes that the table holds, counted until they are removed or swept. The default is 16,777,216, the
    /// maximum [`MAX_ROUTES`](Builder::MAX_ROUTES). A million routes take about 30 MB.
    pub fn max_routes(mut self, routes: usize) -> Self {
        self.max_routes = routes;
        self
    }

    /// The most proxies that the table holds; 1,048,576 by default, and at most 8,388,608.
    ///
    /// A proxy counts until it is removed or dropped. But the number of a removed or replaced proxy is free again only
    /// after the sweeper has removed its routes. That takes at most 15 rounds of the
    /// [sweeper](crate::RouteTable::sweep). If a thread stays inside a call, it takes longer. The table waits twice for
    /// all calls that have begun: after the removal of the proxy, and after the removal of its routes.
    ///
    /// So a table has more numbers than proxies: the limit, an eighth of the limit, and 16, but at most 8,388,608. If
    /// half of the additional numbers are in use, the table refuses new proxies. Registered proxies can still restart
    /// with a newer incarnation: each proxy once, until the routes of its older incarnation are swept. With the
    /// greatest limit, no number is additional, so no proxy of a full table can restart.
    pub fn max_proxies(mut self, proxies: usize) -> Self {
        self.max_proxies = proxies;
        self
    }

    /// The most routes of each proxy; unlimited by default. With a limit, one proxy cannot fill the table. A route
    /// counts until it is removed or swept. Routes from a snapshot are inserted even if they exceed the limit.
    ///
    /// With a limit, the table counts the routes of each proxy ([`route_count`](crate::RouteTable::route_count)). A
    /// count takes up to 128 bytes for each proxy, and each insertion writes the count of its proxy.
    pub fn max_routes_per_proxy(mut self, routes: usize) -> Self {
        self.max_routes_per_proxy = Some(routes);
        self
    }

    /// The most routes of all proxies of a client ([`Proxy::of_client`](crate::Proxy::of_client)); unlimited by
    /// default. With a limit, one client cannot fill the table, however many proxies it reports.
    ///
    /// A route counts until it is removed or swept, for the client that its proxy counts for. Routes of an older
    /// incarnation count for the client that this incarnation counted for. Routes from a snapshot count once a client
    /// reports their proxy. A proxy that comes from another client or from a snapshot keeps its routes, even if they
    /// exceed the limit. Each insertion writes the count of its client, which is one cache line for all proxies of the
    /// client; refreshes do not.
    pub fn max_routes_per_client(mut self, routes: usize) -> Self {
        self.max_routes_per_client = Some(routes);
        self
    }

    /// The most proxies of a client ([`Proxy::of_client`](crate::Proxy::of_client)); unlimited by default. As for all
    /// proxies, removed proxies may take half of an eighth and 16 more until they are swept. While only restarts get a
    /// number ([`max_proxies`](Self::max_proxies)), a client may use half of these numbers.
    ///
    /// The limit, a sixteenth of the limit, and 8 also bound the incarnations that the table knows of a client. These
    /// are the incarnations of its proxies, and incarnations that ended within a keep-alive interval. A client at this
    /// bound can begin incarnations of known IDs only.
    ///
    /// A known proxy is never refused. If another client reports its start or new details, the proxy counts for that
    /// client from then on, if that client has room. Otherwise the proxy counts as before. A proxy from a snapshot
    /// counts for no client until a client starts it or adds a route to it.
    pub fn max_proxies_per_client(mut self, proxies: usize) -> Self {
        self.max_proxies_per_client = Some(proxies);
        self
    }

    /// The most bytes of text; unlimited by default. Text is a node's name, and a proxy's ID, cluster and address, each
    /// with one byte for its length. UUIDs and IPv4 addresses are not stored as text, and proxies with the same cluster
    /// or address share the text.
    ///
    /// All texts of the process count, in the table or waiting to be freed
    /// ([`MemoryUse::strings`](crate::MemoryUse::strings)). At the limit, the table refuses new nodes with names, and
    /// new proxies. Known proxies may still move and restart, and snapshots are restored. So the texts of these proxies
    /// and of the snapshot may exceed the limit. Threads that add texts at the same time may exceed the limit by 256
    /// bytes each, or 768 for a proxy.
    pub fn max_text_bytes(mut self, bytes: usize) -> Self {
        self.max_text_bytes = bytes;
        self
    }

    /// Holds expiry, for a bounded time, when many routes are about to expire at once; no brake by default.
    ///
    /// Proxies should refresh their routes three times in a keep-alive interval. A route that was not refreshed for two
    /// thirds of the interval is about to expire. The [sweeper](crate::SweepPace) counts such routes. When the count of
    /// a round reaches both limits ([`percent`](ExpiryBrake::percent) and [`min_routes`](ExpiryBrake::min_routes)),
    /// no further route expires. [`expiry_hold`](crate::RouteTable::expiry_hold) reports the hold.
    ///
    /// The hold ends when the heartbeats have returned: when a whole round counts at most half of the limit. The hold
    /// also ends when the [effective interval](crate::RouteTable::effective_keep_alive) has reached its
    /// [bound](ExpiryBrake::max_intervals). Routes of removed proxies are never held.
    ///
    /// The brake needs four rounds of the sweeper in each keep-alive interval, as [`SweepPace`](crate::SweepPace) takes
    /// them.
    pub fn expiry_brake(mut self, brake: ExpiryBrake) -> Self {
        self.expiry_brake = Some(brake);
        self
    }

    /// How many of its latest changes each of the 257 rings of the [change feed](crate::RouteTable::subscribe) keeps;
    /// 512 by default. Each further change takes 12 KiB of memory, and lets subscribers fall further behind: see
    /// [`Subscription`](crate::Subscription).
    pub fn feed_ring(mut self, changes: usize) -> Self {
        self.feed_ring = changes;
        self
    }
}
