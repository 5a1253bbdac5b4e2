//! What the table answers: routes, and what an added route did.

use std::time::{Duration, SystemTime};

use crate::types::proxy::{ProxyDetails, ProxyRef};

/// One node-to-proxy relationship, as a look-up returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The proxy that holds the tunnel; [`RouteTable::proxy`](crate::RouteTable::proxy) tells its address.
    pub proxy: ProxyRef,
    /// When this route was last refreshed, to the millisecond. Other routes of the same proxy have their own.
    pub last_refresh: SystemTime,
}

/// A route as [`RouteTable::explain`](crate::RouteTable::explain) tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ExplainedRoute {
    /// The proxy, or `None` where it was removed.
    pub proxy: Option<ProxyDetails>,
    /// When the route was last refreshed.
    pub last_refresh: SystemTime,
    /// How long ago that is, on the clock that decides.
    pub age: Duration,
    /// Whether the route is returned, or why not.
    pub verdict: Verdict,
}

/// Whether a route is returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Verdict {
    /// It is.
    Returned,
    /// It was not refreshed for longer than the keep-alive interval, and not swept yet.
    Expired,
    /// Its proxy was removed, and the route not swept yet.
    ProxyRemoved,
}

/// What [`RouteTable::add_node`](crate::RouteTable::add_node) did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Added {
    /// The node had no unexpired route through this proxy, and has one now.
    Inserted,
    /// The route was known and unexpired; its time was brought up to date.
    Refreshed,
}
