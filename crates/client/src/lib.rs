//! What proxies and agents embed to use node trackers.
//!
//! A *node* dials out to a *proxy* and keeps a tunnel open. A *tracker* knows which proxy holds the tunnel to a node.
//! This crate has the parts of a fleet that are not the tracker:
//!
//! | part | module |
//! | --- | --- |
//! | an agent keeps tunnels to proxies | [`pool`] |
//! | a proxy accepts agents | [`listener`] |
//! | a proxy reports its nodes to trackers | [`session`] |
//! | a proxy asks which proxy holds a node | [`tracker`], and the client of trackers in [`client`] |
//! | a proxy asks on every dial | [`cache`], the latest answers, or [`replica`], a copy of the tracker's table |
//! | a proxy reaches nodes, its own or those of its peers | [`proxy`] |
//!
//! These modules use [`connect`] (connections to trackers), [`transport`] (tunnels of many streams), [`control`] (the
//! protocol of agents and proxies) and [`backoff`].
//!
//! # State machines
//!
//! The health of a tracker, the protocols of sessions, replicas, pools and control streams, and the discovery of
//! proxies are state machines without I/O. Time and messages go in, messages and events come out. A machine never reads
//! a clock: each of its calls has the argument `now`. A thin shell connects the machine to tokio. So deterministic
//! tests drive the same machines as a program does. Sessions, replicas and pools have a simulated network each, and a
//! whole fleet has one.

pub mod backoff;
pub mod cache;
pub mod client;
mod clock;
mod complaints;
pub mod connect;
pub mod control;
#[cfg(test)]
mod fleet;
pub mod listener;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod pool;
pub mod proxy;
pub mod replica;
#[cfg(test)]
mod seeds;
pub mod session;
pub mod tracker;
pub mod transport;
mod watch;
mod wire;

// The integration tests include some files of `fleet`, which need this name.
#[cfg(test)]
extern crate self as nodetracker_client;

pub use nodetracker::{NodeId, Proxy, ProxyDetails, Uuid};
