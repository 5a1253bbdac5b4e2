//! A proxy reports its nodes: [`ProxySession`].
//!
//! The proxy's threads call [`node_up`](ProxySession::node_up) when a node's tunnel opens,
//! [`node_seen`](ProxySession::node_seen) at each sign of life, and [`node_down`](ProxySession::node_down) when the
//! tunnel ends. The calls change a map in memory. A task for each tracker reports the changes in batches, and refreshes
//! the routes of the nodes that were seen. After a tracker has lost its routes, the task announces the nodes again.
//!
//! | module | contents |
//! | --- | --- |
//! | [`nodes`] | the nodes of a proxy, as one tracker has to know them |
//! | [`machine`] | the protocol, without I/O |
//!
//! # Signs of life
//!
//! Report each node at least once an interval, which is a third of the trackers' keep-alive interval (100 s, if the
//! tracker has the default). A sign of life refreshes the route once, within an interval. So the route of a node that
//! went silent without [`node_down`](ProxySession::node_down) expires, at most one interval and one keep-alive interval
//! after the last sign.
//!
//! # After a failure
//!
//! | failure | what follows |
//! | --- | --- |
//! | the connection was lost | a reconnect with backoff, and a round of heartbeats if one is due; no new announcement |
//! | the tracker has lost its routes | after up to 1 s of jitter, all nodes are announced at up to 50,000 a second |
//! | the connection is half-open | noticed after 15 s, or after 20 s without an answer to a request |
//! | the process slept for longer than the keep-alive interval | each node is announced again with its next sign of life |
//! | the tracker has no room for a node | the node is announced again with backoff, up to 60 s |
//! | another process is this proxy | the session ends with [`Superseded`](machine::Superseded) |
//! | the tracker refuses the proxy, its certificate or its texts | [`SessionStats::last_error`] says why; tried again with backoff |
//!
//! A live node has its route again soon after a tracker can be reached. The bound is the wait before the next attempt
//! (30 s), the jitter (1 s), and the time of the announcements, added up. If an operator has removed a route, the next
//! heartbeat notices, within an interval. `tests/it/session/faults.rs` drives hundreds of random runs against this
//! bound.
//!
//! After a restart of the tracker, a proxy with *n* UUIDs sends one hello and *n* / 512 announcements of 16 bytes a
//! node. It receives as many answers of 8 bytes a node. For 100,000 nodes of 10 proxies, these are 210 requests, 1.7 MB
//! sent, and 0.9 MB received, in at most four round trips (`tests/it/session/recovery.rs`).
//!
//! # Memory
//!
//! Each tracker has a [`NodeSet`](nodes::NodeSet) of its own with [`WriteTo::All`](crate::connect::WriteTo::All). A
//! node has a handle for each tracker. One map with the handles outside would save memory with two trackers, and cost
//! more memory with one. `tests/session_memory.rs` measures the bytes of a node.
//!
//! # Example
//!
//! ```
//! # use std::sync::Arc;
//! use std::time::Duration;
//!
//! use nodetracker_client::session::{ProxySession, SessionConfig};
//! use nodetracker_client::{NodeId, Proxy};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use nodetracker_server::{Config, Limits, Server};
//! # let config = Config::default().listen_on("127.0.0.1:0");
//! # let table = Arc::new(config.table().build()?);
//! # let server = Server::bind_with_limits(&config, Arc::clone(&table), Limits::default()).await?;
//! # let tracker = server.local_addr().to_string();
//! # tokio::spawn(server.run(std::future::pending()));
//! # let (stop, stopped) = tokio::sync::oneshot::channel();
//! let proxy = Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" };
//! let session = ProxySession::start(SessionConfig::new(proxy, vec![tracker.parse()?]))?;
//!
//! let node: NodeId = "550e8400-e29b-41d4-a716-446655440000".parse()?;
//! session.node_up(&node)?;
//! session.node_seen(&node);
//! # session.subscribe()[0].wait_for(|stats| stats.is_settled).await?;
//! # assert_eq!(table.get_proxies(&node).len(), 1);
//! # let _ = stop.send(());
//! tokio::select! {
//!     superseded = session.superseded() => return Err(superseded.into()),
//!     result = stopped => result?,
//! }
//! session.drain(Duration::from_secs(5)).await?;
//! # assert!(table.get_proxies(&node).is_empty());
//! # Ok(())
//! # }
//! ```

mod config;
pub mod machine;
mod messages;
mod node_map;
pub mod nodes;
mod proxy_session;
mod shell;
mod stats;
mod times;

pub use config::{SessionConfig, SessionConfigError};
pub use messages::Violation;
pub use proxy_session::{DrainError, ProxySession};
pub use stats::{Counters, SessionState, SessionStats};
pub use times::SessionTimes;
