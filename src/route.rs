//! What the table answers: routes, and what an added route did.

use std::time::SystemTime;

use crate::ProxyRef;

/// One node-to-proxy relationship, as a look-up returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The proxy that holds the tunnel; [`RouteTable::proxy`](crate::RouteTable::proxy) tells its address.
    pub proxy: ProxyRef,
    /// When this route was last refreshed, to the millisecond. Other routes of the same proxy have their own.
    pub last_refresh: SystemTime,
}

/// What [`RouteTable::add_node`](crate::RouteTable::add_node) did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Added {
    /// The node had no unexpired route through this proxy, and has one now.
    Inserted,
    /// The route was known and unexpired; its time was brought up to date.
    Refreshed,
}
