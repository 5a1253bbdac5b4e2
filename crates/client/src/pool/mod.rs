//! An agent keeps tunnels open to a number of different proxies behind load balancers.
//!
//! | module | contents |
//! | --- | --- |
//! | [`config`] | what an embedder decides |
//! | [`counts`] | how many tunnels are in which state, and what has happened |
//! | [`machine`] | which tunnels to open and to close: the state machine, without I/O |
//! | `proxies` | which proxies are known, and which have a tunnel |
//! | [`agent_pool`] | the state machine connected to a transport: [`AgentPool`] |
//! | `tunnel` | the task of one tunnel |
//!
//! A load balancer stands between agent and proxies: the agent dials one address, and the load balancer chooses the
//! proxy. The proxy sends its ID and the list of the proxies that it knows. The proxy's program sets this list with
//! [`AgentListener::set_proxies`](crate::listener::AgentListener::set_proxies); by default, the list has only the proxy
//! itself. An agent that already has a tunnel to this
//! proxy drops the new tunnel, waits, and dials again. The agent stops when it has `connection_count` tunnels, or a
//! tunnel to each known proxy. The pool of agents in Teleport has the same rules, leases and claims
//! (`lib/reversetunnel/track`).
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use nodetracker_client::pool::{AgentPool, PoolConfig, Target};
//! use nodetracker_client::transport::tcp::TcpTransport;
//!
//! let config = PoolConfig::new("node-1".parse()?);
//! let mut pool = AgentPool::new(config, TcpTransport::default());
//! pool.handle().add_target(Target::new("main", "tunnels.example:3024"));
//! while let Some(mut incoming) = pool.accept().await {
//!     tokio::spawn(async move {
//!         let (mut read, mut write) = tokio::io::split(&mut incoming.stream);
//!         tokio::io::copy(&mut read, &mut write).await
//!     });
//! }
//! # Ok(())
//! # }
//! ```

pub mod agent_pool;
pub mod config;
pub mod counts;
pub mod machine;
mod proxies;
mod tunnel;

pub use agent_pool::{AgentPool, IncomingStream, PoolHandle};
pub use config::{PoolConfig, Target};
pub use counts::{Counts, LastErrors, PoolStats, PoolStatus, StateCounts};
pub use machine::TunnelId;
