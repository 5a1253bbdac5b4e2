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
//! proxy. The proxy sends its ID and the list of the proxies that it knows. A
//! [`ProxyService`](crate::proxy::ProxyService) keeps this list; the program of another proxy sets it with
//! [`AgentListener::set_proxies`](crate::listener::AgentListener::set_proxies). An agent that already has a tunnel to
//! this proxy drops the new tunnel, waits, and dials again. The agent stops when it has `connection_count` tunnels, or
//! a tunnel to each known proxy. The pool of agents in Teleport has the same rules, leases and claims
//! (`lib/reversetunnel/track`).
//!
//! ```
//! use nodetracker_client::pool::{AgentPool, PoolConfig, Target};
//! use nodetracker_client::transport::tcp::TcpTransport;
//!
//! # use nodetracker_client::control::proto::ProxyInfo;
//! # use nodetracker_client::listener::{AgentListener, ListenerConfig};
//! # use nodetracker_client::transport::tcp::TcpAcceptor;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let proxy = ProxyInfo { proxy_id: "proxy-1".into(), ..ProxyInfo::default() };
//! # let listener = AgentListener::new(ListenerConfig::new(proxy), ())?;
//! # let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let load_balancer = tcp.local_addr()?.to_string();
//! # tokio::spawn(async move { listener.serve(TcpAcceptor::plaintext(tcp)).await });
//! let config = PoolConfig::new("node-1".parse()?);
//! let mut pool = AgentPool::start(config, TcpTransport::default());
//! let handle = pool.handle().clone();
//! handle.add_target(Target::new("main", load_balancer));
//! tokio::spawn(async move {
//!     while let Some(mut incoming) = pool.accept().await {
//!         tokio::spawn(async move {
//!             let (mut read, mut write) = tokio::io::split(&mut incoming.stream);
//!             tokio::io::copy(&mut read, &mut write).await
//!         });
//!     }
//! });
//! let connected = handle.status().wait_for(|status| status.counts["main"].ready() == 1).await;
//! assert!(connected.is_some());
//! # Ok(())
//! # }
//! ```

pub mod agent_pool;
pub mod config;
pub mod counts;
pub mod machine;
mod proxies;
mod tunnel;

pub use agent_pool::{AgentPool, IncomingStream, PoolHandle, StatusReceiver};
pub use config::{PoolConfig, Target};
pub use counts::{Counts, LastErrors, PoolStats, PoolStatus, StateCounts};
pub use machine::TunnelId;
