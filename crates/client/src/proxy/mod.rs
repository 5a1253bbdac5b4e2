//! A proxy that reaches every node of the fleet: through its own tunnels, or through the proxy that a tracker names.
//!
//! | type | what it does |
//! | --- | --- |
//! | [`ProxyService`] | a whole proxy: all of the parts below, connected |
//! | [`Dialer`] | opens a stream to a node: RFD 47's two cases |
//! | [`PeerServer`] | serves other proxies, from the tunnels that this proxy holds |
//! | [`ReportNodes`] | reports the nodes of an [`AgentListener`](crate::listener::AgentListener) in a [`ProxySession`](crate::session::ProxySession) |
//!
//! A dial tries this proxy's own tunnels first (case 2). Then the dialer asks a
//! [`NodeTracker`](crate::tracker::NodeTracker) for the node's routes, and tries the routes one after the other, the
//! freshest first (case 1). A peer serves only nodes whose tunnels it holds. A peer passes no request on, so no dial
//! can loop. If a peer does not hold the node, the dialer complains to the tracker.
//!
//! Peers speak the protocol `nodetracker.peer.v1` on [tunnels](crate::transport) of their own. The dialer keeps a
//! tunnel to each peer while streams need the tunnel, and more tunnels if all streams are in use. It notices a peer
//! that is gone: see [`PeerTimes`].
//!
//! A [`ProxyService`] also learns which other proxies there are: it asks the trackers for the proxies of its cluster,
//! and pings these proxies. The answers name the incarnations, and whether a proxy drains. The service names the
//! proxies that answer to its agents.
//!
//! `examples/proxy.rs` is a whole proxy.

mod dialer;
mod discovery;
mod gossip;
mod peer_server;
mod peers;
mod protocol;
mod report_nodes;
pub(crate) mod service;
mod sessions;

pub use dialer::{AttemptError, DialError, Dialed, Dialer, DialerConfig, DialerStats, Via};
pub use peer_server::{PeerServer, PeerServerConfig, PeerServerStats};
pub use peers::PeerTimes;
pub use protocol::{MAX_MESSAGE, RefusalReason};
pub use report_nodes::ReportNodes;
#[cfg(feature = "metrics")]
pub use service::ProxyMetrics;
pub use service::{LookUps, ProxyService, ProxyServiceConfig, ProxyServiceError};
