//! The table's answers: routes, and the effect of an addition.

use std::time::{Duration, SystemTime};

use crate::types::proxy::{ProxyDetails, ProxyRef};

/// A route from a node to a proxy, as a look-up returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Route {
    /// The proxy that holds the tunnel; [`RouteTable::proxy`](crate::RouteTable::proxy) returns its address.
    pub proxy: ProxyRef,
    /// When this route was last refreshed, to the millisecond. Each route of a proxy has its own time.
    ///
    /// The table's clock and the wall clock are compared in each [`sweep`](crate::RouteTable::sweep), with an error of
    /// up to 60 milliseconds. A step of the wall clock shows after the next sweep.
    pub last_refresh: SystemTime,
}

/// A route, as [`RouteTable::resolve`](crate::RouteTable::resolve) returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResolvedRoute {
    /// The proxy that holds the tunnel.
    pub proxy: ProxyRef,
    /// The proxy's details.
    pub details: ProxyDetails,
    /// When this route was last refreshed, to the millisecond.
    pub last_refresh: SystemTime,
}

/// A route as [`RouteTable::explain`](crate::RouteTable::explain) returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ExplainedRoute {
    /// The proxy, or `None` if it was removed.
    pub proxy: Option<ProxyDetails>,
    /// When the route was last refreshed.
    pub last_refresh: SystemTime,
    /// The time since the last refresh, on the clock that decides.
    pub age: Duration,
    /// Whether or why not the route is returned.
    pub verdict: Verdict,
}

/// Whether a route is returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Verdict {
    /// The route is returned.
    Returned,
    /// The route is returned. It comes from a snapshot that was read with
    /// [`Ages::Grace`](crate::snapshot::Ages::Grace), and was not refreshed since.
    Restored,
    /// The route was not refreshed for longer than the keep-alive interval. The route is returned because
    /// [expiry is held](crate::RouteTable::expiry_hold).
    Held,
    /// The route was not refreshed for longer than the
    /// [effective keep-alive interval](crate::RouteTable::effective_keep_alive), and is not swept yet.
    Expired,
    /// The route's proxy was removed, and the route is not swept yet.
    ProxyRemoved,
}

/// What [`RouteTable::add_node`](crate::RouteTable::add_node) did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Added {
    /// The node had no unexpired route through this proxy. Now the node has the route, unless 64 later routes displaced
    /// the route at once.
    Inserted,
    /// The node had an unexpired route through this proxy; its time is now the time of this call.
    Refreshed,
}
