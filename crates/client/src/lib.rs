//! What proxies and agents embed to use node trackers.
//!
//! A *node* dials out to a *proxy* and keeps a tunnel open. A *tracker* knows which proxy holds the tunnel to a node. This
//! crate has the three parts of a fleet that are not the tracker:
//!
//! | part | module |
//! | --- | --- |
//! | a proxy asks which proxy holds a node | [`tracker`], and the client of a tracker in [`connect`] |
//! | an agent keeps tunnels to proxies, which accept them | [`pool`], [`listener`], over [`transport`] and [`control`] |
//!
//! # State machines
//!
//! Each protocol is a state machine without I/O: time and messages go in, messages and events come out. A machine never
//! reads a clock: each of its calls has the argument `now`. A thin shell connects the machine to tokio. So the
//! deterministic tests, and a simulation of whole fleets, drive the same machines as a proxy does.

pub mod backoff;
pub mod connect;
pub mod control;
pub mod listener;
pub mod pool;
pub mod tracker;
pub mod transport;

pub use nodetracker::{NodeId, Proxy, ProxyDetails, Uuid};
