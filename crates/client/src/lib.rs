//! What proxies and agents embed to use node trackers.
//!
//! A *node* dials out to a *proxy* and keeps a tunnel open. A *tracker* knows which proxy holds the tunnel to a node. This
//! crate has the three parts of a fleet that are not the tracker:
//!
//! | part | module |
//! | --- | --- |
//! | a proxy asks which proxy holds a node | [`tracker`], and the client of a tracker in [`connect`] |
//! | a proxy asks on every dial | [`replica`], a copy of the tracker's table, or [`cache`], the latest answers |
//!
//! # State machines
//!
//! Each protocol is a state machine without I/O: time and messages go in, messages and events come out. A machine never
//! reads a clock: each of its calls has the argument `now`. A thin shell connects the machine to tokio. So the
//! deterministic tests, and a simulation of whole fleets, drive the same machines as a proxy does.

pub mod backoff;
pub mod cache;
pub mod connect;
pub mod replica;
pub mod tracker;
mod watch;

pub use nodetracker::{NodeId, Proxy, ProxyDetails, Uuid};
