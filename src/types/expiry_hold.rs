//! Why and for how long expiry is held.

use std::time::Duration;

/// Why and for how long no route expires: see [`RouteTable::expiry_hold`](crate::RouteTable::expiry_hold).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ExpiryHold {
    /// Why expiry is held.
    pub cause: HoldCause,
    /// By how much the effective keep-alive interval is longer than the keep-alive interval now.
    pub raise: Duration,
    /// The time after which the hold ends at the latest, if the process is not stopped meanwhile.
    pub left: Duration,
}

/// Why expiry is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum HoldCause {
    /// The process was stopped, or its clock jumped: see
    /// [`effective_keep_alive`](crate::RouteTable::effective_keep_alive).
    Stop,
    /// The table was restored from a snapshot: see [`Ages::Grace`](crate::snapshot::Ages::Grace).
    Restart,
    /// Many routes were about to expire at once: see [`Builder::expiry_brake`](crate::Builder::expiry_brake).
    Brake,
}
